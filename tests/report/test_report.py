"""The report: one page, nothing from outside, text in it stays text, and its figures are those of the run."""

import json
import math
import re
from pathlib import Path

import pytest
from report_pages import EVIL, LOADS, Page, make_run
from rows import write_rows

from pipeline.errors import UserError
from pipeline.report import number, write_report
from pipeline.report.curves import MAX_POINTS, all_points, curve_groups, draw_curve, smooth, thin
from pipeline.report.numbers import duration
from pipeline.report.runs import Contestant, read_run
from pipeline.report.samples import AT_ONCE, MAX_SAMPLES, changes, fitting, pearson
from pipeline.report.tables import before_after, in_words


def alone(folder: Path) -> list[Contestant]:
    return [Contestant("it", [read_run(folder)])]


@pytest.mark.parametrize(
    ("started", "shown"), [("runs/tiny/sft", "sft"), ("runs/tiny/sft-long", "sft-long"), ("elsewhere/x", None)]
)
def test_the_stage_before_is_the_one_that_it_started_from(tmp_path, started, shown):
    ppo = make_run(tmp_path)
    (ppo / "config.yaml").write_text(f"adapter_path: {started}\n", "utf-8")
    write_rows(tmp_path / "tiny/sft-long/metrics.jsonl", [{"step": s, "loss": 1 / s} for s in range(1, 6)])
    text = " ".join(Page(write_report(ppo).read_text("utf-8")).text)
    assert [name for name in ("sft", "sft-long") if f"Curves: {name} " in f"{text} "] == ([shown] if shown else [])


def test_page_holds_what_the_run_says(tmp_path):
    ppo = make_run(tmp_path)
    out = write_report(ppo)
    assert out == ppo / "report.html"
    page = Page(out.read_text("utf-8"))
    assert page.unmatched == [] and page.open == []
    text = " ".join(" ".join(page.text).split())
    for wanted in ("0.500 → 0.625", "+0.500 ▲", "3.25", "1 min 35 s", "2,048", "18.2", "seed: 7", "train_runtime"):
        assert wanted in text, wanted
    assert text.count("a calm heron") == 3 and text.count("a bird") == 3
    assert "Curves: ppo" in text and "Curves: sft" in text and "Curves: reward" not in text
    # score/keyword, the score without a name, kl and loss/value of PPO, loss of SFT; epoch is none, nor what is once
    curves = [name for tag, _, name in page.attributes if tag == "figure" and " points: " in name]
    assert [c.split(" over ")[0] for c in curves] == ["score/keyword", "score/", "kl", "loss/value", "loss"]
    # and the histogram and the length plot of the one score that every sample has
    assert page.tags.count("svg") == 5 + 2


def test_text_from_models_and_data_stays_text(tmp_path):
    page = Page(write_report(make_run(tmp_path, EVIL)).read_text("utf-8"))
    assert page.unmatched == [] and page.open == []
    # the page's own script and nothing else: no other element, no word of the data in it
    assert page.tags.count("script") == 1 and "img" not in page.tags
    assert "heron" not in page.scripts[0] and "alert" not in page.scripts[0]
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    text = "".join(page.text)
    # prompts, completions, reward names in table and samples, a metric's name, the settings: word for word
    assert text.count(EVIL) >= 3 * 3 + 1 + 3 * 2 + 1 + 1
    assert "49" not in re.sub(r"\d+\.\d+", "", text.split("Curves:")[0].replace(EVIL, ""))


