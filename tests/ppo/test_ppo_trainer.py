"""PPOTrainer through real runs on the toy: what moves and what does not, tools, missing scores, refusals."""

import json

import pytest
import torch
import toy
from datasets import Dataset
from peft import AutoPeftModelForCausalLM, LoraConfig, PeftModel
from toy import ANSWERS, EOS, PROMPTS, A, B, C, D
from transformers import TrainerCallback

from pipeline.errors import UserError
from pipeline.models.adapters import CRITIC, POLICY, REFERENCE, use_adapter
from rewards import build_rewards


def owner(name: str) -> str:
    parts = set(name.split("."))
    found = parts & {POLICY, REFERENCE, CRITIC, "value_head"}
    return found.pop() if found else "base"


# ---------------------------------------------------------------- what moves and what does not
@pytest.mark.parametrize("start", ["fresh adapter", "sft adapter"])
def test_training_moves_policy_and_critic_only(tmp_path, start):
    model = toy.with_sft_adapter() if start == "sft adapter" else toy.build_model()
    trainer = toy.make_trainer(tmp_path, model, total_episodes=16)
    before = toy.snapshot(trainer.model)
    trainer.train()
    moved = {owner(n) for n, p in toy.snapshot(trainer.model).items() if not torch.equal(p, before[n])}
    assert moved == {POLICY, CRITIC, "value_head"}
    stayed = {owner(n) for n in before} - moved
    assert stayed == ({"base", REFERENCE} if start == "sft adapter" else {"base"})
    trainable = {owner(n) for n, p in trainer.model.named_parameters() if p.requires_grad}
    assert trainable == moved


def test_a_learned_reward_stays_as_it_was(tmp_path):
    from transformers import LlamaForSequenceClassification

    config = toy.build_model().config
    config.num_labels = 1
    judge = LlamaForSequenceClassification(config).eval()
    reward = build_rewards([{"name": "length", "min": 1, "max": 3, "unit": "words"}])[0].reward
    from rewards.learned import Learned

    learned = Learned(model=judge, tokenizer=toy.tokenizer())
    before = toy.snapshot(judge)
    trainer = toy.make_trainer(tmp_path, reward=[learned, reward])
    trainer.train()
    assert all(torch.equal(p, before[n]) for n, p in judge.named_parameters())
    assert {"score/learned", "score/length"} <= set(trainer.state.log_history[0])


def test_learning_rate_zero_changes_nothing(tmp_path):
    trainer = toy.make_trainer(tmp_path, toy.with_sft_adapter(), learning_rate=0.0, total_episodes=24, logging_steps=1)
    before = toy.snapshot(trainer.model)
    trainer.train()
    assert all(torch.equal(p, before[n]) for n, p in toy.snapshot(trainer.model).items())
    assert toy.logged(trainer, "kl") == pytest.approx([0.0] * 3, abs=1e-6)
    assert toy.logged(trainer, "ratio") == pytest.approx([1.0] * 6, abs=1e-6)
    assert toy.logged(trainer, "clip_fraction/policy") == [0.0] * 6


def test_saved_policy_is_an_ordinary_lora_adapter(tmp_path):
    toy.build_model().save_pretrained(tmp_path / "base")
    base = toy.LlamaForCausalLM.from_pretrained(tmp_path / "base")
    trainer = toy.make_trainer(tmp_path / "run", base)
    trainer.train()
    trainer.save_model(str(tmp_path / "out"))
    trainer.model.eval()
    ids = torch.tensor([[C, D, A, B]])
    loaded = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "out")
    expected = trainer.model(input_ids=ids).logits
    torch.testing.assert_close(loaded(input_ids=ids).logits, expected)
    by_hand = PeftModel.from_pretrained(toy.build_model(), tmp_path / "out")
    torch.testing.assert_close(by_hand(input_ids=ids).logits, expected)
    with use_adapter(trainer.model, None):
        assert (trainer.model(input_ids=ids).logits - expected).abs().max() > 1e-4
    assert not [p for p in (tmp_path / "out").rglob("*") if p.suffix in (".bin", ".pt", ".pth")]


# ---------------------------------------------------------------- tokens that the policy did not write
def tool_rollout(prompts, trainer):
    """Three rows; in the first the two middle tokens are a tool's."""
    ids = [[A, D, D, B, EOS], [C, C, EOS], [A, B, D, D, D]]
    mask = [[1, 0, 0, 1, 1], [1, 1, 1], [1, 1, 0, 0, 0]]
    prompt_ids = trainer.processing_class(text=prompts)["input_ids"]
    return {"prompt_ids": prompt_ids, "completion_ids": ids, "logprobs": None, "env_mask": mask}


def tool_trainer(tmp_path, **config):
    trainer = toy.make_trainer(
        tmp_path,
        toy.with_sft_adapter(),
        reward=lambda prompts, completions, **columns: [1.0, 2.0, 3.0],
        rollout_func=tool_rollout,
        whiten_advantages=False,
        gamma=0.9,
        lam=0.5,
        **config,
    )
    toy.randomize(trainer.model, CRITIC, 3)
    torch.nn.init.normal_(trainer.critic.head.weight)
    toy.randomize(trainer.model, POLICY, 9)
    return trainer


