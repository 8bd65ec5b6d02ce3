"""Traps 16 to 27: log-probabilities, KL, what is sampled, the reference, the schedule. The table: test_traps.py."""

import pytest
import torch
import toy
from toy import ANSWERS, EOS, PROMPTS, A, B, C, D
from transformers import LlamaForSequenceClassification, TrainerCallback

from pipeline.errors import UserError
from pipeline.models.adapters import CRITIC, POLICY, REFERENCE, use_adapter
from pipeline.ppo import PPOConfig
from rewards import build_rewards


def close(a, b, **tolerance):
    torch.testing.assert_close(a, b, **tolerance)


# ---------------------------------------------------------------- 16-20 log-probabilities and KL
def hand_kl(trainer, batch) -> list[float]:
    """Sum over the completion of log pi - log pi_ref, one row at a time, unpadded."""
    found = []
    for prompt, ids in zip(toy.real_prompts(batch), toy.real(batch), strict=True):
        policy = toy.hand_logprobs(trainer.model, prompt, ids)
        with use_adapter(trainer.model, trainer.reference_adapter):
            found.append((policy - toy.hand_logprobs(trainer.model, prompt, ids)).sum().item())
    return found


def test_trap_16_kl_counts_completion_tokens_only(tmp_path):
    trainer = toy.make_trainer(tmp_path, toy.with_sft_adapter(), rollout_func=toy.canned(ANSWERS), kl_coef=0.3)
    toy.randomize(trainer.model, POLICY, 9)  # as if trained
    batch = toy.sample(trainer)
    expected = sum(hand_kl(trainer, batch)) / 8
    assert abs(expected) > 0.05 and trainer.journal.read()["kl"] == pytest.approx(expected, rel=1e-4)
    # and the prompts' own tokens do differ between policy and reference
    policy = toy.hand_logprobs(trainer.model, [D], [C, toy.E, C])
    with use_adapter(trainer.model, REFERENCE):
        assert (policy - toy.hand_logprobs(trainer.model, [D], [C, toy.E, C])).abs().min() > 1e-3
    # the controller: 8 episodes, horizon 16, so the coefficient moves by the clipped error (at most .2) x 8/16
    for kl_target, factor in ((1e-6, 1.1), (1e6, 0.9), (expected / 1.1, 1.05)):
        if kl_target > 0:
            trainer = toy.make_trainer(
                tmp_path,
                toy.with_sft_adapter(),
                rollout_func=toy.canned(ANSWERS),
                kl_coef=0.3,
                kl_target=kl_target,
                kl_horizon=16,
            )
            toy.randomize(trainer.model, POLICY, 9)
            toy.sample(trainer)
            assert trainer.kl_coef == pytest.approx(0.3 * factor, rel=1e-4)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
def test_trap_17_logprobs_are_those_of_the_sampler(tmp_path, temperature):
    trainer = toy.make_trainer(
        tmp_path,
        max_completion_length=1,
        temperature=temperature,
        per_device_train_batch_size=1000,
        prompts=["cd"] * 2000,
    )
    batch = toy.sample(trainer, ["cd"] * 4000)
    exact = torch.stack([toy.hand_logprobs(trainer.model, [C, D], [token], temperature)[0] for token in range(9)])
    close(batch["old_per_token_logps"][:, 0].double(), exact[batch["completion_ids"][:, 0]], atol=1e-5, rtol=1e-5)
    # how often each token was sampled agrees with its probability within 4.5 standard errors
    p = exact.exp()
    share = torch.bincount(batch["completion_ids"][:, 0], minlength=9) / 4000
    assert ((share - p).abs() < 4.5 * (p * (1 - p) / 4000).sqrt() + 1e-9).all()


