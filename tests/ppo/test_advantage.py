"""An advantage estimator of one's own: the example of pipeline/ppo/math.py as a user would have it, in the trainer."""

import textwrap

import pytest
import torch
import toy

from pipeline.errors import UserError
from pipeline.ppo import PPOConfig, math, setup

# What the documentation shows, made a module of the user's
EXAMPLE = "import torch\n\n\n" + textwrap.dedent(math.__doc__[math.__doc__.index("    def monte_carlo") :])


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """`mine("name", source)` is a module of the current folder; returns its function's name for the setting."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)

    def write(module: str, source: str, function: str) -> str:
        (tmp_path / f"{module}.py").write_text(source, encoding="utf-8")
        return f"{module}:{function}"

    return write


def test_the_example_by_hand(mine):
    estimate = setup.advantage_estimator(mine("by_hand", EXAMPLE, "monte_carlo"))
    rewards = torch.tensor([[0.0, 0.0, 1.0], [1.0, 7.0, 2.0]])
    values = torch.tensor([[0.5, 0.25, 0.5], [1.0, 9.0, 3.0]])
    mask = torch.tensor([[1, 1, 1], [1, 0, 1]])
    advantages, returns = estimate(rewards, values, mask, 0.5, 0.95)
    # from the end: 1, 0 + .5·1, 0 + .5·.5; and 2, 1 + .5·2 over the token that the policy did not sample
    assert returns.tolist() == [[0.25, 0.5, 1.0], [2.0, 0.0, 2.0]]
    assert advantages.tolist() == [[-0.25, 0.25, 0.5], [1.0, 0.0, -1.0]]


def test_the_trainer_takes_it_in_the_place_of_gae(tmp_path, mine):
    source = "def flat(rewards, values, mask, gamma, lam):\n    return 3.0 * mask, 2.0 * mask + gamma + lam - 1.0\n"
    settings = {"advantage": mine("flat_ones", source, "flat"), "whiten_advantages": False, "gamma": 0.5, "lam": 0.25}
    trainer = toy.make_trainer(tmp_path / "run", **settings)
    batch = toy.sample(trainer)
    real = batch["loss_mask"].bool()
    assert (batch["advantages"][real] == 3.0).all() and (batch["returns"][real] == 1.75).all()


BROKEN = {
    "no module": ("nobody_wrote_this:f", None, "No module named 'nobody_wrote_this'"),
    "no function": ("half:other", "x = 1\n", "has no attribute 'other'"),
    "one tensor": ("one:f", "def f(rewards, values, mask, gamma, lam):\n    return rewards\n", "two tensors"),
    "other shape": ("thin:f", "def f(r, v, m, gamma, lam):\n    return r[:, 0], r[:, 0]\n", r"of the shape \(B, T\)"),
    "other arguments": ("few:f", "def f(rewards):\n    return rewards, rewards\n", "takes 1 positional argument"),
    "no name": ("mymodule", None, "module:function"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_cannot_be_one_is_refused_with_the_settings(tmp_path, mine, case):
    name, source, words = BROKEN[case]
    if source is not None:
        mine(name.partition(":")[0], source, "")
    with pytest.raises(UserError, match=f"advantage is '{name}'.*{words}"):
        PPOConfig(str(tmp_path / "run"), advantage=name)


def test_reinforce_has_no_use_for_one(tmp_path):
    with pytest.raises(UserError, match="advantage is 'm:f', which contradicts algorithm reinforce"):
        toy.make_trainer(tmp_path, algorithm="reinforce", num_iterations=1, advantage="m:f")