def test_tool_tokens_carry_nothing_and_gae_passes_over_them(tmp_path):
    trainer = tool_trainer(tmp_path, kl_coef=0.5)
    batch = toy.sample(trainer, ["c", "d", "e"])
    assert batch["loss_mask"].tolist() == [[1, 0, 0, 1, 1], [1, 1, 1, 0, 0], [1, 1, 0, 0, 0]]
    # by hand, over the policy's own tokens of each row as if the others were not there
    old, ref = trainer._old_and_ref_logprobs(batch)
    values = trainer._values(batch)[0]
    for row, columns in enumerate([[0, 3, 4], [0, 1, 2], [0, 1]]):
        rewards = [-0.5 * (old[row, t] - ref[row, t]).item() for t in columns]
        rewards[-1] += row + 1.0
        v = [values[row, t].item() for t in columns] + [0.0]
        advantage, advantages = 0.0, []
        for t in reversed(range(len(columns))):
            advantage = rewards[t] + 0.9 * v[t + 1] - v[t] + 0.45 * advantage
            advantages.insert(0, advantage)
        assert batch["advantages"][row, columns].tolist() == pytest.approx(advantages, abs=1e-5)
        expected = [a + x for a, x in zip(advantages, v, strict=False)]
        assert batch["returns"][row, columns].tolist() == pytest.approx(expected, abs=1e-5)
    outside = batch["loss_mask"] == 0
    assert (batch["advantages"][outside] == 0).all() and (batch["returns"][outside] == 0).all()
    notes = trainer.journal.read()
    assert notes["length/mean"] == pytest.approx(8 / 3) and notes["length/max"] == 3.0
    kl = ((old - ref) * batch["loss_mask"]).sum(1).mean().item()
    assert notes["kl"] == pytest.approx(kl, rel=1e-5)
    assert trainer.journal.tokens == 8


def test_tool_tokens_have_no_gradient(tmp_path):
    trainer = tool_trainer(tmp_path)
    batch = toy.sample(trainer, ["c", "d", "e"])
    loss = toy.loss_of(trainer, batch)
    # whatever stands there as advantage, return or old value: the loss is the same
    junk = {}
    for name in ("advantages", "returns", "old_values", "old_per_token_logps"):
        junk[name] = torch.where(batch["loss_mask"] == 1, batch[name], 5.0)
    torch.testing.assert_close(toy.loss_of(trainer, batch | junk), loss)


# ---------------------------------------------------------------- rewards with nothing to say
def test_rows_without_a_score_teach_nothing(tmp_path):
    def some(prompts, completions, **columns):
        return [None if p in ("c", "cd") else 1.0 for p in prompts]

    trainer = toy.make_trainer(tmp_path, reward=some, rollout_func=toy.canned(ANSWERS), missing_eos_penalty=1.0)
    batch = toy.sample(trainer)
    assert (batch["loss_mask"][:2] == 0).all() and (batch["advantages"][:2] == 0).all()
    assert batch["loss_mask"][2:].sum() == 22
    assert trainer.journal.read()["score"] == 1.0


def test_two_rewards_are_weighed_and_a_silent_one_left_out(tmp_path):
    def one(prompts, completions, **columns):
        return [1.0] * len(prompts)

    def two(prompts, completions, **columns):
        return [None if p == "c" else 3.0 for p in prompts]

    trainer = toy.make_trainer(
        tmp_path,
        reward=[one, two],
        rollout_func=toy.canned(ANSWERS),
        reward_weights=[2.0, 0.5],
        whiten_advantages=False,
        lam=1.0,
    )
    batch = toy.sample(trainer)
    assert batch["returns"][:, 0].tolist() == [2.0] + [3.5] * 7
    notes = trainer.journal.read()
    assert (notes["score/one"], notes["score/two"], notes["score"]) == (1.0, 3.0, pytest.approx(26.5 / 8))


def test_no_score_at_all_is_an_error_that_says_so(tmp_path):
    trainer = toy.make_trainer(tmp_path, reward=lambda prompts, completions, **columns: [None] * len(prompts))
    with pytest.raises(UserError, match="No reward scored any completion"):
        toy.sample(trainer)
    trainer.model.eval()  # in evaluation a batch may be without
    trainer._generate_and_score_completions([{"prompt": "c"}])


def test_an_infinite_score_is_an_error_that_names_the_reward(tmp_path):
    def lucky(prompts, completions, **columns):
        return [float("inf")] + [1.0] * (len(prompts) - 1)

    trainer = toy.make_trainer(tmp_path, reward=[toy.letters, lucky])
    with pytest.raises(UserError, match="lucky returned an infinite score"):
        toy.sample(trainer)