@pytest.mark.parametrize(
    "setting",
    [{"top_k": 50}, {"top_p": 0.9}, {"min_p": 0.1}, {"repetition_penalty": 1.05}]
    + [{"generation_kwargs": {name: 1}} for name in ("top_k", "typical_p", "no_repeat_ngram_size", "do_sample")],
)
def test_trap_18_truncated_sampling_is_refused(tmp_path, setting):
    name = list(setting.get("generation_kwargs") or setting)[0]
    with pytest.raises(UserError, match=name):
        PPOConfig(str(tmp_path), use_cpu=True, bf16=False, **setting)


def spy_on_generate(trainer) -> list:
    outputs, generate = [], trainer.model.generate

    def spy(*args, **kwargs):
        outputs.append((kwargs["input_ids"].shape[1], generate(*args, **kwargs)))
        return outputs[-1][1]

    trainer.model.generate = spy
    return outputs


def test_trap_19_training_ids_are_the_sampled_ids(tmp_path):
    trainer = toy.make_trainer(tmp_path, max_completion_length=12)
    outputs = spy_on_generate(trainer)
    rows = toy.real(toy.sample(trainer, PROMPTS * 8))
    [(width, sampled)] = outputs
    for row, whole in zip(rows, sampled.tolist(), strict=True):
        assert row == whole[width : width + len(row)]
    again = [toy.tokenizer()(toy.tokenizer().decode(row))["input_ids"] for row in rows]
    assert any([A, B] == row[i : i + 2] for row in rows for i in range(11))  # a tokenization that no tokenizer writes
    assert again != rows


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_trap_20_left_padding_changes_nothing(tmp_path, family):
    model = toy.build_gpt2() if family == "gpt2" else toy.build_model()
    trainer = toy.make_trainer(tmp_path, toy.with_sft_adapter(model), rollout_func=toy.canned(ANSWERS))
    torch.nn.init.normal_(trainer.critic.head.weight)
    toy.randomize(trainer.model, POLICY, 9)
    batch = toy.sample(trainer)
    old, ref = trainer._old_and_ref_logprobs(batch)
    values = trainer._values(batch)[0]
    for row, (prompt, ids) in enumerate(ANSWERS.items()):
        prompt_ids = toy.tokenizer()(prompt)["input_ids"]
        by_hand = toy.hand_logprobs(trainer.model, prompt_ids, ids)
        close(old[row, : len(ids)].double(), by_hand, atol=1e-5, rtol=1e-5)
        with use_adapter(trainer.model, REFERENCE):
            by_hand = toy.hand_logprobs(trainer.model, prompt_ids, ids)
        close(ref[row, : len(ids)].double(), by_hand, atol=1e-5, rtol=1e-5)
        alone = torch.tensor([prompt_ids + ids])
        with use_adapter(trainer.model, CRITIC), torch.no_grad():
            hidden = trainer.model.get_base_model().base_model(alone).last_hidden_state[0, -len(ids) - 1 : -1]
        by_hand = hidden @ trainer.critic.head.weight[0] + trainer.critic.head.bias
        close(values[row, : len(ids)], by_hand.detach(), atol=1e-5, rtol=1e-5)


# ---------------------------------------------------------------- 21-24 rewards and sampling
def test_trap_21_reward_model_scores_alone_as_in_a_batch(tmp_path):
    torch.manual_seed(0)
    config = toy.build_model().config
    config.num_labels, config.pad_token_id = 1, toy.PAD
    model = LlamaForSequenceClassification(config).eval()
    torch.nn.init.normal_(model.score.weight)
    model.save_pretrained(tmp_path)
    toy.tokenizer().save_pretrained(tmp_path)
    [(reward, _)] = build_rewards([{"name": "learned", "path": str(tmp_path)}])
    prompts, completions = ["c", "dedc", "ee"], ["ad", "b", "cabde"]
    together = reward(prompts=prompts, completions=completions)
    for prompt, completion, score in zip(prompts, completions, together, strict=True):
        assert reward(prompts=[prompt], completions=[completion]) == pytest.approx([score], abs=1e-5)
        ids = torch.tensor([toy.tokenizer()(prompt + completion)["input_ids"] + [EOS]])
        hidden = model.model(input_ids=ids).last_hidden_state[0, -1]  # the last real token: end-of-text
        assert score == pytest.approx((hidden @ model.score.weight[0]).item(), abs=1e-5)
    chosen, rejected = reward(prompts=["c", "c"], completions=["ad", "da"])
    assert abs(chosen - rejected) > 1e-3


