"""Several rewards as one: normalised each by itself (GDPO), and what each had to do with the advantages."""

import math

import pytest
import torch
import toy
from toy import ANSWERS
from trl import GRPOTrainer

from pipeline.ppo.aggregation import advantage_shares, scale

nan = math.nan


def test_without_normalising_it_is_the_weighted_sum():
    scores, factors = scale(torch.tensor([[1.0, 2.0], [nan, 4.0]]), torch.tensor([3.0, 0.5]), None)
    assert scores.tolist() == [[3, 1], [0, 2]] and factors.tolist() == [3, 0.5]


def test_each_reward_is_normalised_within_the_completions_of_a_prompt():
    # prompt 1: a says 0 and 2 (mean 1, std sqrt 2), b has one score alone; prompt 2: a says the same, b 10, 30
    said = torch.tensor([[0.0, 5.0], [2.0, nan], [7.0, 10.0], [7.0, 30.0]])
    scores, factors = scale(said, torch.tensor([2.0, 1.0]), 2)
    a, b = 2 / (math.sqrt(2) + 1e-4), 1 / (math.sqrt(200) + 1e-4)
    assert scores.flatten().tolist() == pytest.approx([-a, 0, a, 0, 0, -10 * b, 0, 10 * b])
    # of all: a 0, 2, 7, 7 with mean 4, b 5, 10, 30 with mean 15
    std_a, std_b = math.sqrt((16 + 4 + 9 + 9) / 3), math.sqrt((100 + 25 + 225) / 2)
    assert factors.tolist() == pytest.approx([2 / (std_a + 1e-4), 1 / (std_b + 1e-4)])


def test_a_reward_that_says_the_same_of_all_adds_nothing_nor_do_its_payments():
    scores, factors = scale(torch.tensor([[0.3], [0.3], [0.3]]), torch.ones(1), 1)
    assert scores.flatten().tolist() == pytest.approx([0, 0, 0], abs=1e-3) and factors.tolist() == [0]


def test_one_completion_of_each_prompt_is_normalised_over_the_rollout():
    scores, _ = scale(torch.tensor([[1.0], [nan], [2.0], [6.0]]), torch.ones(1), 1)
    std = math.sqrt(((1 - 3) ** 2 + 1 + 9) / 2)
    assert scores.flatten().tolist() == pytest.approx([-2 / std, 0, -1 / std, 3 / std], rel=1e-3)


def test_gdpo_keeps_apart_what_a_sum_makes_equal():
    """The paper's example of two rewards of 0 or 1 and two completions: sums of (0, 1) and of (0, 2), which one
    normalisation of the sum makes the same ±0.7071, become ±0.7071 and ±1.4142."""
    one_better = torch.tensor([[0.0, 0.0], [1.0, 0.0]])
    both_better = torch.tensor([[0.0, 0.0], [1.0, 1.0]])
    sums = [scale(x, torch.ones(2), 2)[0].sum(dim=1)[1].item() for x in (one_better, both_better)]
    assert sums == pytest.approx([0.7071, 1.4142], rel=1e-3)


def test_it_is_what_trl_does(tmp_path):
    """TRL's own lines for `normalize_then_sum`, run on the same scores, before its batch normalisation."""
    said = torch.tensor([[0.0, 1.0], [3.0, 1.5], [1.0, nan], [2.0, 8.0], [5.0, 2.0], [0.5, 2.0]])
    ours = scale(said, torch.tensor([1.0, 0.5]), 3)[0].sum(dim=1)
    ours = (ours - ours.mean()) / (ours.std() + 1e-4)
    assert ours.tolist() == pytest.approx(trl_advantages(said, [1.0, 0.5], 3, tmp_path), abs=1e-5)


def trl_advantages(said, weights, group_size, tmp_path):
    """The advantages that TRL's trainer makes of these scores, through the whole of its rollout code."""
    from datasets import Dataset
    from trl import GRPOConfig

    def reward(k):
        def score(prompts, completions, **columns):
            return [None if math.isnan(x) else x for x in said[:, k].tolist()]

        score.__name__ = f"r{k}"
        return score

    args = GRPOConfig(
        str(tmp_path),
        per_device_train_batch_size=len(said),
        num_generations=group_size,
        max_completion_length=2,
        multi_objective_aggregation="normalize_then_sum",
        reward_weights=weights,
        use_cpu=True,
        bf16=False,
        report_to="none",
    )
    prompts = Dataset.from_dict({"prompt": ["a", "b"]})
    tokenizer = toy.tokenizer()
    trainer = GRPOTrainer(toy.build_model(), [reward(0), reward(1)], args, prompts, processing_class=tokenizer)
    trainer.model.train()
    rows = [{"prompt": prompt} for prompt in "ab" for _ in range(group_size)]
    return trainer._generate_and_score_completions(rows)["advantages"].tolist()


def a_rollout(tmp_path, reward, **config):
    settings = {"whiten_advantages": False, "lam": 1.0, "rollout_func": toy.canned(ANSWERS)} | config
    trainer = toy.make_trainer(tmp_path, reward=reward, **settings)
    batch = toy.sample(trainer)
    return trainer, batch, trainer.journal.read()


def dense(prompts, completions, **columns):  # of hundreds
    return [100.0 * len(text) for text in completions]


def sparse(prompts, completions, **columns):
    return [float(prompt == "c") for prompt in prompts]


