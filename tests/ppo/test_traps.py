"""One test for every trap that earlier PPO implementations fell into (TRL, OpenRLHF, verl, trlX, RL4LMs and others).

The tests stand here, in test_traps_rollout.py (16 to 27) and in test_traps_runs.py (13 and 28 to 33).

| trap | what went wrong | test |
|--|--|--|
| 1 | mini-batches that make no optimizer step | test_trap_01_steps_per_rollout |
| 2 | statistics divided by the number of mini-batches | test_trap_02_metrics_do_not_depend_on_mini_batches |
| 3 | max_grad_norm ignored | test_trap_03_max_grad_norm_bounds_the_step |
| 4 | the model's generation_config changes what is sampled | test_trap_04_hostile_generation_config |
| 5 | pad = eos: stopping is never learnt | test_trap_05_eos_is_learnt_when_it_is_also_the_pad |
| 6 | one end-of-text id of several | test_trap_06_every_eos_id_ends_a_completion |
| 7 | missing-EOS penalty on finished samples | test_trap_07_missing_eos_penalty_hits_what_was_cut |
| 8 | generation never stops at EOS by default | test_trap_08_generation_stops_at_eos |
| 9 | score on the first pad | test_trap_09_score_lands_on_the_last_token |
| 10 | values or masks off by one | test_trap_10_values_look_back_only |
| 11 | padding changes the loss | test_trap_11_padding_changes_neither_loss_nor_gradient |
| 12 | whitening over pads | test_trap_12_whitening_sees_real_tokens_only |
| 13 | whitening on each process by itself | test_trap_13_two_processes_whiten_together |
| 14 | mean per micro-batch | test_trap_14_gradient_does_not_depend_on_micro_batches |
| 15 | metrics diluted by pads | test_trap_15_metrics_do_not_depend_on_padding |
| 16 | KL over the prompt; KL controller | test_trap_16_kl_counts_completion_tokens_only |
| 17 | log-probabilities at another temperature | test_trap_17_logprobs_are_those_of_the_sampler |
| 18 | truncated sampling biases log-probabilities | test_trap_18_truncated_sampling_is_refused |
| 19 | rollouts decoded and encoded again | test_trap_19_training_ids_are_the_sampled_ids |
| 20 | left padding shifts positions | test_trap_20_left_padding_changes_nothing |
| 21 | reward model reads the wrong token | test_trap_21_reward_model_scores_alone_as_in_a_batch |
| 22 | EOS written into samples that had none | test_trap_22_no_token_that_was_not_sampled |
| 23 | greedy rollouts | test_trap_23_rollouts_are_sampled |
| 24 | dropout in one of two passes | test_trap_24_no_dropout_anywhere |
| 25 | the reference drifts, or is the raw base | test_trap_25_reference_is_the_start_and_stays |
| 26 | sign and estimator of the KL | test_trap_26_kl_estimators_agree_with_the_exact_kl |
| 27 | units of the learning-rate schedule | test_trap_27_schedule_counts_optimizer_steps |
| 28 | LoRA under DDP | test_trap_28_ranks_hold_the_same_weights |
| 29 | Trainer.__init__ bypassed: saving fails after DDP | test_trap_29_saving_after_a_two_process_run |
| 30 | checkpoints that lose state | test_trap_30_checkpoint_round_trip |
| 31 | hidden (B, T, V) tensors | test_trap_31_no_tensor_of_batch_times_tokens_times_vocabulary |
| 32 | settings without effect, reward whitening on | test_trap_32_every_setting_changes_behavior |
| 33 | group estimators with one completion | test_trap_33_group_estimators_are_refused |
"""

import itertools
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import toy
from toy import ANSWERS, EOS, PROMPTS, A, B, C, D

from pipeline.models.adapters import CRITIC

TIME = {"tokens_per_second", "time/generation", "time/scoring", "time/forward", "time/training"}


def close(a, b, **tolerance):
    torch.testing.assert_close(a, b, **tolerance)


def metrics_of(trainer) -> dict:
    """The first log, without what is a matter of time, of the optimizer step alone, or of the length of the run."""
    row = trainer.state.log_history[0]
    return {k: v for k, v in row.items() if k not in TIME | {"loss", "grad_norm", "epoch", "step"}}


def test_every_trap_has_its_row_and_its_test():
    rows = re.findall(r"^\| (\d+) \|.*\| (test_trap_(\d+)_\w+) \|$", __doc__, re.MULTILINE)
    assert [int(number) for number, _, _ in rows] == list(range(1, 34))
    files = sorted(Path(__file__).parent.glob("test_traps*.py"))
    tests = re.findall(r"^def (test_trap_\d+_\w+)\(", "".join(path.read_text("utf-8") for path in files), re.MULTILINE)
    for number, name, in_name in rows:
        assert int(number) == int(in_name) and name in tests, name
    assert len(files) == 3 and len(tests) == 33


