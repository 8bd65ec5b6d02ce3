"""A language model as the judge of an evaluation: win rates, and how much the order counts."""

import json

import pytest
from eval_world import arguments, make_world
from judge_server import by_length, serving

from pipeline.errors import UserError
from pipeline.eval import stage
from pipeline.eval.judges import both_orders, means, order_of, read_judges
from rewards import RewardError
from rewards.rubric import harmless

ROWS = [{"prompt": p} for p in "pqrs"]


def spec(server, **options) -> dict:
    return {"name": "judge", "url": server.url, "model": "m", "cache": False} | options


def test_the_bias_of_the_place_by_hand():
    """Of four pairs it says by quality: 1, 0; in the others it takes what comes first, and once it says nothing."""
    pairs = [(1.0, 1.0), (0.0, 0.0), (1.0, 0.0), (None, 1.0)]
    found = order_of(pairs)
    assert found["each"] == [0.5, 0.5, 1.0, None] and found["first"] == pytest.approx(2 / 3)
    assert found["agree"] == pytest.approx(2 / 3) and found["missing"] == 1
    assert means(pairs) == [1.0, 0.0, 0.5, None]
    assert order_of([(None, None)]) == {"first": None, "each": [None], "agree": None, "missing": 2}


def test_a_language_model_is_asked_in_both_orders():
    with serving(by_length) as server:
        judges = read_judges([spec(server, log_name="length")], ["facts"])
        pairs = both_orders(judges["length"], "length", ROWS, ["xx", "x", "x", "xxx"], ["x", "xx", "y", "xxx"])
        assert means(pairs) == [1.0, 0.0, 0.5, 0.5]
        assert len(server.asked) == 6  # of texts that are the same nothing is asked
    with serving(lambda body: '{"winner": "B"}') as server:
        pairs = both_orders(read_judges([spec(server)])["judge"], "judge", ROWS[:2], ["a", "b"], ["c", "d"])
        assert means(pairs) == [0.5, 0.5] and order_of(pairs)["first"] == 0 and order_of(pairs)["agree"] == 0


def test_what_is_no_judge_of_pairs():
    with serving(by_length) as server:
        with pytest.raises(UserError, match="leave weight, clip, normalize and instant out"):
            read_judges([spec(server, clip=[0, 1])])
        with pytest.raises(UserError, match="leave against and reference out"):
            read_judges([spec(server, reference="facts")])
        server.fail(404)
        with pytest.raises(RewardError, match="Reward 'judge': the judge m at .* answers with status 404"):
            read_judges([spec(server)])


def test_an_evaluation_with_a_language_model(tmp_path, tiny_model_folder):
    world = make_world(tmp_path / "world", tiny_model_folder)
    with serving(by_length) as server:
        judge = spec(server, cache=str(tmp_path / "c.sqlite"), log_name="longer")
        args = arguments(world, tiny_model_folder, tmp_path / "out", judges=[judge], rewards=[])
        summary = stage.run(args)
    rows = [json.loads(line)["candidates"] for line in (tmp_path / "out/rows.jsonl").read_text().splitlines()]
    found = [c for c in summary["comparisons"] if c["measure"] == "longer"]
    assert len(found) == 4  # two candidates, greedy and sampled
    for comparison in found:
        names, decoding = (comparison["candidate"], "one"), comparison["decoding"]
        sizes = [[len(harmless(row[name][decoding]["completion"])) for name in names] for row in rows]
        # the judge sees what can be seen of these random bytes, and prefers the longer
        wins, losses = sum(a > b for a, b in sizes), sum(a < b for a, b in sizes)
        assert (comparison["wins"]["wins"], comparison["wins"]["losses"]) == (wins, losses)
        assert comparison["order"]["first"] == 0.5 and comparison["order"]["agree"] == 1
    table = (tmp_path / "out/table.md").read_text()
    assert "**does the order count**" in table and "| longer | base, greedy | 50% [" in table
