"""REINFORCE, A2C and PPO as settings of one trainer: what each of them does, by hand, and what contradicts it."""

import json

import pytest
import torch
import toy
from toy import AB, ANSWERS, EOS, PROMPTS, A, B, C, D, E, config
from transformers import TrainerCallback

from pipeline.errors import UserError
from pipeline.models.adapters import CRITIC, POLICY
from pipeline.ppo import math
from pipeline.ppo.experience import Rollout, make_experience
from rewards import Instant, build_rewards


def numbers(x) -> list:
    return [pytest.approx(row, abs=1e-5) for row in x]


# ---------------------------------------------------------------- REINFORCE
def test_reinforce_has_no_critic_at_all(tmp_path):
    trainer = toy.make_trainer(tmp_path, algorithm="reinforce", num_iterations=None, total_episodes=16)
    assert trainer.critic is None and list(trainer.model.peft_config) == [POLICY]
    before = toy.snapshot(trainer.model)
    assert not [n for n in before if CRITIC in n or "value_head" in n]
    trainer.train()
    assert any(not torch.equal(p, before[n]) for n, p in toy.learned(trainer).items())
    logged = trainer.state.log_history[0]
    assert not {"loss/value", "clip_fraction/value", "explained_variance", "values"} & set(logged)
    trainer.save_model(str(tmp_path / "out"))
    assert (tmp_path / "out" / "adapter_model.safetensors").exists() and not (tmp_path / "out" / CRITIC).exists()


def rewards_at(placed: dict):
    """A reward that pays `placed[prompt]`, one number for each token."""

    class Placed:
        __name__ = "placed"

        def __call__(self, prompts, completions, **columns):
            return [sum(placed[p]) for p in prompts]

        def token_rewards(self, prompts, completions, **columns):
            return [placed[p] for p in prompts]

    return Placed()


def reinforce(tmp_path, **settings):
    """Two prompts with completions of 3 and 2 tokens that earn [1, 0, 2] and [0, 4]."""
    return toy.make_trainer(
        tmp_path,
        reward=rewards_at({"c": [1.0, 0.0, 2.0], "d": [0.0, 4.0]}),
        rollout_func=toy.canned({"c": [A, D, EOS], "d": [C, EOS]}),
        prompts=["c", "d"] * 4,
        algorithm="reinforce",
        num_iterations=None,
        **settings,
    )


def test_reward_to_go_by_hand(tmp_path):
    # γ = ½: G = [1 + ½(0 + ½·2), 0 + ½·2, 2] and [0 + ½·4, 4]; no KL on a fresh adapter
    batch = toy.sample(reinforce(tmp_path, gamma=0.5), ["c", "d"])
    assert batch["advantages"].tolist() == numbers([[1.5, 1.0, 2.0], [2.0, 4.0, 0.0]])
    assert torch.equal(batch["advantages"], batch["returns"])


def test_moving_average_is_that_of_earlier_rollouts(tmp_path):
    # returns of whole completions 3 and 4: mean 3.5; then 0.9·3.5 + 0.1·3 = 3.45 after a rollout of prompt c alone
    trainer = reinforce(tmp_path, baseline="moving_average")
    assert toy.sample(trainer, ["c", "d"])["advantages"].tolist() == numbers([[3.0, 2.0, 2.0], [4.0, 4.0, 0.0]])
    assert trainer.baseline.state == pytest.approx(3.5)
    assert toy.sample(trainer, ["c", "c"])["advantages"].tolist() == numbers([[-0.5, -1.5, -1.5]] * 2)
    assert trainer.baseline.state == pytest.approx(3.45)


def test_moving_average_survives_a_checkpoint(tmp_path):
    whole = reinforce(
        tmp_path / "a", baseline="moving_average", total_episodes=16, save_strategy="steps", save_steps=1
    )
    whole.train()
    state = json.loads((tmp_path / "a" / "checkpoint-1" / "ppo_state.json").read_text())
    assert state["baseline"] == pytest.approx(3.5)  # every rollout has four of each prompt
    again = reinforce(tmp_path / "b", baseline="moving_average", total_episodes=16)
    again.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-1"))
    assert all(torch.equal(p, toy.learned(whole)[n]) for n, p in toy.learned(again).items())


def test_leave_one_out_by_hand():
    # groups of three; the second has one without a score, the third two
    totals = torch.tensor([1.0, 2.0, 6.0, 5.0, 9.0, 100.0, 3.0, 100.0, 100.0])
    counts = torch.tensor([True, True, True, True, True, False, True, False, False])
    found = math.leave_one_out(totals, counts, 3)
    assert found.tolist() == [4.0, 3.5, 1.5, 9.0, 5.0, 7.0, 0.0, 3.0, 3.0]


