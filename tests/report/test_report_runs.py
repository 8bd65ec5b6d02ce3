"""Several runs on one page, and the plot that tells getting better from learning to please."""

import json
import re
from pathlib import Path

import pytest
from report_pages import EVIL, Page
from rows import write_rows

from pipeline.errors import UserError
from pipeline.report import charts, write_comparison
from pipeline.report.__main__ import main
from pipeline.report.beside import side_by_side
from pipeline.report.curves import curve_groups, line_of
from pipeline.report.exams import over_optimization, turning_point
from pipeline.report.runs import Contestant, contestants, differing_settings, read_run
from pipeline.report.tables import comparison


def make_run(folder: Path, settings="", seed=0, scores=(0.25, 0.5, 0.75), gold=(0.5, 0.75, 0.25)) -> Path:
    """A run with an update and an exam for each of `scores`, which have the referee's `gold`."""
    pairs = list(enumerate(zip(scores, gold, strict=True), start=1))
    write_rows(folder / "metrics.jsonl", [{"step": s, "episodes": 64 * s, "score": x} for s, (x, _) in pairs])
    write_rows(
        folder / "heldout.jsonl",
        [
            {"step": s, "episodes": 64 * s, "kl": s / 2, "score": x, "rewards": {"bleu": x}, "referee": {"gold": g}}
            for s, (x, g) in pairs
        ],
    )
    summary = {"algorithm": "ppo", "before": {"gold": gold[0]}, "after": {"gold": gold[-1]}, "seed": seed}
    (folder / "summary.json").write_text(json.dumps(summary), "utf-8")
    (folder / "config.yaml").write_text(f"seed: {seed}\noutput_dir: {folder}\n{settings}", "utf-8")
    return folder


def read(*folders: Path) -> list[Contestant]:
    return contestants([read_run(folder) for folder in folders])


def test_runs_that_differ_only_by_their_seed_are_one_contestant(tmp_path):
    """The folders are those of `make seeds`: SFT adapters differ by the seed's folder only."""
    runs = []
    for seed in (0, 1, 10):
        for name, rate in (("ppo", 0.001), ("slow", 0.0001)):
            settings = f"adapter_path: runs/tiny/seed{seed}/sft\nlearning_rate: {rate}\n"
            runs.append(make_run(tmp_path / f"seed{seed}" / name, settings, seed))
    found = read(*runs)
    assert [[run.seed for run in c.runs] for c in found] == [[0, 1, 10], [0, 1, 10]]
    assert [[run.name for run in c.runs] for c in found] == [["ppo"] * 3, ["slow"] * 3]
    # an adapter of another place, the same seed again, a run that says nothing of itself: contestants of their own
    other = make_run(tmp_path / "seed2" / "ppo", "adapter_path: runs/other/seed2/sft\nlearning_rate: 0.001\n", 2)
    again = make_run(tmp_path / "again", "adapter_path: runs/tiny/seed0/sft\nlearning_rate: 0.001\n", 0)
    silent = tmp_path / "silent"
    write_rows(silent / "metrics.jsonl", [{"step": 1, "score": 1.0}])
    assert [len(c.runs) for c in read(*runs, other, again, silent)] == [3, 3, 1, 1, 1]


def test_contestants_have_names_that_tell_them_apart(tmp_path):
    folders = [make_run(tmp_path / f"compare/{name}-seed{s}", f"x: {name}\n", s) for name in "ab" for s in (0, 1)]
    assert [c.label for c in read(*folders)] == ["a", "b"]
    folders = [make_run(tmp_path / f"{name}/ppo", f"x: {name}\n") for name in ("tiny", "e2e")]
    assert [c.label for c in read(*folders)] == ["tiny", "e2e"]
    folders = [make_run(tmp_path / f"seed{s}/ppo", "", s) for s in (0, 1)]
    assert [c.label for c in read(*folders)] == ["ppo"]


def test_the_line_of_several_seeds_is_their_mean_and_the_band_their_range():
    """Two points are not smoothed. Step 3 is no point of the second seed."""
    line = line_of([[(1, 1.0), (2, 4.0), (3, 9.0)], [(1, 3.0), (2, 2.0)]])
    assert line.xs == [1, 2] and line.ys == [2.0, 3.0] and line.band == ([1.0, 2.0], [3.0, 4.0])
    assert not line.raw
    alone = line_of([[(1, 1.0), (2, 4.0)]])
    assert alone.band is None and alone.raw == [(1, 1.0), (2, 4.0)]