# ---------------------------------------------------------------- 1-3 steps
def test_trap_01_steps_per_rollout(tmp_path):
    rollouts = []

    def reward(prompts, completions, **columns):
        rollouts.append(len(prompts))
        return [0.5] * len(prompts)

    trainer = toy.make_trainer(
        tmp_path, reward=reward, per_device_train_batch_size=2, num_mini_batches=2, num_iterations=3, total_episodes=16
    )
    trainer.train()
    # 2 per device x 2 accumulated x 2 mini-batches = 8 completions a rollout; 3 epochs x 2 mini-batches = 6 steps each
    assert rollouts == [8, 8] and trainer.state.global_step == 12


def test_trap_02_metrics_do_not_depend_on_mini_batches(tmp_path):
    found = []
    for size, mini_batches in ((8, 1), (4, 2), (2, 4)):
        trainer = toy.make_trainer(
            tmp_path,
            toy.with_sft_adapter(),
            rollout_func=toy.canned(ANSWERS),
            learning_rate=0.0,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=1,
            num_mini_batches=mini_batches,
        )
        trainer.train()
        found.append(metrics_of(trainer))
    assert found[0]["ratio"] == pytest.approx(1, abs=1e-6) and found[0]["clip_fraction/policy"] == 0
    assert found[0] == pytest.approx(found[1], rel=1e-5, abs=1e-6)
    assert found[0] == pytest.approx(found[2], rel=1e-5, abs=1e-6)


def test_trap_03_max_grad_norm_bounds_the_step(tmp_path):
    moved = {}
    for norm in (1e-3, 1e-2):
        trainer = toy.make_trainer(
            tmp_path,
            rollout_func=toy.canned(ANSWERS),
            optim="sgd",
            learning_rate=1.0,
            num_iterations=1,
            max_grad_norm=norm,
        )
        before = toy.learned(trainer)
        trainer.train()
        assert toy.logged(trainer, "grad_norm")[0] > 0.1  # the norm before clipping is what is logged
        after = toy.learned(trainer)
        moved[norm] = math.sqrt(sum((after[n] - before[n]).double().square().sum().item() for n in before))
    # plain SGD: |step| = learning rate x clipped norm
    assert moved[1e-3] == pytest.approx(1e-3, rel=1e-3) and moved[1e-2] == pytest.approx(1e-2, rel=1e-3)


# ---------------------------------------------------------------- 4-8 stopping and what is sampled
def test_trap_04_hostile_generation_config(tmp_path):
    model = toy.build_model()
    for name, value in {
        "repetition_penalty": 1.8,
        "no_repeat_ngram_size": 2,
        "top_k": 2,
        "top_p": 0.5,
        "temperature": 0.3,
        "do_sample": False,
        "suppress_tokens": [A],
        "forced_eos_token_id": EOS,
        "min_new_tokens": 4,
    }.items():
        setattr(model.generation_config, name, value)
    trainer = toy.make_trainer(tmp_path, model, learning_rate=0.0, total_episodes=24, logging_steps=1)
    trainer.train()
    assert toy.logged(trainer, "kl") == [0.0] * 3
    assert toy.logged(trainer, "ratio") == pytest.approx([1.0] * 6, abs=1e-6)
    assert toy.logged(trainer, "ratio/max") == pytest.approx([1.0] * 6, abs=1e-6)
    # what the hostile settings forbid does happen: an a, a repeated bigram or an early end
    ids = toy.real(toy.sample(trainer, PROMPTS * 8))
    assert any(A in row for row in ids) and any(len(row) < 4 for row in ids)
    assert any(row[-1] != EOS for row in ids)


def test_trap_05_eos_is_learnt_when_it_is_also_the_pad(tmp_path):
    tokenizer = toy.tokenizer(pad_token="<eos>")
    answers = {"c<eos>d": [A, EOS], "e": [B, C, EOS], "d": [D, D, D, D, D, D]}
    trainer = toy.make_trainer(
        tmp_path, prompts=list(answers) * 3, tokenizer_=tokenizer, rollout_func=toy.canned(answers)
    )
    assert trainer._tokenizer.pad_token_id == EOS
    batch = toy.sample(trainer, list(answers))
    assert batch["loss_mask"].tolist() == [[1, 1, 0, 0, 0, 0], [1, 1, 1, 0, 0, 0], [1] * 6]
    # a real end-of-text token in the prompt (chat turns have them) is attended to; pads of short prompts are not
    assert toy.real_prompts(batch)[0] == [C, EOS, D] and batch["prompt_mask"].sum(1).tolist() == [3, 1, 1]
    # the end-of-text tokens alone move the policy
    last = torch.zeros_like(batch["loss_mask"])
    last[0, 1] = last[1, 2] = 1
    toy.loss_of(trainer, batch | {"loss_mask": last, "advantages": torch.ones_like(batch["advantages"])}).backward()
    norms = [p.grad.norm() for n, p in trainer.model.named_parameters() if "lora_B.default" in n]
    assert min(norms) > 1e-4
    assert trainer.journal.read()["finished"] == pytest.approx(2 / 3)