def test_a_game_is_shown_turn_by_turn_and_all_of_it_stays_text(tmp_path):
    ppo = make_run(tmp_path)
    turns = [
        {"said": f"well{EVIL}", "calls": [f"buy(item={EVIL})"], "answers": [f"only 1 left{EVIL}"], "paid": -0.25},
        {"said": "", "calls": ["buy(item=rope)"], "answers": ["sold 1"], "paid": 1.5},
    ]
    sample = {"prompt": [{"role": "user", "content": f"Order{EVIL}"}], "before": "x", "after": "y"}
    scores = {"scores_before": {"won": 0.0}, "scores_after": {"won": 1.0}}
    write_rows(ppo / "samples.jsonl", [sample | scores | {"turns_before": turns[:1], "turns_after": turns}])
    page = Page(write_report(ppo).read_text("utf-8"))
    assert page.unmatched == [] and page.open == [] and page.tags.count("script") == 1 and "img" not in page.tags
    assert page.tags.count("ol") == 2 and page.tags.count("li") >= 3
    text = " ".join("".join(page.text).split())
    evil = " ".join(EVIL.split())
    assert text.count(f"well{evil}") == text.count(f"buy(item={evil})") == text.count(f"only 1 left{evil}") == 2
    paid = [f"paid {number(turn['paid'])}" for turn in turns]
    assert text.index(paid[0]) < text.rindex("buy(item=rope)") < text.rindex("sold 1") < text.rindex(paid[1])


def test_page_asks_for_nothing_from_outside(tmp_path):
    text = write_report(make_run(tmp_path, EVIL)).read_text("utf-8")
    page = Page(text)
    assert not {"link", "iframe", "object", "embed", "base", "form"} & set(page.tags)
    nonces = [value for tag, name, value in page.attributes if (tag, name) == ("script", "nonce")]
    assert len(nonces) == page.tags.count("script") == 1 and len(nonces[0]) >= 16
    loading = [(tag, name, value) for tag, name, value in page.attributes if name in LOADS]
    assert not loading
    for tag, name, value in page.attributes:
        if name in ("href", "xlink:href"):
            assert value.startswith("#"), (tag, name, value)
        for target in re.findall(r"url\(([^)]*)\)", value):
            assert target.startswith("#"), (tag, name, value)
    styles = "".join(re.findall(r"<style>(.*?)</style>", text, flags=re.S))
    assert styles and "@import" not in styles and "url(" not in styles
    [policy] = [value for _, name, value in page.attributes if name == "content" and "default-src" in value]
    assert policy == (
        f"default-src 'none'; style-src 'unsafe-inline'; script-src 'nonce-{nonces[0]}'; base-uri 'none'; "
        "form-action 'none'"
    )
    again = Page(write_report(tmp_path / "tiny" / "ppo").read_text("utf-8"))
    assert ("script", "nonce", nonces[0]) not in again.attributes  # another page, another nonce


def test_every_reference_inside_the_page_has_its_target(tmp_path):
    page = Page(write_report(make_run(tmp_path)).read_text("utf-8"))
    ids = [value for _, name, value in page.attributes if name == "id"]
    wanted = {value[1:] for _, name, value in page.attributes if name in ("href", "xlink:href")}
    wanted |= {t[1:] for _, _, value in page.attributes for t in re.findall(r"url\(([^)]*)\)", value)}
    assert wanted <= set(ids)


def test_a_long_run_with_long_texts_stays_under_three_megabytes(tmp_path):
    ppo = make_run(tmp_path)
    names = [f"score/r{i}" for i in range(4)] + [f"time/t{i}" for i in range(4)] + [f"m{i}" for i in range(4)]
    rows = [{"step": s} | {name: math.sin(s * (i + 1) / 700) for i, name in enumerate(names)} for s in range(5000)]
    write_rows(ppo / "metrics.jsonl", rows)
    # an ampersand takes five bytes on a page, a Japanese character three
    sample = {"prompt": "p" * 9000, "before": "&" * 9000, "after": "鷺" * 9000}
    scores = {f"scores_{which}": {f"r{i}": i * 0.1 for i in range(3)} for which in ("before", "after")}
    write_rows(ppo / "samples.jsonl", [sample | scores] * AT_ONCE)
    out = write_report(ppo)
    assert out.stat().st_size < 3_000_000
    page = Page(out.read_text("utf-8"))
    # four scores and four others, the time split, SFT's loss; three histograms and three length plots
    charts = [value for tag, name, value in page.attributes if (tag, name, value) == ("svg", "class", "chart")]
    assert len(charts) == 4 + 4 + 1 + 1 + 3 + 3
    assert page.tags.count("article") == AT_ONCE == 200 and "template" not in page.tags
    text = "".join(page.text)
    assert "more characters)" in text and len(re.search("p{9,}", text)[0]) > 500  # cut no shorter than it must be


