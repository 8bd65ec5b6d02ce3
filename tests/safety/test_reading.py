"""Files that may hold anything: what is wrong with them, by the place where it is."""

import json

import pytest

from pipeline.errors import UserError
from pipeline.safety.reading import NUMBER, checked, parse_json, read_lines
from pipeline.worlds.e2e.keywords import wordings
from rewards import RewardError, build_rewards

SHAPE = {"a": [float], "b?": ({str: NUMBER}, None), "c?": (str, [dict])}


@pytest.mark.parametrize(
    "value", [{"a": []}, {"a": [1, 2.5], "b": None}, {"a": [], "b": {"x": None, "y": True}, "z": 3}]
)
def test_what_fits(value):
    assert checked(value, SHAPE, "f") is value


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ([], "f: it is a list, but wants a mapping"),
        ({}, "f: a is missing"),
        ({"a": [1, "2"]}, r"f: a\[1\] is text, but wants a number"),
        ({"a": [True]}, r"a\[0\] is true or false, but wants a number"),
        ({"a": [], "b": {"x": []}}, "b.x is a list, but wants"),
        ({"a": [], "c": 1}, "c is a whole number, but wants text or a list"),
    ],
)
def test_the_first_difference_is_named(value, says):
    with pytest.raises(UserError, match=says):
        checked(value, SHAPE, "f")


def test_numbers_that_are_too_long_and_nesting_that_is_too_deep(tmp_path):
    assert parse_json("9" * 400, "f") == float("inf") and parse_json("123456789012345678", "f") == 123456789012345678
    with pytest.raises(UserError, match="f is not JSON that can be read: it is nested too deeply"):
        parse_json("[" * 100_000, "f")
    (tmp_path / "a.jsonl").write_text('{"a": 1}\n\n{"a"')
    assert read_lines(tmp_path / "a.jsonl", cut=True) == [{"a": 1}]
    with pytest.raises(UserError, match="a.jsonl, line 3 is not JSON"):
        read_lines(tmp_path / "a.jsonl")


def test_what_the_fuzzing_found(tmp_path):
    assert wordings({"food": ["Martian"]}) == ["Martian"]  # a value that the E2E data does not know
    for spec in ({"name": ["bleu"]}, {"name": "keyword", "wanted": "a", "column": 3}):
        with pytest.raises(RewardError):
            build_rewards([spec])
    assert json.dumps(parse_json("[1e5]", "f")) == "[100000.0]"