def test_trap_06_every_eos_id_ends_a_completion(tmp_path):
    model = toy.build_model()
    model.generation_config.eos_token_id = [EOS, toy.E]
    trainer = toy.make_trainer(tmp_path, model, rollout_func=toy.canned({"c": [A, EOS], "d": [A, toy.E], "e": [A, B]}))
    for prompt, finished in {"c": 1.0, "d": 1.0, "e": 0.0}.items():
        toy.sample(trainer, [prompt])
        assert trainer.journal.read()["finished"] == finished
    # and sampling stops at either
    model = toy.build_model()
    model.generation_config.eos_token_id = [EOS, toy.E]
    rows = toy.real(toy.sample(toy.make_trainer(tmp_path, model), PROMPTS * 4))
    assert {row[-1] for row in rows if len(row) < 6} == {EOS, toy.E}
    assert not any({EOS, toy.E} & set(row[:-1]) for row in rows)


def test_trap_07_missing_eos_penalty_hits_what_was_cut(tmp_path):
    trainer = toy.make_trainer(
        tmp_path,
        reward=lambda prompts, completions, **columns: [2.0] * len(prompts),
        rollout_func=toy.canned(ANSWERS),
        missing_eos_penalty=0.5,
        whiten_advantages=False,
        kl_coef=0.0,
        lam=1.0,
    )
    batch = toy.sample(trainer)
    cut = [ids[-1] != EOS for ids in ANSWERS.values()]
    assert sum(cut) == 2  # those that fill all six tokens without an end
    # V = 0, gamma = lambda = 1 and no KL: every token's return is the score with its penalty
    assert batch["returns"][:, 0].tolist() == [1.5 if c else 2.0 for c in cut]
    # what is reported as the score is what the rewards said
    trainer.model.train()
    assert trainer.journal.read()["score"] == 2.0


def test_trap_08_generation_stops_at_eos(tmp_path):
    rows = toy.real(toy.sample(toy.make_trainer(tmp_path), PROMPTS * 4))
    assert any(len(row) < 6 for row in rows) and all(EOS not in row[:-1] for row in rows)
    assert all(row[-1] == EOS for row in rows if len(row) < 6)


# ---------------------------------------------------------------- 9-15 masks, means, whitening
def test_trap_09_score_lands_on_the_last_token(tmp_path):
    scores = dict(zip(PROMPTS, [3.0, -1.0, 0.5, 2.0, 4.0, -2.0, 1.0, 7.0], strict=True))
    trainer = toy.make_trainer(
        tmp_path,
        reward=lambda prompts, completions, **columns: [scores[p] for p in prompts],
        rollout_func=toy.canned(ANSWERS),
        whiten_advantages=False,
        gamma=0.9,
        lam=0.5,
    )
    batch = toy.sample(trainer)  # fresh adapter: KL 0; fresh critic: V 0
    for row, (prompt, ids) in enumerate(ANSWERS.items()):
        # A_t = (gamma lambda)^(steps to the last token) x score, also for a completion that fills all columns
        expected = [scores[prompt] * 0.45 ** (len(ids) - 1 - t) for t in range(len(ids))]
        assert batch["advantages"][row].tolist() == pytest.approx(expected + [0.0] * (6 - len(ids)), abs=1e-6)


def test_trap_10_values_look_back_only(tmp_path):
    trainer = toy.make_trainer(tmp_path)
    toy.randomize(trainer.model, CRITIC, 3)
    torch.nn.init.normal_(trainer.critic.head.weight)
    ids, mask = torch.tensor([[C, D, A, B, C, D], [D, D, B, B, A, C]]), torch.ones(2, 6, dtype=torch.long)
    values = trainer.critic.values(ids, mask, 4)  # two prompt tokens, four of the completion
    for t in range(4):
        changed = ids.clone()
        changed[:, 2 + t] = toy.E
        other = trainer.critic.values(changed, mask, 4)
        # V_t and those before it stand before token t; every later one has seen it
        close(other[:, : t + 1], values[:, : t + 1])
        assert (other[:, t + 1 :] - values[:, t + 1 :]).abs().gt(1e-5).all()
    changed = ids.clone()
    changed[:, 1] = toy.E
    assert (trainer.critic.values(changed, mask, 4)[:, 0] - values[:, 0]).abs().gt(1e-5).all()  # the prompt counts
    close(trainer.critic.values(ids.flip(0), mask, 4), values.flip(0))


