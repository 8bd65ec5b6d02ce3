"""The section about the reward model: bins and mistakes of hand-made pairs, and the pairs that the stage writes."""

import html.parser
import json
import math

import pytest
import torch
from datasets import Dataset
from reward_stage import PAIRS as TRAINED_ON
from reward_stage import runner

from pipeline.errors import UserError
from pipeline.report import reward_model as section
from pipeline.report.page import environment
from pipeline.report.reward_model import Point, calibration_points, margin_points, mistakes, reward_model_section
from pipeline.stages import reward_model as stage

EVIL = "<script>alert(1)</script><img src=x> {{ 7 * 7 }} &"


@pytest.fixture
def run(tmp_path, tiny_model_folder, monkeypatch):
    return runner(tmp_path, tiny_model_folder, monkeypatch)


def pair(margin: float, name: str = "") -> dict:
    texts = {"prompt": f"say{name}", "chosen": f"good{name}", "rejected": f"bad{name}"}
    return texts | {"score_chosen": 1.0 + margin, "score_rejected": 1.0}


def run_folder(folder, pairs, **summary):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / stage.PAIRS).write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in pairs), "utf-8")
    if summary:
        (folder / "summary.json").write_text(json.dumps(summary), "utf-8")
    return folder


def rendered(found) -> str:
    return environment().get_template("reward_model.html.j2").render(reward_model=found, nonce="abc")


def test_names_agree():
    assert section.PAIRS == stage.PAIRS


def test_nothing_to_show(tmp_path):
    assert reward_model_section(tmp_path) is None
    assert reward_model_section(run_folder(tmp_path, [])) is None


def test_it_is_found_beside_a_run(tmp_path):
    run_folder(tmp_path / "reward", [pair(1.0)])
    (tmp_path / "ppo").mkdir()
    assert reward_model_section(tmp_path / "ppo")["folder"] == "reward"


def test_calibration_bins_of_hand_made_pairs(tmp_path):
    """Three pairs at 60 % sure, two of them right; one at 97 %, right. The bins are those of the stage."""
    log_odds = {p: math.log(p / (1 - p)) for p in (0.62, 0.97)}
    margins = [log_odds[0.62], log_odds[0.62], -log_odds[0.62], log_odds[0.97]]
    error, bins = stage.calibrate(torch.tensor(margins))
    points = calibration_points(bins)
    assert [(p.pairs, p.range) for p in points] == [(3, "60–65 %"), (1, "95–100 %")]
    assert [p.x for p in points] == pytest.approx([0.62, 0.97])
    assert [p.accuracy for p in points] == pytest.approx([2 / 3, 1.0])
    assert [section.confidence(m) for m in margins] == pytest.approx([0.62, 0.62, 0.62, 0.97])
    found = reward_model_section(
        run_folder(tmp_path, map(pair, margins), calibration_bins=bins, calibration_error=error, heldout_pairs=9)
    )
    # three of four pairs |2/3 - 0.62| off, one |1 - 0.97|
    assert found["calibration_error"] == pytest.approx(0.75 * (2 / 3 - 0.62) + 0.25 * 0.03)
    assert found["calibration"] == points and found["heldout_pairs"] == 9 and found["pairs"] == 4


def test_accuracy_by_margin():
    points = margin_points([0.5, -0.25, 0.0, -3.0, 2.0, 1.0], groups=3)
    # by |margin|: 0 (half right) and -0.25 | 0.5 and 1 | 2 and -3
    assert points == [
        Point(0.125, 0.25, 2, "0.00–0.25"),
        Point(0.75, 1.0, 2, "0.50–1.00"),
        Point(2.5, 0.5, 2, "2.00–3.00"),
    ]
    assert [p.pairs for p in margin_points([1.0, 2.0], groups=6)] == [1, 1]  # never an empty group


def test_the_most_confident_mistakes_come_first():
    pairs = [pair(-0.5, "a"), pair(3.0, "b"), pair(-2.0, "c"), pair(0.0, "d"), pair(-1.0, "e")]
    assert [p["prompt"] for p in mistakes(pairs, limit=2)] == ["sayc", "saye"]
    assert len(mistakes(pairs)) == 3  # a tie is none