def test_leave_one_out_in_a_rollout(tmp_path):
    def lengths(prompts, completions, completion_ids, **columns):
        return [float(len(ids)) for ids in completion_ids]

    turns = iter([[A, EOS], [D, D, A, EOS], [EOS], [C, C, EOS]])

    def rollout(prompts, trainer):
        ids = trainer.processing_class(text=prompts)["input_ids"]
        return {"prompt_ids": ids, "completion_ids": [next(turns) for _ in prompts], "logprobs": None}

    trainer = toy.make_trainer(
        tmp_path,
        reward=lengths,
        rollout_func=rollout,
        algorithm="reinforce",
        num_iterations=None,
        baseline="leave_one_out",
        num_generations=2,
    )
    batch = toy.sample(trainer, ["c", "c", "d", "d"])
    # scores 2 and 4, 1 and 3: each less the other one
    assert batch["advantages"][:, 0].tolist() == numbers([-2.0, 2.0, -2.0, 2.0])


def test_with_a_critic_the_group_says_what_it_did_not_expect():
    """λ = γ = 1, two groups of two, one token each; the critic expects 0.5 of the first prompt and 3 of the second."""
    args = config(baseline="leave_one_out", num_generations=2, lam=1.0, whiten_advantages=False)
    zeros, values = torch.zeros(4, 1), torch.tensor([[0.5], [0.5], [3.0], [3.0]])
    rollout = Rollout(torch.ones(4, 1), torch.tensor([1.0, 0.0, 5.0, 5.0]), zeros, zeros, values)
    counts = torch.ones(4, dtype=torch.bool)
    found = make_experience(rollout, args, 0.0, baseline=lambda totals: math.leave_one_out(totals, counts, 2))
    # the critic's own: 0.5, -0.5, 2, 2; of these the other one of the group
    assert found.advantages[:, 0].tolist() == [1.0, -1.0, 0.0, 0.0]
    assert found.returns[:, 0].tolist() == [1.0, 0.0, 5.0, 5.0]  # what the critic learns does not change


# ---------------------------------------------------------------- A2C
def test_a2c_is_ppo_with_one_epoch_and_no_clipping(tmp_path):
    """With one optimizer step for each rollout the ratio is 1, so there is nothing to clip."""
    runs = []
    for settings in ({"algorithm": "a2c", "num_iterations": None}, {"num_iterations": 1, "cliprange_value": None}):
        trainer = toy.make_trainer(tmp_path, total_episodes=16, **settings)
        trainer.train()
        runs.append(toy.learned(trainer))
    assert all(torch.equal(runs[0][n], runs[1][n]) for n in runs[0])


@pytest.mark.parametrize("algorithm", ["a2c", "reinforce", "ppo"])
def test_only_ppo_clips(tmp_path, algorithm):
    trainer = toy.make_trainer(
        tmp_path,
        algorithm=algorithm,
        num_iterations=None,
        gradient_accumulation_steps=1,
        num_mini_batches=2,
        learning_rate=0.5,
        max_grad_norm=0.0,
    )
    ratios = []

    class Watch(TrainerCallback):
        def on_log(self, args, state, control, logs, **kwargs):
            ratios.append((logs.get("ratio/max", 1.0), logs.get("clip_fraction/policy", 0.0)))

    trainer.add_callback(Watch())
    trainer.train()
    largest, clipped = max(r for r, _ in ratios), max(c for _, c in ratios)
    assert largest > 1.3  # far outside 1 ± ε
    assert (clipped > 0) == (algorithm == "ppo")


def test_a2c_with_td_errors(tmp_path):
    # V = 0 at the start, λ = 0: the TD error of each token is its own reward, the score on the last
    trainer = toy.make_trainer(
        tmp_path,
        rollout_func=toy.canned(ANSWERS),
        algorithm="a2c",
        num_iterations=None,
        lam=0.0,
        whiten_advantages=False,
    )
    batch = toy.sample(trainer)
    assert batch["advantages"].sum(1).tolist() == numbers([1.0, 0.0, 0.0, 2.0, -1.0, 0.0, 0.0, 1.0])
    assert (batch["advantages"] != 0).sum(1).tolist() == [1, 0, 0, 1, 1, 0, 0, 1]


# ---------------------------------------------------------------- token rewards, whatever the algorithm
def test_token_rewards_are_paid_where_they_say(tmp_path):
    placed = {p: [float(10 * i + t) for t in range(len(ids))] for i, (p, ids) in enumerate(ANSWERS.items())}
    trainer = toy.make_trainer(
        tmp_path,
        reward=[rewards_at(placed), toy.letters],
        reward_weights=[2.0, 0.5],
        rollout_func=toy.canned(ANSWERS),
        lam=0.0,
        whiten_advantages=False,
        missing_eos_penalty=1.0,
    )
    batch = toy.sample(trainer)
    # λ = 0 and V = 0: advantage = reward; letters and the penalty of the two that were cut come at the end
    letters, cut = [1, 0, 0, 2, -1, 0, 0, 1], [1, 6]
    for row, prompt in enumerate(PROMPTS):
        expected = [2 * x for x in placed[prompt]]
        expected[-1] += 0.5 * letters[row] - (row in cut)
        assert batch["advantages"][row, : len(expected)].tolist() == pytest.approx(expected, abs=1e-4)
    assert trainer.journal.read()["score/placed"] == pytest.approx(sum(map(sum, placed.values())) / 8)