def padded(batch: dict, left: int, right: int, token: int) -> dict:
    """The same rollout with more padding: `left` columns before the prompts, `right` after the completions."""

    def pad(x, before, after, value):
        return torch.nn.functional.pad(x, (before, after), value=value)

    more = {name: pad(batch[name], left, 0, v) for name, v in {"prompt_ids": token, "prompt_mask": 0}.items()}
    more |= {
        name: pad(batch[name], 0, right, v) for name, v in {"completion_ids": token, "completion_mask": 0}.items()
    }
    # 7 where nothing counts: a single look at it would show
    floats = ("old_per_token_logps", "old_values", "advantages", "returns")
    more |= {name: pad(batch[name], 0, right, 7.0) for name in floats}
    return batch | more | {"loss_mask": pad(batch["loss_mask"], 0, right, 0)}


def gradients(trainer, batch) -> dict:
    toy.loss_of(trainer, batch).backward()
    return {n: p.grad.clone() for n, p in trainer.model.named_parameters() if p.requires_grad}


def test_trap_11_padding_changes_neither_loss_nor_gradient(tmp_path):
    trainer = toy.make_trainer(tmp_path, toy.with_sft_adapter(), rollout_func=toy.canned(ANSWERS))
    torch.nn.init.normal_(trainer.critic.head.weight)
    toy.randomize(trainer.model, CRITIC, 3)
    batch = toy.sample(trainer)
    more = padded(batch, left=3, right=2, token=toy.D)
    more["completion_ids"] = torch.where(more["completion_mask"] == 1, more["completion_ids"], toy.E)
    close(toy.loss_of(trainer, more), toy.loss_of(trainer, batch))
    expected = gradients(trainer, batch)
    assert max(g.norm() for g in expected.values()) > 1e-3
    for name, gradient in gradients(trainer, more).items():
        close(gradient, expected[name], msg=name)


def test_trap_12_whitening_sees_real_tokens_only(tmp_path):
    plain, whitened = (
        toy.sample(
            toy.make_trainer(
                tmp_path, toy.with_sft_adapter(), rollout_func=toy.canned(ANSWERS), whiten_advantages=whiten
            )
        )
        for whiten in (False, True)
    )
    tokens = np.array(list(itertools.chain(*toy.real(plain, "advantages"))), dtype=np.float64)
    assert len(tokens) == sum(map(len, ANSWERS.values())) == 30
    expected = (tokens - tokens.mean()) / np.sqrt(tokens.var() + 1e-8)
    np.testing.assert_allclose(list(itertools.chain(*toy.real(whitened, "advantages"))), expected, atol=1e-5)
    assert (whitened["advantages"][whitened["completion_mask"] == 0] == 0).all()


def test_trap_14_gradient_does_not_depend_on_micro_batches(tmp_path):
    found = []
    for size, accumulation in ((8, 1), (4, 2), (1, 8)):
        trainer = toy.make_trainer(
            tmp_path,
            rollout_func=toy.canned(ANSWERS),
            optim="sgd",
            learning_rate=1.0,
            num_iterations=1,
            max_grad_norm=0.0,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulation,
        )
        before = toy.learned(trainer)
        trainer.train()
        found.append({name: after - before[name] for name, after in toy.learned(trainer).items()})
    assert max(step.norm() for step in found[0].values()) > 1e-2
    for other, name in itertools.product(found[1:], found[0]):
        close(other[name], found[0][name], atol=1e-6, rtol=1e-4)


def test_trap_15_metrics_do_not_depend_on_padding(tmp_path):
    found = []
    for multiple in (None, 16):
        trainer = toy.make_trainer(
            tmp_path,
            toy.with_sft_adapter(),
            rollout_func=toy.canned(ANSWERS),
            pad_to_multiple_of=multiple,
            num_iterations=1,
        )
        assert toy.sample(trainer)["completion_ids"].shape[1] == (multiple or 6)
        trainer.journal.read()
        trainer.train()
        found.append(metrics_of(trainer))
    assert found[0] == pytest.approx(found[1], rel=1e-4, abs=1e-6)
    # entropy by hand: mean over the 30 real tokens
    model, total = toy.with_sft_adapter(), 0.0
    for prompt, ids in ANSWERS.items():
        whole = toy.tokenizer()(prompt)["input_ids"] + ids
        logits = model(input_ids=torch.tensor([whole])).logits[0, -len(ids) - 1 : -1].double()
        total += torch.distributions.Categorical(logits=logits).entropy().sum().item()
    assert found[0]["entropy"] == pytest.approx(total / 30, rel=1e-5)