def test_the_page_says_so_and_text_stays_text(tmp_path):
    messages = {"chosen": [{"role": "assistant", "content": "hello"}]}
    pairs = [pair(-math.log(9), EVIL), pair(1.0), pair(-0.1) | {"prompt": None}, pair(-0.2) | messages]
    found = reward_model_section(
        run_folder(tmp_path, pairs, accuracy=0.25, calibration_error=0.125, calibration_bins=[], heldout_pairs=4)
    )
    page = rendered(found)
    tags, text = [], []
    parser = html.parser.HTMLParser()
    parser.handle_starttag = lambda tag, attrs: tags.append(tag)
    parser.handle_data = text.append
    parser.feed(page)
    text = " ".join("".join(text).split())
    assert "script" not in tags and "img" not in tags and text.count(EVIL) == 3
    assert "25.0 % in the right order" in text and "3 of 4 pairs are in the wrong order" in text
    assert "90.0 % sure, and wrong" in text and "hello" in text
    assert text.index("90.0 % sure") < text.index("55.0 % sure") < text.index("52.5 % sure")
    assert tags.count("article") == 3 and tags.count("svg") == 1 == tags.count("details")


def test_a_model_without_mistakes(tmp_path):
    found = reward_model_section(run_folder(tmp_path, [pair(1.0), pair(2.0)]))
    assert found["accuracy"] == 1.0 and found["mistakes"] == []
    assert "None: it put all 2 pairs in the right order" in rendered(found)


@pytest.mark.parametrize("line", ["{", json.dumps({"chosen": "a", "rejected": "b"}), "[]"])
def test_a_broken_file_is_told(tmp_path, line):
    (tmp_path / stage.PAIRS).write_text(json.dumps(pair(1.0)) + "\n" + line + "\n")
    with pytest.raises(UserError, match=r"pairs.jsonl, line 2( is not JSON|: score_chosen is missing|: it is a list)"):
        reward_model_section(tmp_path)


def test_the_stage_writes_its_held_out_pairs(run, tmp_path):
    """The texts as they came, each with its own scores, also where TRL drops pairs that are too long."""
    long = [{"prompt": f"{c} =>", "chosen": " y" * 40, "rejected": " n"} for c in "abcdefgh"]
    rows = [row for i, row in enumerate(TRAINED_ON) for row in ([row, long[i]] if i < len(long) else [row])]
    summary, out, trainer = run(rows, learning_rate=1e-2)
    pairs = section.read_pairs(out / stage.PAIRS)
    assert len(pairs) == summary["heldout_pairs"] < 11  # a quarter of 44 were held out; the long ones are gone
    originals = [tuple(row[key] for key in ("prompt", "chosen", "rejected")) for row in TRAINED_ON]
    assert all(tuple(p[key] for key in ("prompt", "chosen", "rejected")) in originals for p in pairs)
    with torch.no_grad():
        for found in pairs:
            for side in ("chosen", "rejected"):
                text = found["prompt"] + found[side] + trainer.processing_class.eos_token
                ids = torch.tensor([trainer.processing_class(text)["input_ids"]])
                assert trainer.model(ids).logits.item() == pytest.approx(found[f"score_{side}"], abs=1e-4)
    shown = reward_model_section(out)
    assert (
        shown["accuracy"]
        == summary["accuracy"]
        == sum(section.rightness(section.margin(p)) for p in pairs) / len(pairs)
    )


def test_only_so_many_pairs_are_written(tmp_path, monkeypatch):
    monkeypatch.setattr(stage, "MAX_PAIRS", 2)
    rows = Dataset.from_list([{"chosen": c, "rejected": "no"} for c in "xyz"])
    stage.write_pairs(tmp_path / "pairs.jsonl", rows, torch.tensor([1.0, 2.0, 3.0]), torch.zeros(3))
    assert [(p["prompt"], p["chosen"], p["score_chosen"]) for p in section.read_pairs(tmp_path / "pairs.jsonl")] == [
        (None, "x", 1.0),
        (None, "y", 2.0),
    ]