def test_samples_beyond_the_first_wait_in_a_template(tmp_path):
    ppo = make_run(tmp_path)
    rows = [
        {
            "prompt": f"p{i}",
            "before": "b" * 500,
            "after": "a" * 500,
            "scores_before": {"x": 0},
            "scores_after": {"x": 1},
        }
        for i in range(MAX_SAMPLES + 50)
    ]
    write_rows(ppo / "samples.jsonl", rows)
    out = write_report(ppo)
    text = out.read_text("utf-8")
    outside, template = re.fullmatch(r"(.*)<template id=\"sample-rest\">(.*)</template>.*", text, re.DOTALL).groups()
    assert outside.count("<article") == AT_ONCE and template.count("<article") == MAX_SAMPLES - AT_ONCE == 1800
    assert "The first 2000 of 2050 prompts." in text and 'aria-label="Sample 2000"' in template
    assert out.stat().st_size < 10_000_000


def test_fewer_samples_are_shown_when_their_texts_are_long():
    """600 bytes in each of three texts, 1,800 a row: 3,333 rows are 5,999,400 bytes, one more is over 6 million."""
    assert fitting([["x" * 600] * 3] * 4000, 3000) == 3333
    assert fitting([["&" * 600] * 3] * 4000, 100) == 4000  # 100 ampersands of 5 bytes: 1,500 a row, 6 million exactly
    assert fitting([["x" * 600_000] * 3] * 4000, 600_000) == AT_ONCE == 200  # never under it
    assert fitting([["x"] * 3] * 7, 3000) == 7


def test_conversations_and_odd_text_are_shown(tmp_path):
    ppo = make_run(tmp_path)
    prompt = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "鷺は?"}]
    row = {"prompt": prompt, "before": "", "after": [{"role": "assistant", "content": "half \ud83d"}]}
    (ppo / "samples.jsonl").write_text(json.dumps(row) + "\n", "utf-8")
    text = "".join(Page(write_report(ppo).read_text("utf-8")).text)
    assert "system: Be brief.\n\nuser: 鷺は?" in text and "assistant: half ?" in text and "(empty)" in text


def test_a_folder_without_results_is_an_error(tmp_path):
    with pytest.raises(UserError, match="metrics.jsonl"):
        write_report(tmp_path)
    ppo = make_run(tmp_path)
    (ppo / "samples.jsonl").write_text('{"prompt": "1"}\n{"pro', "utf-8")
    with pytest.raises(UserError, match="samples.jsonl, line 2"):
        write_report(ppo)


def test_another_place_and_an_older_page(tmp_path):
    ppo = make_run(tmp_path)
    out = tmp_path / "pages" / "mine.html"
    out.parent.mkdir()
    out.write_text("old", "utf-8")
    assert write_report(ppo, out) == out
    assert out.read_text("utf-8").startswith("<!doctype html>")
    assert [p.name for p in out.parent.iterdir()] == ["mine.html"]
    assert not (ppo / "report.html").exists()


def test_table_keeps_missing_numbers_apart_from_zero():
    rows = before_after({"before": {"bleu": 0.0, "odd": None}, "after": {"bleu": 0.25, "new": 2.0, "gold": 1.0}})
    assert [row["name"] for row in rows] == ["gold", "bleu", "odd", "new"]
    shown = {row["name"]: (row["before"], row["after"], row["change"], row["arrow"]) for row in rows}
    assert shown["bleu"] == ("0.000", "0.250", "+0.250", "▲")
    assert shown["new"] == ("–", "2.00", "–", "")
    assert shown["odd"] == ("–", "–", "–", "")


