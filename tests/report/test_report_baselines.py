"""The section about baselines: read from an evaluation beside the run, curves and worth, the control, broken files."""

import json

import pytest
from report_pages import EVIL, Page, make_run

from pipeline.errors import UserError
from pipeline.report import write_report
from pipeline.report.baselines import baselines_section, worth


def figure(value: float | None, **more) -> dict:
    ends = {"low": None if value is None else value - 0.1, "high": None if value is None else value + 0.1}
    return {"value": value, "prompts": 200, **ends, **more}


def evaluation(run, evil: str = "", **changes) -> dict:
    """Best-of-4 of sft: ppo is worth 2.8 samples by the score and more than four by the referee."""

    def point(n: int, kl: float, score: float, gold: float) -> dict:
        own = {"n": n, "kl": kl, "score": figure(score), "rewards": {f"keyword{evil}": figure(score)}}
        return own | {"referee": {"gold": figure(gold)}, "length": figure(20.0), "finished": figure(1.0)}

    def candidate(path, gold: float) -> dict:
        return {"path": str(path), "greedy": {"gold": figure(gold)}, "sampled": {"gold": figure(gold)}}

    name = f"sft{evil} as sharp as ppo"
    control = {"name": name, "temperature": 0.625, "entropy": 0.25, "entropy_start": 0.75, "entropy_found": 0.2515}
    curve = [point(1, 0.0, 1.0, 0.5), point(2, 0.1931, 1.5, 0.6), point(4, 0.6363, 2.0, 0.7)]
    value = {"score": figure(1.75, samples=2.8284), "referee": {"gold": figure(0.9, samples=None)}}
    base = {"score": figure(-5.0, samples=0.0), "referee": {"gold": figure(0.1, samples=0.0)}}
    best = {"candidate": f"sft{evil}", "samples": 4, "weights": {f"keyword{evil}": 0.5}, "curve": curve}
    return {
        "stage": "eval",
        "prompts": 200,
        "reference": f"sft{evil}",
        "candidates": {
            f"sft{evil}": candidate("elsewhere/sft", 0.5),
            "ppo": candidate(run, 0.9),
            "base": candidate("elsewhere/base", 0.1),
            name: {"path": "elsewhere/sft", "sampled": {"gold": figure(0.8125)}},
        },
        "sharpened": {"ppo": control},
        "best_of": best | {"worth": {"base": base, "ppo": value}},
    } | changes


def write_evaluation(folder, found: dict) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "summary.json").write_text(json.dumps(found), "utf-8")


def text_of(page: Page) -> str:
    return " ".join(" ".join(page.text).split())


def test_the_page_of_a_run_has_the_evaluation_beside_it(tmp_path):
    ppo = make_run(tmp_path)
    assert "Without training" not in text_of(Page(write_report(ppo).read_text("utf-8")))
    write_evaluation(tmp_path / "tiny" / "eval", evaluation(ppo))
    page = Page(write_report(ppo).read_text("utf-8"))
    text = text_of(page)
    assert page.unmatched == [] and page.open == []
    for words in ("Without training", "ppo 2.8 samples", "ppo more than 4 samples", "0.5 · keyword", "0.64"):
        assert words in text, words
    assert "base" not in [label for panel in baselines_section(ppo)["panels"] for _, label, _ in panel.lines]
    assert "temperature 0.62 , where" in text or "temperature 0.62, where" in text
    assert "sft as sharp as ppo" in text and "0.812 [0.713, 0.912]" in text.replace("0.712", "0.713")
    figures = [value for tag, name, value in page.attributes if tag == "figure" and "best of n of sft" in value]
    worths = {"score": "2.8 samples", "gold": "more than 4 samples"}
    assert figures == [f"{name} of the best of n of sft. ppo: {it}." for name, it in worths.items()]
    assert ("a", "href", "#baselines") in page.attributes


def test_an_evaluation_has_a_page_of_its_own(tmp_path):
    ppo = make_run(tmp_path)
    write_evaluation(tmp_path / "tiny" / "eval", evaluation(ppo))
    page = Page(write_report(tmp_path / "tiny" / "eval").read_text("utf-8"))
    assert "base less than one sample" in text_of(page) and "ppo 2.8 samples" in text_of(page)
    assert "Curves" not in text_of(page) and not [a for a in page.attributes if "#stage" in str(a[2])]
    assert page.unmatched == [] and page.open == []


def test_an_evaluation_of_other_runs_is_not_shown(tmp_path):
    ppo = make_run(tmp_path)
    write_evaluation(tmp_path / "tiny" / "eval", evaluation(tmp_path / "tiny" / "other"))
    assert baselines_section(ppo) is None
    (tmp_path / "tiny" / "eval" / "summary.json").write_text('{"stage": "sft"}')
    assert baselines_section(ppo) is None


def test_without_best_of_the_control_stands_alone(tmp_path):
    ppo = make_run(tmp_path)
    flat = {"name": "x", "temperature": None, "entropy": 0.8, "entropy_start": 0.75, "entropy_found": None}
    found = evaluation(ppo, sharpened={"ppo": flat})
    del found["best_of"]
    write_evaluation(tmp_path / "tiny" / "eval", found)
    text = text_of(Page(write_report(ppo).read_text("utf-8")))
    assert "ppo is no surer of its words than sft: its entropy is 0.800 nats a token, that of sft 0.750" in text
    assert "Best of n" not in text
    write_evaluation(tmp_path / "tiny" / "eval", found | {"sharpened": {}})
    assert baselines_section(ppo) is None


def test_names_stay_text(tmp_path):
    ppo = make_run(tmp_path)
    write_evaluation(tmp_path / "tiny" / "eval", evaluation(ppo, EVIL))
    page = Page(write_report(ppo).read_text("utf-8"))
    assert page.unmatched == [] and page.open == [] and page.tags.count("script") == 1 and "img" not in page.tags


def test_worth_in_words():
    assert [worth(x, 16) for x in (0.0, 1.0, 5.25, None)] == [
        "less than one sample",
        "1.0 samples",
        "5.2 samples",
        "more than 16 samples",
    ]


def test_a_broken_summary_is_one_sentence(tmp_path):
    ppo = make_run(tmp_path)
    broken = evaluation(ppo)
    broken["best_of"]["curve"][1]["n"] = "two"
    write_evaluation(tmp_path / "tiny" / "eval", broken)
    with pytest.raises(UserError, match="summary.json: .*n is"):
        write_report(ppo)
