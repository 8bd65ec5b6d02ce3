"""What PPO logs in training and evaluation, against numbers by hand; the table of metrics against real runs."""

import math
import re

import pytest
import torch
import toy
from datasets import Dataset
from toy import ANSWERS
from vllm_stand_in import serving

from pipeline.ppo.config import PPOStage
from pipeline.watching.journal import repetition
from pipeline.watching.metrics import PPO as METRICS
from rewards import build_rewards

# what Trainer adds to the last log of a run
SUMMARY = {"train_runtime", "train_samples_per_second", "train_steps_per_second", "train_loss", "total_flos", "step"}


def test_metrics_table_and_real_runs_agree(tmp_path):
    with serving(tmp_path, toy.build_model()) as server:
        settings = {"total_episodes": 16, "replay": 1, "settings_": PPOStage, "vllm_server": server.url}
        trainer = toy.make_trainer(tmp_path, toy.with_sft_adapter(), **settings)
        trainer.train()
    rows = [row for row in trainer.state.log_history if "loss" in row]
    assert len(rows) == 2
    names = set().union(*rows) - SUMMARY
    documented = {re.escape(n).replace("<reward>", ".+") for n in METRICS}
    assert [n for n in names if not any(re.fullmatch(d, n) for d in documented)] == []
    assert [d for d in documented if not any(re.fullmatch(d, n) for n in names)] == []
    assert set(trainer.state.log_history[-1]) <= SUMMARY | {"epoch"}


def test_loss_is_the_sum_of_its_documented_parts(tmp_path):
    trainer = toy.make_trainer(
        tmp_path, toy.with_sft_adapter(), num_iterations=1, vf_coef=0.3, entropy_coef=0.2, learning_rate=0.0
    )
    trainer.train()
    row = trainer.state.log_history[0]
    assert row["loss"] == pytest.approx(row["loss/policy"] + 0.3 * row["loss/value"] - 0.2 * row["entropy"], abs=1e-5)


def test_values_of_the_log_by_hand(tmp_path):
    trainer = toy.make_trainer(
        tmp_path, rollout_func=toy.canned(ANSWERS), num_iterations=1, whiten_advantages=False, lam=1.0
    )
    trainer.train()
    row = trainer.state.log_history[0]
    lengths = [len(ids) for ids in ANSWERS.values()]
    # letters: the a's less the d's of a, ddacba, "", aba, ccdda, b, ababecdd, ea
    scores = [1, 0, 0, 2, -1, 0, 0, 1]
    assert row["score"] == row["score/letters"] == pytest.approx(3 / 8)
    assert row["score_std"] == pytest.approx(math.sqrt(7 / 8 - 9 / 64))  # mean of the squares less square of the mean
    # no trigram comes twice in them; the first step of a rollout has the policy that sampled it
    assert (row["repetition"], row["ratio/first"], row["skipped_steps"]) == (0, pytest.approx(0, abs=1e-6), 0)
    assert (row["length/mean"], row["length/min"], row["length/max"]) == (sum(lengths) / 8, 1, 6)
    assert row["finished"] == 6 / 8 and row["episodes"] == 8 and row["tokens"] == 30
    # V = 0 and KL = 0: every token's return is its score
    assert row["returns"] == pytest.approx(sum(s * n for s, n in zip(scores, lengths, strict=True)) / 30)
    assert row["loss/value"] == pytest.approx(sum(s * s * n for s, n in zip(scores, lengths, strict=True)) / 60)
    assert (row["values"], row["explained_variance"], row["kl_coef"]) == (0, 0, pytest.approx(0.05))
    assert (row["time/generation"] > 0) and row["tokens_per_second"] > 0


def test_the_share_of_repeated_trigrams_by_hand():
    ids = [[3, 3, 3, 3, 3, 0], [3, 4, 3, 4, 3, 4], [3, 4, 5, 6, 7, 8], [3, 3, 0, 0, 0, 0]]
    mask = [[1, 1, 1, 1, 1, 0], [1] * 6, [1] * 6, [1, 1, 0, 0, 0, 0]]
    # 333 three times; 343, 434, 343, 434; four different ones; none
    assert repetition(torch.tensor(ids), torch.tensor(mask)).tolist() == pytest.approx([2 / 3, 1 / 2, 0, 0])


def test_only_the_first_step_on_a_rollout_is_before_any_update(tmp_path):
    small = {"per_device_train_batch_size": 2, "num_mini_batches": 2}
    trainer = toy.make_trainer(tmp_path, total_episodes=16, logging_steps=1, **small)
    trainer.train()  # two updates of two epochs, two steps each
    found = ["ratio/first" in row for row in trainer.state.log_history if "loss" in row]
    assert found == [True, False, False, False] * 2


def test_logging_every_step_and_every_other_update(tmp_path):
    trainer = toy.make_trainer(tmp_path, total_episodes=32, logging_steps=1)
    trainer.train()
    assert len(toy.logged(trainer, "loss")) == 8 and len(toy.logged(trainer, "score")) == 4
    scores = toy.logged(trainer, "score")
    trainer = toy.make_trainer(tmp_path, total_episodes=32, logging_steps=4)
    trainer.train()
    # a log over two updates is the mean over their completions
    assert toy.logged(trainer, "score") == pytest.approx([sum(scores[:2]) / 2, sum(scores[2:]) / 2])


def test_metrics_of_evaluation_do_not_mix_with_those_of_training(tmp_path):
    def reward(prompts, completions, **columns):
        return [100.0 if p == "b" else 1.0 for p in prompts]

    trainer = toy.make_trainer(
        tmp_path,
        reward=reward,
        total_episodes=16,
        eval_strategy="steps",
        eval_steps=1,
        eval_dataset=Dataset.from_dict({"prompt": ["b"] * 4}),
    )
    trainer.train()
    assert toy.logged(trainer, "score") == [1.0, 1.0]
    assert toy.logged(trainer, "eval_score") == [100.0] * 4
    assert trainer.journal.episodes == 16  # those of evaluation are not trained on
    assert {"eval_kl", "eval_length/mean", "eval_loss", "eval_finished"} <= set(
        next(row for row in trainer.state.log_history if "eval_loss" in row)
    )


def test_evaluation_leaves_running_statistics_alone(tmp_path):
    [(reward, _)] = build_rewards([{"name": "toy:letters", "normalize": "running"}])
    trainer = toy.make_trainer(tmp_path, reward=[reward])
    toy.sample(trainer)
    before = reward.state_dict()
    trainer.model.eval()
    trainer._generate_and_score_completions([{"prompt": "c"}])
    assert reward.state_dict() == before and before["stats"]["count"] == 8


def test_a_metric_of_the_users_own_is_logged(tmp_path):
    def reward(prompts, completions, log_metric=None, **columns):
        log_metric("reward_hacking", 0.25)
        return [1.0] * len(prompts)

    trainer = toy.make_trainer(tmp_path, reward=reward)
    trainer.train()
    row = trainer.state.log_history[0]
    assert row["reward_hacking"] == 0.25 and "reward" not in row and "completions/mean_length" not in row


def test_completions_table_has_the_advantages_of_ppo(tmp_path):
    trainer = toy.make_trainer(tmp_path, rollout_func=toy.canned(ANSWERS), whiten_advantages=False, lam=1.0)
    toy.sample(trainer)
    assert list(trainer._logs["advantages"]) == pytest.approx([1, 0, 0, 2, -1, 0, 0, 1])