def test_a_moving_average_by_pencil():
    # span 3 gives a = 1/2: 4; (4/4 + 8/2) / (3/4); (4/8 + 8/4 + 0/2) / (7/8)
    assert smooth([4.0, 8.0, 0.0], 3) == pytest.approx([4.0, 20 / 3, 20 / 7])
    assert smooth([1.0, 5.0], 1) == [1.0, 5.0]
    assert smooth([0.3] * 9, 5) == pytest.approx([0.3] * 9)


def test_thinning_averages_equal_bins():
    assert thin([(0, 1), (1, 3), (2, 5)], limit=2) == [(0.5, 2.0), (2.0, 5.0)]
    assert thin([(0, 1), (1, 3)], limit=2) == [(0.0, 1.0), (1.0, 3.0)]
    assert len(thin([(i, i) for i in range(10_001)])) <= MAX_POINTS


def test_what_is_a_curve():
    rows = [
        {"step": 1, "epoch": 0.1, "loss": 1.0, "flag": True, "bad": float("nan"), "text": "x", "once": 3.0},
        {"step": 2, "epoch": 0.2, "loss": 0.5, "flag": True, "bad": float("inf"), "text": "y", "train_loss": 1.0},
    ]
    assert all_points(rows) == {"loss": [(1.0, 1.0), (2.0, 0.5)]}


def test_curves_stand_in_their_groups(tmp_path):
    names = [
        "score",
        "score/bleu",
        "kl",
        "kl_coef",
        "approx_kl",
        "entropy",
        "values",
        "loss/value",
        "loss",
        "length/mean",
    ]
    write_rows(tmp_path / "ppo" / "metrics.jsonl", [{"step": s} | dict.fromkeys(names, 1.0 * s) for s in (1, 2)])
    groups = {g["title"]: [c.name for c in g["curves"]] for g in curve_groups(alone(tmp_path / "ppo"))}
    assert groups == {
        "Scores": ["score", "score/bleu"],
        "Distance to the reference": ["kl", "kl_coef"],
        "Text": ["length/mean"],
        "Policy": ["approx_kl", "entropy"],
        "Critic": ["values", "loss/value"],
        "Loss": ["loss"],
    }


@pytest.mark.parametrize(("low", "high"), [(0.0, 0.09), (12345.1, 12345.4)])
def test_axis_labels_are_the_values_themselves(low, high):
    """The drawing's coordinates are rounded, its labels are not (0.25 is not 0.2), and they are no offsets."""
    svg = str(draw_curve("score", {"": [[(0, low), (1, high)]]}).svg)
    found = re.findall(r"<text[^>]*>\s*([^<]*?)\s*</text>", svg)
    labels = [float(text.replace("\N{MINUS SIGN}", "-")) for text in found]
    heights = labels[labels.index(1.0) + 1 :]
    margin = (high - low) / 2
    assert len(heights) >= 2 and all(low - margin <= h <= high + margin for h in heights), found
    assert heights[-1] - heights[0] > (high - low) / 3
    assert len({round(b - a, 9) for a, b in zip(heights, heights[1:], strict=False)}) == 1


def test_a_curve_that_never_moves_is_a_plain_line():
    svg = str(draw_curve("length/max", {"": [[(s, 48.0) for s in range(50)]]}).svg)
    assert "e-1" not in svg and "e−1" not in svg


def test_numbers_as_people_write_them():
    shown = {0.0: "0", 0.12345: "0.123", -1.5: "−1.5", 123.456: "123.5", 12800: "12,800", 48: "48", 0.00002: "2e−5"}
    assert {value: number(value) for value in shown} == shown
    assert number(None) == number(float("nan")) == "–"
    assert (duration(9.5), duration(95), duration(7260)) == ("9.5 s", "1 min 35 s", "2 h 1 min")


