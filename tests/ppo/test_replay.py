"""Replay: which epochs go over which rollout, how their tokens are weighed, and that a checkpoint keeps it all."""

import math as m

import pytest
import torch
import toy

from pipeline.models.adapters import POLICY, use_adapter
from pipeline.ppo import math
from pipeline.ppo.replay import CAP


def test_truncated_weight_by_hand():
    # π/π_sampled = .5/.25 = 2, .5/.1 = 5 -> 3, .1/.5 = .2
    now = torch.tensor([[0.5, 0.5, 0.1]]).log()
    sampled = torch.tensor([[0.25, 0.1, 0.5]]).log()
    torch.testing.assert_close(math.truncated_weight(now, sampled, 3.0), torch.tensor([[2.0, 3.0, 0.2]]))


def record(trainer) -> list[list[dict]]:
    """What each micro-step trains on, update by update."""
    seen, plain = [], trainer._prepare_inputs

    def watch(rows):
        inputs = plain(rows)
        seen.append({k: v.clone() for k, v in inputs.items() if torch.is_tensor(v)})
        return inputs

    trainer._prepare_inputs = watch
    trainer.train()
    size = trainer.args.steps_per_generation * trainer.num_iterations
    return [seen[i : i + size] for i in range(0, len(seen), size)]


def rows(micro_batches) -> set[tuple]:
    return {tuple(row) for batch in micro_batches for row in toy.real(batch)}


def test_which_epoch_goes_over_which_rollout(tmp_path):
    trainer = toy.make_trainer(tmp_path, num_iterations=4, replay=2, total_episodes=32, learning_rate=1e-3)
    updates = record(trainer)
    steps = trainer.args.steps_per_generation
    passes = [[rows(update[p * steps : (p + 1) * steps]) for p in range(4)] for update in updates]
    new = [update[0] for update in passes]
    assert len(set(map(frozenset, new))) == 4  # every rollout is another one
    assert passes[0] == [new[0]] * 4  # there is no earlier one yet
    assert passes[1] == [new[1], new[1], new[0], new[1]]
    assert passes[2] == [new[2], new[2], new[1], new[0]]
    assert passes[3] == [new[3], new[3], new[2], new[1]]


def test_tokens_of_earlier_rollouts_are_weighed_and_judged_anew(tmp_path):
    trainer = toy.make_trainer(
        tmp_path, toy.with_sft_adapter(), num_iterations=2, replay=1, total_episodes=16, learning_rate=0.1,
        gradient_accumulation_steps=1, per_device_train_batch_size=8, whiten_advantages=False, gamma=0.9, lam=0.5,
    )  # fmt: skip
    updates = record(trainer)
    sampled, replayed = updates[0][0], updates[1][1]
    pairs = zip(toy.real_prompts(sampled), toy.real(sampled), strict=True)
    where = {(tuple(prompt), tuple(ids)): i for i, (prompt, ids) in enumerate(pairs)}
    assert rows([sampled]) == rows([replayed]) and len(where) == 8
    weights = []
    for row, ids in enumerate(toy.real(replayed)):
        prompt = toy.real_prompts(replayed)[row]
        first, n = where[tuple(prompt), tuple(ids)], len(ids)
        before, now = sampled["old_per_token_logps"][first, :n], replayed["old_per_token_logps"][row, :n]
        expected = [min(CAP, m.exp(x)) for x in (now - before).tolist()]
        assert replayed["importance_sampling_ratio"][row, :n].tolist() == pytest.approx(expected, rel=1e-5)
        weights += expected
        # GAE by hand on the values of now: R_t = A_t + V_t, score on the last token, KL at today's log-probabilities
        values = [*replayed["old_values"][row, :n].tolist(), 0.0]
        assert not torch.equal(sampled["old_values"][first, :n], replayed["old_values"][row, :n])
        text = trainer.processing_class.decode(ids, skip_special_tokens=True)
        with use_adapter(trainer.model, trainer.reference_adapter):
            ref = toy.hand_logprobs(trainer.model, prompt, ids)
        rewards = (-0.05 * (now.double() - ref)).tolist()
        rewards[-1] += toy.letters([""], [text])[0]
        advantage = 0.0
        for t in reversed(range(n)):
            advantage = rewards[t] + 0.9 * values[t + 1] - values[t] + 0.45 * advantage
            assert replayed["advantages"][row, t].item() == pytest.approx(advantage, abs=1e-4)
    assert min(weights) < 0.9 and max(weights) > 1.1  # the policy has moved in between
    assert toy.logged(trainer, "replay/weight") == [pytest.approx(sum(weights) / len(weights), rel=1e-5)]
    assert (replayed["importance_sampling_ratio"][replayed["loss_mask"] == 0] == 0).all()


def test_while_nothing_is_learnt_earlier_rollouts_weigh_1(tmp_path):
    trainer = toy.make_trainer(tmp_path, toy.with_sft_adapter(), replay=1, total_episodes=24, learning_rate=0.0)
    trainer.train()
    assert toy.logged(trainer, "replay/weight") == pytest.approx([1.0, 1.0], abs=1e-6)
    assert toy.logged(trainer, "ratio") == pytest.approx([1.0] * 3, abs=1e-6)


@pytest.mark.parametrize("step", [3, 4, 7])
def test_resuming_anywhere_gives_the_same_bits(tmp_path, step):
    """Two optimizer steps an epoch, two epochs an update, the second of them over the rollout before."""
    settings = {"replay": 1, "total_episodes": 24, "num_mini_batches": 2, "gradient_accumulation_steps": 1}
    whole = toy.make_trainer(
        tmp_path / "a", toy.with_sft_adapter(), **settings, save_strategy="steps", save_steps=step
    )
    whole.train()
    again = toy.make_trainer(tmp_path / "b", toy.with_sft_adapter(), **settings)
    again.train(resume_from_checkpoint=str(tmp_path / "a" / f"checkpoint-{step}"))
    assert again.state.global_step == whole.state.global_step == 12
    expected = toy.learned(whole)
    assert any(POLICY in name for name in expected)
    assert all(torch.equal(p, expected[n]) for n, p in toy.learned(again).items())
