"""`make compare`: the table by pencil, and what is run, kept and refused."""

import importlib.util
import json
import shlex
from pathlib import Path

import pytest
from recipe_files import settings_for

from pipeline.cli import parse
from pipeline.errors import UserError
from pipeline.sweep.comparison import best_within, curve, draw, markdown, summarize, tokens_to_reach

ROOT = Path(__file__).resolve().parents[2]
spec = importlib.util.spec_from_file_location("compare", ROOT / "recipes/compare.py")
compare = importlib.util.module_from_spec(spec)
spec.loader.exec_module(compare)


def rows(*exams, gold=None) -> list[dict]:
    """Rows of heldout.jsonl from (tokens, score, kl), one minute of training each."""
    return [
        {
            "step": 4 * i,
            "episodes": 64 * i,
            "tokens": tokens,
            "seconds": 60.0 * i,
            "cpu_seconds": 45.0 * i,
            "kl": kl,
            "score": score,
            "referee": {"gold": score / 4 if gold is None else gold},
        }
        for i, (tokens, score, kl) in enumerate(exams)
    ]


# Two seeds each. Means exam by exam: grpo 1, 1.5, 2 at 0, 1000, 2000 tokens; ppo 1, 2, 1.8 at 0, 1100, 2200.
GRPO = {0: rows((0, 1.0, 0), (900, 1.4, 2), (1900, 1.9, 4)), 1: rows((0, 1.0, 0), (1100, 1.6, 3), (2100, 2.1, 11))}
PPO = {0: rows((0, 1.0, 0), (1000, 2.1, 5), (2000, 1.7, 9)), 1: rows((0, 1.0, 0), (1200, 1.9, 12), (2400, 1.9, 14))}


def test_a_curve_is_the_mean_over_seeds_exam_by_exam():
    points = curve(list(GRPO.values()))
    assert [tuple(point) for point in points] == [
        (0, 0, 1.0, 1.0, 1.0),
        (1000, 60, pytest.approx(1.5), 1.4, 1.6),
        (2000, 120, pytest.approx(2.0), 1.9, 2.1),
    ]
    assert [point.score for point in curve(list(GRPO.values()), "gold")] == pytest.approx([0.25, 0.375, 0.5])
    # an exam that one seed lacks (another budget, say) is left out
    assert len(curve([GRPO[0], GRPO[1][:2]])) == 2


def test_tokens_to_reach_a_score():
    grpo, ppo = curve(list(GRPO.values())), curve(list(PPO.values()))
    assert tokens_to_reach(grpo, 1.75) == pytest.approx(1500)  # half way between 1000 and 2000
    assert tokens_to_reach(ppo, 1.75) == pytest.approx(825)  # three quarters of 1100, on the way up
    assert tokens_to_reach(grpo, 2.0) == pytest.approx(2000)
    assert tokens_to_reach(grpo, 1.0) == 0
    assert tokens_to_reach(grpo, 2.01) is None


def test_best_score_within_the_kl_limit():
    assert best_within(GRPO[1], 10) == 1.6  # 2.1 is at 11 nats
    assert best_within(GRPO[1], 11) == 2.1
    assert best_within(PPO[1], 10) == 1.0  # only the start
    assert best_within(PPO[0], 10) == 2.1  # not the last one


def test_the_summary_and_its_table():
    summary = summarize({"ppo": PPO, "grpo": GRPO}, against="grpo")
    assert summary["fixed"] == {"best": pytest.approx(2.0), "most": pytest.approx(1.9)}  # 1 + 0.9 · (2 - 1)
    ppo, grpo = summary["contestants"]["ppo"], summary["contestants"]["grpo"]
    assert ppo["after"] == {"mean": pytest.approx(1.8), "seeds": {"0": 1.7, "1": 1.9}}
    assert ppo["referee"]["gold"]["mean"] == pytest.approx(0.45)
    assert ppo["tokens_to_reach"] == {"best": pytest.approx(1100), "most": pytest.approx(990)}
    assert grpo["tokens_to_reach"] == {"best": pytest.approx(2000), "most": pytest.approx(1800)}
    assert ppo["best_within_kl"] == {"mean": pytest.approx(1.55), "seeds": {"0": 2.1, "1": 1.0}}
    shared = summarize({"ppo": PPO, "grpo": GRPO}, "grpo", "cpu_seconds")
    assert shared["contestants"]["ppo"]["minutes"] == 1.5 and "of training (processor time)" in markdown(shared)
    assert (ppo["tokens"], ppo["minutes"], ppo["episodes"], ppo["before"]) == (2200, 2, 128, 1)
    head, _, first, *_ = markdown(summary).splitlines()
    cells = dict(zip(head.split(" | "), first.split(" | "), strict=True))
    assert cells["held-out score after (each seed)"] == "1.800 (1.700, 1.900)"
    assert cells["tokens to 1.900"] == "990" and cells["tokens to 2.000"] == "1,100"
    assert cells["best score at KL ≤ 10"] == "1.550 (2.100, 1.000)" and cells["KL after, nats"] == "11.50"


def test_a_score_that_is_not_reached_and_a_contestant_that_is_not_there():
    weak = {0: rows((0, 1.0, 0), (1000, 1.2, 1))}
    summary = summarize({"weak": weak, "grpo": {0: GRPO[0]}}, against="grpo")
    assert summary["contestants"]["weak"]["tokens_to_reach"] == {"best": None, "most": None}
    assert markdown(summary).splitlines()[2].count("not reached") == 2
    with pytest.raises(UserError, match="against is 'rloo', which is no contestant"):
        summarize({"grpo": GRPO}, against="rloo")
    with pytest.raises(UserError, match="grpo, seed 7 has no heldout.jsonl"):
        summarize({"grpo": {7: []}}, against="grpo")