def test_exams_during_training_become_curves(tmp_path):
    def exam(step):
        return {"step": step, "tokens": 10 * step, "score": 0.5 * step, "rewards": {"keyword": 0.25 * step}}

    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 1.0}\n')
    for count, names in ((2, []), (3, ["eval/score", "eval/rewards/keyword"])):
        (tmp_path / "heldout.jsonl").write_text("".join(json.dumps(exam(i)) + "\n" for i in range(count)))
        groups = {group["title"]: group["curves"] for group in curve_groups(alone(tmp_path))}
        assert [curve.name for curve in groups.get("Held out", [])] == names
    assert groups["Held out"][1].label.startswith("eval/rewards/keyword over 3 points: from 0 to 0.5")


def test_where_the_time_goes_is_one_chart_of_a_run(tmp_path):
    rows = [{"step": s, "time/training": 3.0, "time/generation": 1.0, "tokens_per_second": 9.0} for s in (1, 2)]
    write_rows(tmp_path / "metrics.jsonl", rows)
    [group] = curve_groups(alone(tmp_path))
    split, speed = group["curves"]
    assert (group["title"], split.name, speed.name) == ("Time", "time split", "tokens_per_second")
    assert split.lines == [(0, "training", "3"), (1, "generation", "1")] and speed.lines == [(0, "", "9")]
    assert split.svg.count("stroke-dasharray") == 1  # solid and dashed: told apart without color


def test_the_change_and_its_interval_by_pencil():
    """Differences 0.1, 0.3, 0.2, 0.4, 0: mean 0.2, s² = (0.01 + 0.01 + 0 + 0.04 + 0.04) / 4 = 0.025."""
    pairs = [(0.1, 0.2), (0.2, 0.5), (0.5, 0.7), (0.0, 0.4), (1.0, 1.0), (None, 0.5), (0.3, float("nan"))]
    rows = [{"scores_before": {"bleu": b}, "scores_after": {"bleu": a}} for b, a in pairs]
    middle, half = changes(rows)["bleu"]
    assert middle == pytest.approx(0.2) and half == pytest.approx(1.96 * math.sqrt(0.025 / 5))
    [row] = before_after({"before": {"bleu": 0.36}, "after": {"bleu": 0.56}}, changes(rows))
    assert (row["interval"], row["sure"]) == ("+0.061 to +0.339", True)
    assert changes(rows[:1]) == {}


def test_correlation_of_length_and_score_by_pencil():
    # Σ(x - 2)(y - 4) = (-1)(-2) + 0·2 + 1·0 = 2 over √(1 + 0 + 1) √(4 + 4 + 0) = 4
    assert pearson([(1, 2), (2, 6), (3, 4)]) == pytest.approx(0.5)
    assert pearson([(1, 2), (2, 2)]) is None


@pytest.mark.parametrize(
    ("gold", "says"),
    [
        ((0.50, 0.75), "gold, the referee that no training saw, rose from 0.500 to 0.750."),
        (
            (0.50, 0.25),
            "The rewards rose and the referee got worse: ",
        ),
    ],
)
def test_what_changed_in_words(tmp_path, gold, says):
    ppo = make_run(tmp_path)
    summary = {"algorithm": "ppo", "before": {"bleu": 0.25, "gold": gold[0]}, "after": {"bleu": 0.5, "gold": gold[1]}}
    (ppo / "summary.json").write_text(json.dumps(summary), "utf-8")
    exam = {"step": 0, "kl": 0.0, "score": 0.25, "rewards": {"bleu": 0.25}, "referee": {"gold": gold[0]}}
    write_rows(ppo / "heldout.jsonl", [exam])
    run = read_run(ppo)
    found = in_words(run, before_after(run.summary))
    assert any(sentence.startswith(says) for sentence in found) and "Trained on: bleu rose." in found
    doubtful = in_words(run, before_after(run.summary, {"bleu": (0.25, 0.5), "gold": (0.25, 0.125)}))
    assert "Trained on: bleu (which may be chance) rose." in doubtful
    assert doubtful[0].endswith(": more than chance would give.")
