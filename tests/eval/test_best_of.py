"""Best-of-n: the estimator and the worth in samples by pencil and by listing subsets; the stage on a random Llama."""

import itertools
import json
import math

import numpy as np
import pytest
from eval_world import PROMPTS, arguments, make_world, size

from pipeline.errors import UserError
from pipeline.eval import stage
from pipeline.eval.best_of import BestOf, chances, chosen, kl_bound, summary, total, worth
from pipeline.eval.tables import markdown
from pipeline.exam.evaluation import ScoredAnswers

NAN = math.nan


def test_the_bound_by_pencil():
    """log 2 - 1/2 and log 4 - 3/4; one sample is where it comes from."""
    assert [kl_bound(n) for n in (1, 2, 4)] == pytest.approx([0, 0.193147, 0.636294], abs=1e-6)


def test_chances_by_pencil():
    """Of 10, 30, 20: of the three pairs the 30 wins two and the 20 one."""
    assert chances([10.0, 30.0, 20.0], 1) == pytest.approx([1 / 3, 1 / 3, 1 / 3])
    assert chances([10.0, 30.0, 20.0], 2) == pytest.approx([0, 2 / 3, 1 / 3])
    assert chances([10.0, 30.0, 20.0], 3) == pytest.approx([0, 1, 0])
    # two that are equal share the three pairs that one of them wins, a missing one wins none
    assert chances([5.0, 5.0, NAN], 2) == pytest.approx([1 / 2, 1 / 2, 0])
    assert chances([NAN, NAN], 1) == pytest.approx([1 / 2, 1 / 2])


@pytest.mark.parametrize("n", [1, 2, 3, 5, 6])
def test_it_is_the_mean_over_all_subsets(n):
    """What the best has, and what another measure of the best has, listed subset by subset."""
    scores, gold = [0.3, 2.0, -1.0, 2.0, 0.5, 0.1], [1.0, 5.0, 7.0, 3.0, 0.0, 2.0]
    tops, golds = [], []
    for subset in itertools.combinations(range(6), n):
        best = max(scores[i] for i in subset)
        tied = [gold[i] for i in subset if scores[i] == best]
        tops.append(best)
        golds.append(sum(tied) / len(tied))
    by = np.array([chances(scores, n)])
    assert chosen(np.array([scores]), by).value() == pytest.approx(sum(tops) / len(tops))
    assert chosen(np.array([gold]), by).value() == pytest.approx(sum(golds) / len(golds))


def test_it_is_unbiased():
    """Coins of which 3 in 10 show heads: of n at least one does with 1 - 0.7^n."""
    tosses = (np.random.default_rng(0).random((20_000, 8)) < 0.3).astype(float)
    for n in (1, 2, 4):
        found = chosen(tosses, np.array([chances(row, n) for row in tosses])).value()
        assert found == pytest.approx(1 - 0.7**n, abs=0.005)


def test_what_is_missing_is_left_out():
    values, by = np.array([[1.0, NAN], [NAN, NAN], [2.0, 4.0]]), np.array([[0.25, 0.75], [0.5, 0.5], [0.5, 0.5]])
    assert chosen(values, by).value() == pytest.approx((1 + 3) / 2)


def test_the_score_that_chooses():
    """2 · 1 - 0.5 · 4; a missing part adds nothing, and without any part there is no score."""
    found = total({"a": [1.0, None, None], "b": [4.0, 2.0, None], "gold": [9.0, 9.0, 9.0]}, {"a": 2.0, "b": -0.5})
    assert found == [0.0, -1.0, None]


def test_worth_by_pencil():
    """Half way between best-of-2 and best-of-3 lies their geometric mean."""
    curve = [1.0, 2.0, 3.0, 3.5]
    assert [worth(curve, value) for value in (0.9, 1.0, 2.0, 3.5, 3.6)] == [0, 1, pytest.approx(2), 4, math.inf]
    assert worth(curve, 2.5) == pytest.approx(math.sqrt(6))
    assert worth([4.0, 2.0, 3.0], 3.0, higher_wins=False) == pytest.approx(math.sqrt(2))


