"""Slot errors and BLEU of an outputs file."""

import json
from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.worlds.e2e.score import references_of, score

FIRST, SECOND = "name[Aromi], eatType[pub]", "name[The Mill], area[riverside], familyFriendly[yes]"
CSV = (
    "mr,ref\n"
    f'"{FIRST}",Aromi is a nice little pub.\n'
    f'"{SECOND}","The Mill, by the river, is child friendly."\n'
    f'"{FIRST}",There is a pub called  Aromi.\n'
)


def test_errors_over_slots_and_bleu_over_all_references(tmp_path):
    (tmp_path / "data.csv").write_text(CSV)
    references = references_of(str(tmp_path / "data.csv"))
    assert references == {
        FIRST: ["Aromi is a nice little pub.", "There is a pub called Aromi."],
        SECOND: ["The Mill, by the river, is child friendly."],
    }
    right = score(["There is a pub called Aromi.", "The Mill, by the river, is child friendly."], references)
    assert right == {"slot_errors": 0, "wrong": 0, "slots": 5, "bleu": pytest.approx(100), "kinds": {}}
    # 2 + 3 slots are asked for; the area is missing, a price is invented
    off = score(["There is a pub called Aromi.", "The Mill is cheap and child friendly."], references)
    assert off["slot_errors"] == 100 * 2 / 5 and off["bleu"] < 100
    assert off["kinds"] == {"missing area": 1, "invented priceRange": 1}


def test_references_of_a_prompts_file_get_their_names_back(tmp_path):
    row = {"mr": SECOND, "references": ["NAME is by the river."], "prompt": "p"}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    assert references_of(str(tmp_path / "rows.jsonl")) == {SECOND: ["The Mill is by the river."]}


def test_as_a_command(warm, tmp_path):
    (tmp_path / "data.csv").write_text(CSV)
    (tmp_path / "out.txt").write_text("Aromi is a nice little pub.\nThe Mill, by the river, is child friendly.\n")
    command = ["-m", "pipeline.worlds.e2e.score", str(tmp_path / "out.txt")]
    root = Path(__file__).resolve().parents[2]
    done = warm.run([*command, str(tmp_path / "data.csv")], root)
    assert done.stdout == "slot errors 0.00% (0 of 5 slots), BLEU 100.00 {}\n"
    done = warm.run([*command, str(tmp_path / "none.jsonl")], root)
    assert done.returncode == 1 and done.stderr.startswith("error: ") and "none.jsonl cannot be read" in done.stderr


def test_one_output_for_each_meaning():
    with pytest.raises(UserError, match="1 outputs for 2 meaning representations"):
        score(["Aromi is a pub."], {FIRST: ["a"], SECOND: ["b"]})
