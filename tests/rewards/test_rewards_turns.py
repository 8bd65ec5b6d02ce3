"""Rewards that are paid by turns, without a trainer: sums, places, and what a reward of one's own is asked."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewards import Environment, RewardError, Turn, build_rewards, token_rewards_of
from rewards.turns import calls_of, reads_environments, transcript

CALL = {"type": "function", "function": {"name": "buy", "arguments": {"item": "rope", "count": 2}}}
GAME = [
    {"role": "assistant", "content": "well", "tool_calls": [CALL]},
    {"role": "tool", "name": "buy", "content": "sold 2"},
    {"role": "assistant", "content": "done"},
]


def by_turns(name):
    [(reward, _)] = build_rewards([{"name": name, "instant": "turns"}])
    return reward


class Box:
    def __init__(self, worth):
        self.worth = worth

    def get_reward(self):
        return self.worth


NUMBER = st.one_of(st.none(), st.floats(-100, 100))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.lists(st.tuples(st.integers(1, 4), NUMBER), min_size=1, max_size=5), NUMBER), max_size=4))
def test_the_turns_add_up_to_the_score(games):
    """Each turn has some tokens and is worth something by then; a game is worth something at its end."""
    ids, turns, boxes = [], [], []
    for lengths, worth in games:
        ends = [sum(length for length, _ in lengths[: k + 1]) - 1 for k in range(len(lengths))]
        ids.append([7] * (ends[-1] + 1))
        turns.append([Turn(end, k + 1, now) for k, (end, (_, now)) in enumerate(zip(ends, lengths, strict=True))])
        boxes.append(Box(worth))
    asked = {"prompts": ["p"] * len(ids), "completions": [[]] * len(ids), "environments": boxes}
    more = {"completion_ids": ids, "token_ends": [None] * len(ids), "completion_turns": turns}
    reward = by_turns("environment")
    for score, row, of in zip(reward(**asked), token_rewards_of(reward, **asked, **more), turns, strict=True):
        if score is None:
            assert row is None
            continue
        assert math.fsum(row) == pytest.approx(score, abs=1e-9)
        places = {t for t, x in enumerate(row) if x}
        assert places <= {turn.end for turn in of}


def test_what_a_reward_of_ones_own_is_asked():
    seen = []

    def mine(prompts, completions, completion_ids, environments, facts, **columns):
        seen.append((prompts, [len(c) for c in completions], completion_ids, environments, facts))
        return [float(len(c)) for c in completions]

    turns = [[Turn(1, 2, environment="early"), Turn(4, 3)], [Turn(0, 1)]]
    question = {"prompts": ["p", "q"], "completions": [GAME, GAME[-1:]], "completion_ids": [[1, 2, 3, 4, 5], [6]]}
    question |= {"token_ends": [None, None], "completion_turns": turns}
    found = token_rewards_of(by_turns(mine), **question, environments=["now", "other"], facts=["a", "b"])
    # 2 messages after the first turn, 3 at the end
    assert found == [[0, 2.0, 0, 0, 1.0], [1.0]]
    assert seen[0][3] == ["now", "other"] and seen[1] == (["p"], [2], [[1, 2]], ["early"], ["a"])


def test_a_reward_that_reads_no_environments_is_given_none_that_are_past():
    def blind(prompts, completions, **columns):
        assert len(completions[0]) == 3 or "environments" not in columns
        return [1.0] * len(completions)

    question = {"prompts": ["p"], "completions": [GAME], "completion_ids": [[1, 2, 3]], "token_ends": [None]}
    turns = [[Turn(0, 2), Turn(2, 3)]]
    paid = token_rewards_of(by_turns(blind), **question, completion_turns=turns, environments=["now"])
    assert paid == [[1.0, 0.0, 0.0]]
    assert token_rewards_of(by_turns(blind), **question) == [[0.0, 0.0, 1.0]]  # one turn


def test_rewards_that_read_environments():
    class Reads:
        def __call__(self, prompts, completions, environments, **columns):
            return []

    assert reads_environments(Reads()) and not reads_environments(lambda prompts, completions, **columns: [])
    assert not reads_environments(Environment()) and not reads_environments(3)


def test_scores_that_are_none_or_nothing():
    reward = Environment()
    boxes = [Box(1.5), object(), Box(None), Box(True)]
    assert reward(prompts=[], completions=[], environments=boxes) == [1.5, None, None, 1.0]
    with pytest.raises(RewardError, match="The environment Box: get_reward returned 'a lot'"):
        reward(prompts=["p"], completions=["c"], environments=[Box("a lot")])
    with pytest.raises(RewardError, match="instant is not for async functions"):

        async def later(prompts, completions, **columns):
            return []

        by_turns(later)


def test_a_game_as_text():
    assert calls_of(GAME[0]) == ["buy(item=rope, count=2)"] and calls_of(GAME[1]) == []
    assert calls_of({"tool_calls": [{"name": "look", "arguments": "{}"}]}) == ["look({})"]
    assert transcript(GAME) == "well\n> buy(item=rope, count=2)\nsold 2\ndone"
    assert transcript("as it is ") == "as it is "