def test_curves_are_overlaid_over_completions_and_told_apart_without_color(tmp_path):
    folders = [
        make_run(tmp_path / name, f"x: {name[0]}\n", s) for name, s in (("a-seed0", 0), ("a-seed1", 1), ("b", 0))
    ]
    write_rows(folders[2] / "metrics.jsonl", [{"step": s, "episodes": 64 * s, "only_b": s} for s in (4, 8)])
    groups = {group["title"]: group["curves"] for group in curve_groups(read(*folders))}
    [score] = groups["Scores"]
    assert score.lines == [(0, "a", "0.75")] and "stroke-dasharray" not in score.svg
    ticks = re.findall(r"<text[^>]*>\s*(\d+)\s*</text>", score.svg)
    assert max(map(int, ticks)) > 128  # completions: three steps of 64
    [only_b] = groups["Other"]
    assert only_b.lines == [(1, "b", "8")]  # it keeps its style where the other has no line
    assert "stroke-dasharray" in only_b.svg and only_b.label == "only_b over 2 points: b: from 4 to 8, smoothed 8"


def test_no_two_of_the_first_twelve_lines_look_the_same():
    looks = [charts.style(i) for i in range(12)]
    assert len({str(look["linestyle"]) for look in looks[:6]}) == 6
    assert len({(str(look["linestyle"]), look["color"]) for look in looks}) == 12


def test_the_table_of_several_runs(tmp_path):
    runs = [make_run(tmp_path / f"a-seed{s}", "x: 1\n", s, gold=(0.5, 0.75, g)) for s, g in ((0, 0.25), (1, 0.75))]
    runs.append(make_run(tmp_path / "b", "x: [1, 2]\n"))
    found = read(*runs)
    assert comparison(found) == [
        (
            "gold",
            [
                {"before": "0.500", "after": "0.500", "seeds": "0.250 to 0.750"},
                {"before": "0.500", "after": "0.250", "seeds": ""},
            ],
        )
    ]
    assert differing_settings(found) == [("seed", ["0, 1", "0"]), ("x", ["1", "[1, 2]"])]


@pytest.mark.parametrize(
    ("score", "gold", "turn"),
    [
        ((1, 2, 3, 4), (1, 5, 4, 3), 1),  # after the second exam the one rises, the other falls
        ((1, 2, 3, 4), (1, 2, 3, 4), None),  # both rise
        ((1, 4, 3, 2), (1, 5, 4, 3), None),  # both fall after their best
        ((1, 2, 3), (5, 4, 3), 0),  # it only ever pleased
        ((1, 2, 3, 4), (1, 5, 5, 5), None),  # the referee stays
        ((1, 2), (2, 1), 0),
        ((1, 2, 3), (0, 1, 0.96), None),  # a fall of less than a twentieth of the gain
        ((1, 2, 3), (0, 1, 0.94), 1),
    ],
)
def test_the_turning_point(score, gold, turn):
    assert turning_point(score, gold) == turn


def test_the_plot_says_where_the_referee_falls(tmp_path):
    [plot] = over_optimization(read(make_run(tmp_path / "a")), {"gold": 0.75})
    assert plot.name == "gold" and plot.found == [
        "After the exam at KL 1 the training score still rose (0.500 → 0.750) while gold got worse (0.750 → 0.250); "
        "a change of 0.750 or less may be chance, as here."
    ]
    assert over_optimization(read(make_run(tmp_path / "b", gold=(0.1, 0.2, 0.3))))[0].found == []


def test_a_referee_that_gets_better_as_it_falls(tmp_path):
    """e2e's slot errors 0.5, 0.25, 0.75 with a rising score: best at the second exam, worse after it."""
    [falling] = read(make_run(tmp_path / "a", "referee: e2e\n"))
    [run] = falling.runs
    exams = [exam | {"referee": {"slot_errors": x}} for exam, x in zip(run.exams, (0.5, 0.25, 0.75), strict=True)]
    [plot] = over_optimization([falling._replace(runs=[run._replace(exams=exams)])])
    assert plot.found == [
        "After the exam at KL 1 the training score still rose (0.500 → 0.750) while slot_errors got worse "
        "(0.250 → 0.750)."
    ]
    better = [exam | {"referee": {"slot_errors": x}} for exam, x in zip(run.exams, (0.75, 0.5, 0.25), strict=True)]
    assert over_optimization([falling._replace(runs=[run._replace(exams=better)])])[0].found == []