def test_a_keyword_pays_at_the_token_that_completes_it(tmp_path):
    [(keyword, _)] = build_rewards([{"name": "keyword", "wanted": ["ab", "e"], "whole_words": False, "instant": True}])
    # "cab" by [C, A, B] and by [C, AB]; "e" wanted as well, half a point each
    answers = {"c": [C, A, B, EOS], "d": [C, AB, D, E, EOS], "e": [A, A, EOS]}
    trainer = toy.make_trainer(
        tmp_path, reward=keyword, rollout_func=toy.canned(answers), lam=0.0, whiten_advantages=False
    )
    batch = toy.sample(trainer, ["c", "d", "e"])
    expected = [[0, 0, 0.5, 0, 0], [0, 0.5, 0, 0.5, 0], [0, 0, 0, 0, 0]]
    assert batch["advantages"].tolist() == numbers(expected)


def test_a_reward_without_token_rewards_by_differences(tmp_path):
    """letters counts a's less d's: each pays where it stands, whatever the tokens are."""
    instant = Instant(toy.letters, at="tokens")
    trainer = toy.make_trainer(
        tmp_path,
        reward=instant,
        rollout_func=toy.canned({"c": [A, D, C, AB, EOS], "d": [B, EOS]}),
        lam=0.0,
        whiten_advantages=False,
    )
    batch = toy.sample(trainer, ["c", "d"])
    assert batch["advantages"].tolist() == numbers([[1, -1, 0, 1, 0], [0, 0, 0, 0, 0]])


def test_a_row_without_token_rewards_goes_without(tmp_path):
    placed = {p: [1.0] * len(ids) for p, ids in ANSWERS.items()} | {"cd": None}

    class Some:
        __name__ = "some"

        def __call__(self, prompts, completions, **columns):
            return [None if placed[p] is None else sum(placed[p]) for p in prompts]

        def token_rewards(self, prompts, completions, **columns):
            return [placed[p] for p in prompts]

    trainer = toy.make_trainer(tmp_path, reward=Some(), rollout_func=toy.canned(ANSWERS), whiten_advantages=False)
    batch = toy.sample(trainer)
    assert batch["loss_mask"][1].sum() == 0 and batch["loss_mask"].sum() == 24
    assert trainer.journal.read()["score"] == pytest.approx(24 / 7)


# ---------------------------------------------------------------- warm-up
def test_the_policy_waits_for_the_critic(tmp_path):
    """Two updates of 8 completions, two epochs each: in the first, the critic alone learns."""

    class Watch(TrainerCallback):
        states = {0: {}}

        def on_step_end(self, args, state, control, model=None, **kwargs):
            self.states[state.global_step] = toy.snapshot(model)

    watch = Watch()
    trainer = toy.make_trainer(tmp_path, total_episodes=16, critic_warmup=1, entropy_coef=0.1, callbacks=[watch])
    watch.states[0] = toy.snapshot(trainer.model)
    trainer.train()

    def moved(role, earlier, later):
        return any(
            not torch.equal(p, watch.states[later][n])
            for n, p in watch.states[earlier].items()
            if role in n.split(".")
        )

    assert sorted(watch.states) == [0, 1, 2, 3, 4]
    assert [moved(POLICY, i, i + 1) for i in range(4)] == [False, False, True, True]
    assert [moved("value_head", i, i + 1) for i in range(4)] == [True, True, True, True]


# ---------------------------------------------------------------- what contradicts
@pytest.mark.parametrize(
    "algorithm, name, value",
    [(a, "num_iterations", 4) for a in ("a2c", "reinforce")]
    + [(a, n, 0.1) for a in ("a2c", "reinforce") for n in ("epsilon", "epsilon_high", "cliprange_value")]
    + [("reinforce", "lam", 0.9), ("reinforce", "vf_coef", 1.0), ("reinforce", "critic_path", "runs/x")]
    + [("reinforce", "critic_warmup", 1), ("reinforce", "critic_learning_rate", 1e-3)],
)
def test_settings_that_contradict_the_algorithm(algorithm, name, value):
    with pytest.raises(
        UserError, match=f"^{name} is {value!r}, which contradicts algorithm {algorithm}: .* Remove it"
    ):
        config(algorithm=algorithm, **{name: value})


def test_baselines_that_would_do_nothing():
    with pytest.raises(UserError, match="moving_average, which whiten_advantages takes away again"):
        config(algorithm="reinforce", baseline="moving_average", whiten_advantages=True)
    with pytest.raises(UserError, match="num_generations is 1: set it to 2 or more"):
        config(algorithm="reinforce", baseline="leave_one_out")
    with pytest.raises(UserError, match="moving_average, which ppo has no use for"):
        config(baseline="moving_average")
    with pytest.raises(UserError, match="baseline is leave_one_out, and replay is 1"):
        config(baseline="leave_one_out", num_generations=2, num_iterations=2, replay=1)


def test_what_follows_from_the_algorithm():
    found = {
        a: (c := config(algorithm=a)) and (c.num_iterations, c.cliprange_value, c.whiten_advantages)
        for a in ("ppo", "a2c", "reinforce")
    }
    assert found == {"ppo": (4, None, True), "a2c": (1, None, True), "reinforce": (1, None, False)}