def test_in_the_trainer_a_sparse_reward_keeps_up_with_a_dense_one(tmp_path):
    lengths = [len(text) for text in ("a", "ddacba", "", "aba", "ccdda", "b", "ababecdd", "ea")]
    prompts = list(ANSWERS)

    def normal(x):
        x = torch.tensor(x, dtype=torch.float64)
        return (x - x.mean()) / (x.std() + 1e-4)

    expected = normal([100.0 * n for n in lengths]) + normal([float(p == "c") for p in prompts])
    trainer, batch, notes = a_rollout(tmp_path, [dense, sparse], multi_objective_aggregation="normalize_then_sum")
    assert batch["returns"][:, 0].tolist() == pytest.approx(expected.tolist(), abs=1e-4)
    assert notes["score/dense"] == pytest.approx(100 * sum(lengths) / 8)  # the log has them as they were
    assert notes["score"] == pytest.approx(100 * sum(lengths) / 8 + 1 / 8)


def test_payments_at_tokens_are_scaled_like_the_score(tmp_path):
    class Placed:
        __name__ = "placed"

        def __call__(self, prompts, completions, **columns):
            return [float(k) for k in range(8)]

        def token_rewards(self, prompts, completions, completion_ids, **columns):
            return [[float(k)] + [0.0] * (len(ids) - 1) for k, ids in enumerate(completion_ids)]

    std = math.sqrt(6)  # of 0 to 7, unbiased
    _, batch, _ = a_rollout(tmp_path, Placed(), multi_objective_aggregation="normalize_then_sum", gamma=0.0, lam=0.0)
    # gamma 0: each token's return is what was paid for it; the mean 3.5 is taken off at the last one
    row = batch["returns"][1, :6].tolist()
    assert row == pytest.approx([1 / std, 0, 0, 0, 0, -3.5 / std], abs=1e-3)


def test_shares_by_hand(tmp_path):
    """Two rewards at two single tokens, a critic of 0: A = 2x + y, with Cov(x, y) = 0."""
    x, y = torch.tensor([1.0, 1, -1, -1]), torch.tensor([1.0, -1, 1, -1])
    shares, _ = shares_of(tmp_path, torch.stack([2 * x, y], dim=1))
    # Var A = 4 + 1
    assert shares.tolist() == pytest.approx([0.8, 0.2, 0, 0], abs=1e-6)
    # the second works against the first: A = 2x - x, Cov(2x, A) = 2, Cov(-x, A) = -1, Var A = 1
    shares, _ = shares_of(tmp_path, torch.stack([2 * x, -x], dim=1))
    assert shares.tolist() == pytest.approx([2, -1, 0, 0], abs=1e-6)
    # a critic that knows x: A = 2x + y - x; Cov(2x, A) = 2, Cov(y, A) = 1, the rest Cov(-x, A) = -1, Var A = 2
    shares, _ = shares_of(tmp_path, torch.stack([2 * x, y], dim=1), values=x)
    assert shares.tolist() == pytest.approx([1, 0.5, 0, -0.5], abs=1e-6)
    # the price of the KL: A = y - 0.5 kl with kl = 2x
    shares, _ = shares_of(tmp_path, torch.stack([0 * x, y], dim=1), kl=2 * x, kl_coef=0.5)
    assert shares.tolist() == pytest.approx([0, 0.5, 0.5, 0], abs=1e-6)
    assert shares_of(tmp_path, torch.zeros(4, 2))[0].isnan().all()


@pytest.mark.parametrize("config", [{"whiten_rewards": True}, {"whiten_advantages": True}, {"algorithm": "reinforce"}])
def test_whitening_leaves_the_shares_as_they_are(tmp_path, config):
    x, y = torch.tensor([1.0, 1, -1, -1]), torch.tensor([1.0, -1, 1, -1])
    shares, _ = shares_of(tmp_path, torch.stack([2 * x, y], dim=1), **config)
    assert shares.tolist() == pytest.approx([0.8, 0.2, 0, 0], abs=1e-4)


def shares_of(tmp_path, scores, values=None, kl=None, kl_coef=0.0, **config):
    from pipeline.ppo.aggregation import Paid
    from pipeline.ppo.experience import Rollout, make_experience

    nothing = torch.zeros(len(scores), 1)

    def column(x):
        return nothing if x is None else x[:, None]

    rollout = Rollout(nothing + 1, scores.sum(dim=1), column(kl), nothing, column(values))
    args = toy.config(lam=1.0, **config) if "algorithm" not in config else toy.config(**config)
    experience = make_experience(rollout, args, kl_coef)
    return advantage_shares(Paid(scores, {}), rollout, experience, args, kl_coef), experience


def test_shares_in_the_trainer_add_up_to_one(tmp_path):
    _, batch, notes = a_rollout(tmp_path, [dense, sparse], gamma=0.9, lam=0.8, kl_coef=0.1)
    names = ["advantage/dense", "advantage/sparse", "advantage_kl", "advantage_rest"]
    assert sum(notes[name] for name in names) == pytest.approx(1, abs=1e-5)
    assert notes["advantage/dense"] > 0.99  # of hundreds, beside 1 in 8
    settings = {"multi_objective_aggregation": "normalize_then_sum", "gamma": 0.9, "lam": 0.8}
    _, _, notes = a_rollout(tmp_path, [dense, sparse], **settings)
    assert 0.05 < notes["advantage/sparse"] < 0.95