def test_the_curves_are_drawn(tmp_path):
    for name in ("curves.svg", "curves.png"):
        draw({"ppo": PPO, "grpo": GRPO}, tmp_path / name)
        assert (tmp_path / name).stat().st_size > 10_000
    again = tmp_path / "again.svg"
    draw({"ppo": PPO, "grpo": GRPO}, again)
    assert again.read_bytes() == (tmp_path / "curves.svg").read_bytes()


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*/compare.yaml")), ids=lambda path: path.parent.name)
def test_every_contestant_can_be_launched(path, monkeypatch):
    """Its command parses strictly, and all sample as many completions (or half of it) for the same rewards."""
    monkeypatch.chdir(ROOT)
    plan = compare.read(path.parent.relative_to(ROOT))
    names = [contestant["name"] for contestant in plan["contestants"]]
    assert {"ppo-instant", "ppo-end-only", "grpo"} <= set(names) and len(names) == len(set(names))
    assert plan["against"] in names
    budgets, rewards, exams = set(), {}, set()
    for contestant in plan["contestants"]:
        folder = Path("runs", path.parent.name, "compare", f"{contestant['name']}-seed5")
        words = compare.command(path.parent.relative_to(ROOT), contestant, 5, folder, [])
        assert (ROOT / words[0]).is_file() and words[-2:] == ["--output_dir", str(folder)]
        *_, reward_args, config = parse(*settings_for(contestant["script"]), argv=words[1:])
        assert config.seed == 5 and config.output_dir == str(folder)
        budgets.add(config.total_episodes * (2 if "-half" in contestant["name"] else 1))
        exams.add(reward_args.eval_every * config.generation_batch_size)
        rewards[contestant["name"]] = reward_args.rewards
    assert len(budgets) == 1 and len(exams) == 1
    assert [spec for spec in rewards["ppo-instant"] if "instant" in spec]
    for name, specs in rewards.items():
        assert name.startswith("ppo-instant") or not [spec for spec in specs if spec.get("instant")]
        same = [{k: v for k, v in spec.items() if k != "instant"} for spec in rewards["ppo-instant"]]
        assert [{k: v for k, v in spec.items() if k != "instant"} for spec in specs] == same


def test_instant_is_set_by_name():
    given = ["bleu", {"name": "keyword", "column": "facts", "instant": True}]
    assert compare.with_instant(given, {"bleu": "words"}) == [
        {"name": "bleu", "instant": "words"},
        {"name": "keyword", "column": "facts"},
    ]
    with pytest.raises(UserError, match="instant names rouge1"):
        compare.with_instant(given, {"rouge1": True})


def test_what_is_complete_is_kept_and_what_was_stopped_begins_again(tmp_path):
    wanted = {tmp_path / name: ["recipes/ppo.py", "--seed", name[-1]] for name in ("a0", "a1", "a2")}
    for name in ("a0", "a1"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "heldout.jsonl").write_text("{}\n")
        (tmp_path / f"{name}.log").write_text(shlex.join(wanted[tmp_path / name]) + "\nsaid\n")
    (tmp_path / "a0" / "summary.json").write_text("{}")
    assert compare.missing(wanted) == {folder: wanted[folder] for folder in (tmp_path / "a1", tmp_path / "a2")}
    assert (tmp_path / "a0" / "heldout.jsonl").exists() and not (tmp_path / "a1").exists()
    wanted[tmp_path / "a0"] = ["recipes/ppo.py", "--seed", "0", "--kl_coef", "1"]
    with pytest.raises(UserError, match="a0 was run with other settings"):
        compare.missing(wanted)


def test_runs_get_a_log_each_and_the_first_failure_stops_the_rest(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import os, sys\nfrom pathlib import Path\nPath(sys.argv[1]).write_text(os.environ['OMP_NUM_THREADS'])\n"
        "print('said')\nsys.exit(int(sys.argv[2]))\n"
    )
    runs = {tmp_path / n: [str(script), str(tmp_path / f"{n}.txt"), code] for n, code in (("a", "0"), ("b", "0"))}
    compare.run_all(runs, jobs=2)
    assert (tmp_path / "b.txt").read_text() == "1"
    assert (tmp_path / "a.log").read_text().splitlines() == [shlex.join(runs[tmp_path / "a"]), "said"]
    runs = {tmp_path / n: [str(script), str(tmp_path / f"{n}.txt"), code] for n, code in (("c", "3"), ("d", "0"))}
    with pytest.raises(UserError, match=r"c failed; .*c.log says why"):
        compare.run_all(runs, jobs=1)
    assert not (tmp_path / "d.txt").exists()


def test_a_wrong_key_in_compare_yaml_is_named(tmp_path):
    (tmp_path / "compare.yaml").write_text(
        json.dumps({"against": "a", "contestants": [{"name": "a", "scrpt": "ppo"}]})
    )
    with pytest.raises(UserError, match="no such key scrpt"):
        compare.read(tmp_path)
    (tmp_path / "compare.yaml").write_text(
        json.dumps({"against": "a", "contestants": [{"name": "a", "script": "ppo"}]})
    )
    with pytest.raises(UserError, match="a has no config"):
        compare.read(tmp_path)
    with pytest.raises(UserError, match="compare.yaml does not exist"):
        compare.read(tmp_path / "nowhere")