def test_trap_22_no_token_that_was_not_sampled(tmp_path):
    trainer = toy.make_trainer(tmp_path, max_completion_length=3)
    outputs = spy_on_generate(trainer)
    batch = toy.sample(trainer, PROMPTS * 4)
    [(width, sampled)] = outputs
    sampled, mask = sampled[:, width:], batch["loss_mask"].bool()
    assert torch.equal(batch["completion_ids"][mask], sampled[mask])
    cut = [row for row in toy.real(batch) if EOS not in row]
    assert cut and all(len(row) == 3 for row in cut)


def test_trap_23_rollouts_are_sampled(tmp_path):
    model = toy.build_model()
    model.generation_config.do_sample = False  # as DeepSpeed-Chat sets it for Llama
    rows = toy.real(toy.sample(toy.make_trainer(tmp_path, model), ["c"] * 16))
    assert len({tuple(row) for row in rows}) > 8
    by_seed = [toy.real(toy.sample(toy.make_trainer(tmp_path, toy.build_model(), seed=seed))) for seed in (1, 2, 1)]
    assert by_seed[0] != by_seed[1] and by_seed[0] == by_seed[2]


def test_trap_24_no_dropout_anywhere(tmp_path):
    # in the adapters (modules) and in the attention (a plain number in each layer)
    model = toy.with_sft_adapter(toy.build_model(attention_dropout=0.5), lora_dropout=0.5)
    model.train()
    ids = torch.tensor([[C, D, A]])
    assert not torch.equal(model(input_ids=ids).logits, model(input_ids=ids).logits)  # it does drop before
    trainer = toy.make_trainer(tmp_path, model, learning_rate=0.0, logging_steps=1)
    trainer.train()
    assert toy.logged(trainer, "ratio") == pytest.approx([1.0, 1.0], abs=1e-6)
    assert toy.logged(trainer, "ratio/max") == pytest.approx([1.0, 1.0], abs=1e-5)
    assert toy.logged(trainer, "kl") == pytest.approx([0.0], abs=1e-6)
    with pytest.raises(UserError, match="disable_dropout"):
        PPOConfig(str(tmp_path), use_cpu=True, bf16=False, disable_dropout=False)


# ---------------------------------------------------------------- 25-27 reference, KL, schedule
def test_trap_25_reference_is_the_start_and_stays(tmp_path, monkeypatch):
    start = toy.with_sft_adapter()
    by_hand = {
        prompt: toy.hand_logprobs(start, toy.tokenizer()(prompt)["input_ids"], ids) for prompt, ids in ANSWERS.items()
    }
    trainer = toy.make_trainer(tmp_path, start, rollout_func=toy.canned(ANSWERS), total_episodes=24)
    batch = toy.sample(trainer)
    assert trainer.journal.read()["kl"] == pytest.approx(0, abs=1e-6)
    sampled = batch.pop("old_per_token_logps")
    before = trainer._old_and_ref_logprobs(batch)[1]
    close(before, sampled, atol=1e-6, rtol=1e-6)
    for row, (prompt, ids) in enumerate(ANSWERS.items()):  # the SFT model, not the raw base
        close(before[row, : len(ids)].double(), by_hand[prompt], atol=1e-5, rtol=1e-5)
    frozen = {n: p for n, p in toy.snapshot(trainer.model).items() if REFERENCE in n.split(".")}
    trainer.train()
    assert frozen and all(torch.equal(p, trainer.model.get_parameter(n)) for n, p in frozen.items())
    old, after = trainer._old_and_ref_logprobs(batch)
    assert torch.equal(before, after)
    assert (old - before).abs().max() > 1e-3  # while the policy has left
    # FSDP 1 takes a layer and its adapter as one, so the reference's can't be reached: refused in a sentence
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")  # as `accelerate launch` does
    monkeypatch.setenv("FSDP_VERSION", "1")
    with pytest.raises(UserError, match="FSDP"):
        toy.make_trainer(tmp_path)