def test_rewards_read_columns_and_the_sampled_ids(tmp_path):
    seen = []

    def reward(prompts, completions, completion_ids, fact, **columns):
        seen.append((prompts, completions, completion_ids, fact))
        return [0.0] * len(prompts)

    trainer = toy.make_trainer(tmp_path, reward=reward, rollout_func=toy.canned(ANSWERS))
    toy.sample(trainer, ["c", "ede"], fact="x")
    assert seen == [(["c", "ede"], ["a", ""], [ANSWERS["c"], ANSWERS["ede"]], ["x", "x"])]


# ---------------------------------------------------------------- what does not fit is said
def test_fewer_prompts_than_a_rollout(tmp_path):
    with pytest.raises(UserError, match="train_dataset has 3 prompts, but one rollout takes 8"):
        toy.make_trainer(tmp_path, prompts=["a", "b", "c"])
    trainer = toy.make_trainer(tmp_path, prompts=["a", "b", "c", "d"], num_generations=2)
    trainer.train()
    assert trainer.state.global_step == 2


def test_two_adapters_are_one_too_many(tmp_path):
    with pytest.raises(UserError, match="second"):
        trainer_of(tmp_path, toy.with_sft_adapter(), peft_config=toy.lora())
    model = toy.with_sft_adapter()
    model.add_adapter("other", toy.lora())
    with pytest.raises(UserError, match="default, other"):
        toy.make_trainer(tmp_path, model)


def trainer_of(tmp_path, model, **kwargs):
    from pipeline.ppo import PPOConfig, PPOTrainer

    args = PPOConfig(str(tmp_path), use_cpu=True, bf16=False, report_to="none", per_device_train_batch_size=4)
    return PPOTrainer(
        model,
        toy.letters,
        args,
        Dataset.from_dict({"prompt": PROMPTS}),
        processing_class=toy.tokenizer(),
        **kwargs,
    )


@pytest.mark.parametrize(
    "config",
    [
        LoraConfig(r=2, target_modules=["q_proj"], trainable_token_indices=[3], task_type="CAUSAL_LM"),
        LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"], task_type="CAUSAL_LM"),
    ],
    ids=["trainable tokens", "modules_to_save"],
)
def test_an_adapter_that_would_be_half_trained(tmp_path, config):
    with pytest.raises(UserError, match="which changes the base itself"):
        trainer_of(tmp_path, toy.build_model(), peft_config=config)


def test_an_adapter_folder_as_model(tmp_path):
    toy.with_sft_adapter().save_pretrained(tmp_path / "sft")
    with pytest.raises(UserError, match="LoRA adapter; load it first"):
        trainer_of(tmp_path, str(tmp_path / "sft"))


def test_a_model_by_its_folder(tmp_path):
    toy.build_model().save_pretrained(tmp_path / "base")
    trainer = trainer_of(tmp_path / "run", str(tmp_path / "base"))
    assert trainer.reference_adapter is None and list(trainer.model.peft_config) == [POLICY, CRITIC]
    assert trainer.model.peft_config[POLICY].r == 16


@pytest.mark.parametrize("broken", ["policy", "critic", "state"])
def test_resuming_from_what_is_no_checkpoint(tmp_path, broken):
    trainer = toy.make_trainer(tmp_path, save_strategy="steps", save_steps=2)
    trainer.train()
    checkpoint = tmp_path / "checkpoint-2"
    assert json.loads((checkpoint / "rollout_0.json").read_text())["journal"]["episodes"] == 8
    {
        "policy": (checkpoint / "adapter_model.safetensors").unlink,
        "critic": lambda: (checkpoint / CRITIC).rename(tmp_path / "elsewhere"),
        "state": (checkpoint / "ppo_state.json").unlink,
    }[broken]()
    with pytest.raises(UserError, match="checkpoint"):
        toy.make_trainer(tmp_path / "again").train(resume_from_checkpoint=str(checkpoint))


def test_best_model_at_the_end_is_policy_and_critic_of_one_checkpoint(tmp_path):
    class Worse(TrainerCallback):
        """The first evaluation is the best."""

        def on_evaluate(self, args, state, control, metrics, **kwargs):
            metrics["eval_loss"] = float(state.global_step)

    trainer = toy.make_trainer(
        tmp_path,
        total_episodes=16,
        save_strategy="steps",
        save_steps=2,
        eval_strategy="steps",
        eval_steps=2,
        load_best_model_at_end=True,
        callbacks=[Worse()],
        eval_dataset=Dataset.from_dict({"prompt": ["b"] * 4}),
    )
    trainer.train()
    assert trainer.state.best_model_checkpoint.endswith("checkpoint-2")
    best = toy.make_trainer(tmp_path / "best")
    best._load_from_checkpoint(tmp_path / "checkpoint-2")
    for name, expected in toy.learned(best).items():
        assert torch.equal(trainer.model.get_parameter(name), expected), name
        assert trainer.model.get_parameter(name).requires_grad