def test_the_referee_judges_what_the_rewards_choose():
    """One prompt, two samples: the reward takes the second, where the referee finds three errors, not one."""
    samples = ScoredAnswers(["a", "b"], [[5], [6, 7]], [True, False], {"r": [1.0, 2.0], "errors": [1.0, 3.0]})
    mine = ScoredAnswers(["c"], [[8]], [True], {"r": [1.75], "errors": [2.0]})
    found = summary(BestOf("sft", 2, samples, ["r"], {"r": 10.0}), {"ppo": mine}, {"r": True, "errors": False}, 0)
    one, two = found["curve"]
    assert [p["score"]["value"] for p in (one, two)] == pytest.approx([15, 20])
    assert [p["rewards"]["r"]["value"] for p in (one, two)] == pytest.approx([1.5, 2])
    assert [p["referee"]["errors"]["value"] for p in (one, two)] == pytest.approx([2, 3])
    assert [(p["length"]["value"], p["finished"]["value"]) for p in (one, two)] == [(1.5, 0.5), (2, 0)]
    worth = found["worth"]["ppo"]
    assert worth["score"]["samples"] == pytest.approx(math.sqrt(2)) and worth["score"]["value"] == 17.5
    assert worth["referee"]["errors"]["samples"] == 1 and set(worth["referee"]) == {"errors"}


@pytest.fixture(scope="module")
def result(tmp_path_factory, tiny_model_folder):
    folder = tmp_path_factory.mktemp("best_of")
    world, output = make_world(folder, tiny_model_folder), folder / "out"
    rewards = [{"name": "eval_world:size", "weight": 2.0}, {"name": "eval_world:some", "weight": 0.5}]
    candidates = [{"one": str(world / "one")}, {"two": str(world / "two")}]
    changes = {"candidates": candidates, "rewards": rewards, "judges": [], "best_of": 6}
    said = stage.run(arguments(world, tiny_model_folder, output, **changes))
    return output, said, [json.loads(line) for line in (output / "best_of.jsonl").read_text().splitlines()]


def test_the_curve_is_made_of_the_samples(result):
    """The ends of the curve are the mean of all samples, and the mean over prompts of the best of six."""
    output, written, rows = result
    best = written["best_of"]
    assert json.loads((output / "summary.json").read_text()) == written
    assert [row["prompt"] for row in rows] == PROMPTS and {len(row["samples"]) for row in rows} == {6}
    for row in rows:
        for said in row["samples"]:
            [length], some = size([], [said["completion"]]), said["scores"]["some"]
            assert said["scores"]["size"] == length
            assert said["score"] == pytest.approx(2 * length + 0.5 * (some or 0))
        assert len({said["completion"] for said in row["samples"]}) > 1
    assert [point["n"] for point in best["curve"]] == [1, 2, 4, 6] and best["candidate"] == "one"
    scores = [[said["score"] for said in row["samples"]] for row in rows]
    assert best["curve"][0]["score"]["value"] == pytest.approx(np.mean(scores))
    assert best["curve"][-1]["score"]["value"] == pytest.approx(np.mean([max(row) for row in scores]))
    assert best["curve"][-1]["kl"] == pytest.approx(math.log(6) - 5 / 6)
    assert best["weights"] == {"size": 2.0, "some": 0.5}
    values = [point["score"]["value"] for point in best["curve"]]
    assert values == sorted(values)


def test_what_a_policy_is_worth_is_read_off_the_curve(result):
    output, written, _ = result
    answers = [json.loads(line) for line in (output / "rows.jsonl").read_text().splitlines()]
    sampled = [row["candidates"]["two"]["sampled"]["scores"] for row in answers]
    value = np.mean([2 * scores["size"] + 0.5 * (scores["some"] or 0) for scores in sampled])
    found, curve = written["best_of"]["worth"]["two"]["score"], written["best_of"]["curve"]
    assert found["value"] == pytest.approx(value) and found["low"] <= value <= found["high"]
    if found["samples"]:
        below = [point for point in curve if point["n"] <= found["samples"]][-1]
        assert below["score"]["value"] <= value + 1e-9
    else:
        end = curve[-1 if found["samples"] is None else 0]["score"]["value"]
        assert (value > end) == (found["samples"] is None)
    text = (output / "table.md").read_text()
    for words in ("best of n of one", "kl at most", "worth so many samples of one", "2.00 size + 0.50 some"):
        assert words in text
    best = written["best_of"] | {"worth": {"two": {"score": {"samples": None}, "referee": {"gold": {"samples": 0}}}}}
    assert "| two | >6 | <1 |" in markdown(written | {"best_of": best}).replace("&lt;", "<")


@pytest.mark.parametrize("changes", [{"best_of": 1}, {"best_of": 4, "rewards": []}])
def test_what_it_wants(tmp_path, tiny_model_folder, changes):
    with pytest.raises(UserError, match="best_of"):
        arguments(tmp_path, tiny_model_folder, None, **changes)