def test_trap_26_kl_estimators_agree_with_the_exact_kl(tmp_path):
    trainer = toy.make_trainer(
        tmp_path,
        toy.with_sft_adapter(),
        max_completion_length=1,
        per_device_train_batch_size=1000,
        prompts=["c"] * 2000,
    )
    toy.randomize(trainer.model, POLICY, 9)
    p = torch.stack([toy.hand_logprobs(trainer.model, [C], [token])[0] for token in range(9)])
    with use_adapter(trainer.model, REFERENCE):
        q = torch.stack([toy.hand_logprobs(trainer.model, [C], [token])[0] for token in range(9)])
    exact, d = (p.exp() * (p - q)).sum(), p - q
    estimators = {"k1": d, "k2": d**2 / 2, "k3": (-d).exp() - 1 + d}
    assert exact > 0.02
    for name, each in estimators.items():
        trainer.args.kl_estimator = name
        batch = toy.sample(trainer, ["c"] * 3000)
        mean = trainer.journal.read()["kl"]
        # logged is what is penalized: exactly the mean of this estimator over the sampled tokens
        assert mean == pytest.approx(each[batch["completion_ids"][:, 0]].mean().item(), rel=1e-4, abs=1e-6)
        expected = (p.exp() * each).sum()
        error = ((p.exp() * (each - expected) ** 2).sum() / 3000).sqrt()
        assert abs(mean - expected) < 4.5 * error
        if name != "k2":  # k1 and k3 are unbiased
            assert expected == pytest.approx(exact.item(), abs=1e-9)
        # with reward 0 the return of the one token is -beta KL, so leaving the reference costs
        trainer.reward_funcs[0] = lambda prompts, completions, **columns: [0.0] * len(prompts)
        batch = toy.sample(trainer, ["c"] * 4)
        expected = -trainer.kl_coef * each[batch["completion_ids"][:, 0]]
        close(batch["returns"][:, 0].double(), expected, atol=1e-6, rtol=1e-4)
        trainer.journal.read()


class Rates(TrainerCallback):
    def __init__(self):
        self.seen = []

    def on_pre_optimizer_step(self, args, state, control, optimizer=None, **kwargs):
        self.seen.append([group["lr"] for group in optimizer.param_groups if group["params"]])


def test_trap_27_schedule_counts_optimizer_steps(tmp_path):
    rates = Rates()
    trainer = toy.make_trainer(
        tmp_path,
        lr_scheduler_type="linear",
        warmup_steps=2,
        learning_rate=0.8,
        critic_learning_rate=0.08,
        num_iterations=3,
        total_episodes=16,
        logging_steps=1,
        callbacks=[rates],
        max_grad_norm=1e-6,
    )
    trainer.train()
    # two rollouts x three steps; two steps up, four down to 0 after the last
    expected = [0, 0.4, 0.8, 0.6, 0.4, 0.2]
    assert toy.logged(trainer, "learning_rate") == pytest.approx(expected)
    policy, adapter, head = zip(*rates.seen, strict=True)
    assert policy == pytest.approx(expected)
    assert adapter == pytest.approx([x / 10 for x in expected]) and head == pytest.approx(adapter)
    groups = trainer.optimizer.param_groups
    ours = {id(p) for n, p in trainer.model.named_parameters() if CRITIC in n.split(".") or "value_head" in n}
    for group in groups:
        for parameter in group["params"]:
            assert group["initial_lr"] == (0.08 if id(parameter) in ours else 0.8)
    assert sum(len(g["params"]) for g in groups) == len(toy.learned(trainer))
