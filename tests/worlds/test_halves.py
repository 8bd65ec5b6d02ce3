"""Preference pairs in halves: nothing in two parts, nothing lost, and what cannot be read is said."""

import gzip
import json

import pytest

from pipeline.errors import UserError
from pipeline.worlds import referee
from pipeline.worlds.base import WorldSettings
from pipeline.worlds.halves import make_data


def pair(prompt: str, good: str, bad: str) -> dict:
    return {x: f"\n\nHuman: {prompt}\n\nAssistant: {text}" for x, text in (("chosen", good), ("rejected", bad))}


def settings(path, **others) -> WorldSettings:
    return WorldSettings(world="halves", data_path=str(path), **{"preference_heldout_rows": 6, **others})


@pytest.fixture
def file(tmp_path):
    """40 pairs about 20 prompts, two each."""
    path = tmp_path / "pairs.jsonl.gz"
    with gzip.open(path, "wt") as opened:
        for i in range(40):
            opened.write(json.dumps(pair(f"question {i % 20}", f"good {i}", f"bad {i}") | {"more": 1}) + "\n")
    return path


def test_every_pair_is_in_one_part_and_prompts_stay_together(file):
    data = make_data(settings(file))
    parts = [data[name] for name in ("preferences_train", "preferences_referee", "preferences_heldout")]
    assert [len(part) for part in parts] == [18, 16, 6] or [len(part) for part in parts] == [16, 18, 6]
    assert sorted(row["chosen"] for part in parts for row in part) == sorted(
        pair(f"question {i % 20}", f"good {i}", "")["chosen"] for i in range(40)
    )
    asked = [{row["chosen"].split("\n\n")[1] for row in part} for part in parts]
    assert not asked[0] & asked[1]
    assert not asked[0] & asked[2]
    assert not asked[1] & asked[2]
    assert set(data["preferences_train"][0]) == {"chosen", "rejected"}


def test_the_seed_decides(file):
    assert make_data(settings(file)) == make_data(settings(file))
    assert make_data(settings(file)) != make_data(settings(file, seed=1))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"chosen": "a"}\n', "line 1: there are no texts chosen and rejected"),
        (json.dumps(pair("a", "b", "c")) + "\n[1]\n", "line 2: there are no texts"),
        ("not json\n", "line 1: there are no texts"),
        (json.dumps(pair("a", "b", "c")) + "\n", "too few pairs"),
        ("", "too few pairs"),
    ],
)
def test_what_is_no_file_of_pairs(tmp_path, text, words):
    path = tmp_path / "pairs.jsonl"
    path.write_text(text)
    with pytest.raises(UserError, match=words):
        make_data(settings(path))


def test_a_missing_or_unreadable_file(tmp_path):
    with pytest.raises(UserError, match="give --data_path"):
        make_data(WorldSettings(world="halves"))
    with pytest.raises(UserError, match="No such file"):
        make_data(settings(tmp_path / "none.jsonl"))
    (tmp_path / "broken.jsonl.gz").write_bytes(b"\x1f\x8b\x08nothing")
    with pytest.raises(UserError):
        make_data(settings(tmp_path / "broken.jsonl.gz"))
    (tmp_path / "latin.jsonl").write_bytes(b'{"chosen": "\xff"}\n')
    with pytest.raises(UserError, match="UTF-8"):
        make_data(settings(tmp_path / "latin.jsonl"))


def test_it_has_no_referee():
    with pytest.raises(UserError, match="no referee"):
        referee("halves")