def test_the_page_of_several_runs(tmp_path):
    names = ("a", EVIL.replace("/", "|"))
    folders = [make_run(tmp_path / name, f"note: {json.dumps(EVIL + str(i))}\n") for i, name in enumerate(names)]
    folders.append(make_run(tmp_path / "c", gold=(0.5, 0.25), scores=(0.25, 0.5)))
    out = write_comparison(folders)
    assert out == tmp_path / "reports.html"
    page = Page(out.read_text("utf-8"))
    assert page.unmatched == [] and page.open == []
    assert not {"script", "img", "link", "iframe", "base", "form"} & set(page.tags)
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    text = "".join(page.text)
    assert names[1] in text and EVIL + "0" in text and "3 runs compared" in text
    assert "Only before and after were examined" not in text
    few = write_comparison([folders[2], make_run(tmp_path / "d", "x: 1\n", gold=(1, 2), scores=(1, 2))])
    assert "Only before and after were examined" in few.read_text("utf-8")


def test_what_several_runs_answer_to_the_same_prompts(tmp_path):
    """Both start from one model; c from another. Prompt q was not asked of b, so it is nowhere."""
    folders = [make_run(tmp_path / name, f"x: {name}\n") for name in "abc"]
    for folder, before in zip(folders, ("start", "start", "<b>other</b>"), strict=True):
        row = {"prompt": "p", "before": before, "after": f"{folder.name} 深度学习", "scores_before": {"bleu": 0.25}}
        asked = [row | {"scores_after": {"bleu": 0.5}}] + ([] if folder.name == "b" else [row | {"prompt": "q"}])
        write_rows(folder / "samples.jsonl", asked)
    [two] = side_by_side(read(*folders[:2]))
    after = [("a", "a 深度学习", [("bleu", "0.5")]), ("b", "b 深度学习", [("bleu", "0.5")])]
    assert two == {"prompt": "p", "answers": [("before", "start", [("bleu", "0.25")]), *after]}
    [three] = side_by_side(read(*folders))
    who = ["a, before", "c, before", "a", "b", "c"]
    assert [name for name, *_ in three["answers"]] == who
    page = Page(write_comparison(folders).read_text("utf-8"))
    text = "".join(page.text)
    assert page.unmatched == [] and page.open == []
    assert "<b>other</b>" in text and "b 深度学习" in text and "Held-out prompts, side by side" in text
    (folders[1] / "samples.jsonl").unlink()
    assert side_by_side(read(*folders)) == []


def test_the_command(tmp_path, capsys):
    a, b = make_run(tmp_path / "a"), make_run(tmp_path / "b", "x: 1\n")
    assert main([str(a)]) == 0 and capsys.readouterr().out.strip() == str(a / "report.html")
    assert main([str(a), str(a), "--out", str(tmp_path / "one.html")]) == 0  # named twice, it is one run
    assert "What changed" in (tmp_path / "one.html").read_text("utf-8")
    assert main([str(a), str(b), "--out", str(tmp_path / "both.html")]) == 0
    assert "2 runs compared" in (tmp_path / "both.html").read_text("utf-8")
    capsys.readouterr()
    for arguments, words in (
        (["nowhere"], "nowhere is no folder: give the output folder of a finished stage"),
        ([str(a), str(tmp_path)], "has no metrics.jsonl and no summary.json"),
        ([str(a), "--out", str(tmp_path)], "is a folder: name the page"),
        ([str(a), "--out", str(a / "config.yaml" / "x.html")], "cannot be written"),
    ):
        assert main(arguments) == 2
        said = capsys.readouterr().err
        assert said.startswith("error: ") and words in said and said.count("\n") == 1


def test_a_broken_config_is_one_sentence(tmp_path):
    (make_run(tmp_path / "a") / "config.yaml").write_text("a: [1,\nb: }", "utf-8")
    with pytest.raises(UserError, match="config.yaml, line 2 is not valid YAML") as error:
        read_run(tmp_path / "a")
    assert "\n" not in str(error.value)


def test_it_is_launched_as_a_module(warm, tmp_path):
    a = make_run(tmp_path / "a")
    root = Path(__file__).resolve().parents[2]
    done = warm.run(["-m", "pipeline.report", str(a)], root)
    assert done.returncode == 0 and (a / "report.html").is_file(), done.stderr
