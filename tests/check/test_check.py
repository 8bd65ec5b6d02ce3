"""`python -m rewards.check`: the texts that are tried, by hand; and holes that are there are found."""

import json
import subprocess
import sys

import pytest
from house import ROOT

from pipeline.check.command import check
from pipeline.check.texts import completions, references_in
from pipeline.errors import UserError
from rewards import RewardError

REFERENCES = [" ".join(["red", "green", "blue", "grey", "pink"][: i % 4 + 1] + [f"w{i}"]) for i in range(32)]
ROWS = [{"prompt": f"say w{i} =>", "references": [text], "facts": [f"w{i}"]} for i, text in enumerate(REFERENCES)]
MINE = """
def same(prompts, completions, **columns): return [0.5] * len(prompts)
def letters(prompts, completions, **columns): return [float(len(text)) for text in completions]
def first_word(prompts, completions, **columns): return [float(text.split()[0] in "red") for text in completions]
def polite(prompts, completions, **columns): return [float(len(text) < 40) for text in completions]
def half_blind(prompts, completions, **columns):
    return [None if i % 2 else float(text.count(" ")) / 9 for i, text in enumerate(completions)]
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (tmp_path / "mine.py").write_text(MINE)
    return tmp_path


def recipe(place, *rewards, **settings):
    settings = {"dataset": "rows.jsonl", "rewards": list(rewards)} | settings
    (place / "ppo.yaml").write_text(json.dumps(settings))  # JSON is YAML
    return "ppo.yaml"


def test_the_texts_that_are_tried():
    made = completions(["the prompt "], ["one two three four five."], seed=0)
    assert made == {
        "reference": ["one two three four five."],
        "shuffled": ["one two three four five."],  # there is no other
        "empty": [""],
        "repeated": ["one two three one two three"],  # 24 characters are 1.8 times these 13
        "truncated": ["one two three"],  # of six words, the point being one
        "long": [" ".join(["one two three four five."] * 4)],
        "prompt": ["the prompt"],
    }
    made = completions(["p"] * 3, ["a", "b", "a"], seed=1)
    assert made["shuffled"] == ["b", "a", "b"]  # never one's own
    assert completions(["p"], ["机器学习很好"])["truncated"] == ["机器学"]
    assert list(completions(["p"], [])) == ["prompt", "empty"]


def test_the_column_with_the_references():
    assert references_in([{"prompt": "p", "answer": 72}]) == ("answer", ["72"])
    assert references_in([{"prompt": "p", "completion": [{"role": "assistant", "content": "x"}]}])[1] == ["x"]
    assert references_in([{"prompt": "p", "facts": []}]) == (None, [])
    assert references_in([{"prompt": "p", "gold": ["a", "b"], "answer": "c"}], "gold") == ("gold", ["a"])
    with pytest.raises(UserError, match="no such column .did you mean 'gold'"):
        references_in([{"prompt": "p", "gold": "a"}], "golt")
    with pytest.raises(UserError, match="column answer does not hold texts"):
        references_in([{"prompt": "p", "answer": [{"a": 1}, 2]}])


def test_a_reward_without_a_hole(place, capsys):
    assert check(recipe(place, {"name": "bleu", "smoothing": "add-k"}, {"name": "keyword", "column": "facts"})) == []
    out = capsys.readouterr().out
    assert "Nothing to warn of." in out and "references in the column references" in out
    assert max(map(len, out.splitlines()[2:])) <= 80  # below the line with the paths
    score = next(line for line in out.splitlines() if line.startswith("score"))
    right, other, empty, *_ = map(float, score.split()[1:])
    assert right == pytest.approx(2.0, abs=0.01) and other < 1 and empty == 0


@pytest.mark.parametrize(
    "reward, words",
    [
        ("{name: mine:same}", ["same: it says 0.5 of everything"]),
        (
            "{name: mine:letters}",
            ["letters: it has no end", "clip or normalize: running", "a reference said four times is paid"],
        ),
        ("{name: mine:letters}", ["length is paid: of wrong answers the longer ones get more"]),
        ("{name: mine:first_word}", ["first_word: it fails on the kind empty", "IndexError"]),
        ("{name: mine:polite}", ["empty text is paid 1", "the answer to another prompt is paid 1"]),
        ("{name: mine:half_blind}", ["half_blind: it has no score for 16 of 32 references"]),
        ("{name: keyword, column: facts, weight: -1}", ["references are paid least of all", "sign of a weight"]),
        ("{name: keyword, column: facts}", ["a reference said four times is paid 1, said once 1"]),
    ],
)
def test_holes_that_are_there_are_found(place, reward, words):
    warnings = check(recipe(place, reward))
    for each in words:
        assert any(each in warning for warning in warnings), (each, warnings)


@pytest.mark.parametrize(
    "reward",
    [
        "{name: mine:letters, clip: [0, 9]}",
        "{name: mine:letters, normalize: running}",
        "{name: length, max: 3}",
        "{name: length, max: 40}",
        "{name: repetition}",
    ],
)
def test_what_has_an_end_is_not_warned_of(place, reward):
    assert not [warning for warning in check(recipe(place, reward)) if "no end" in warning]


def test_a_normalised_reward_is_shown_as_it_is(place, capsys):
    check(recipe(place, {"name": "mine:letters", "normalize": "running"}))
    out = capsys.readouterr().out
    mean = sum(map(len, REFERENCES)) / 32
    assert float(out.split("letters")[1].split()[0]) == pytest.approx(mean, abs=0.001)
    assert "Normalized in training, here as it is: letters" in " ".join(out.split())


def test_without_references_it_says_so_and_tries_what_is_left(place, capsys):
    (place / "rows.jsonl").write_text("".join(json.dumps({"prompt": f"p{i}"}) + "\n" for i in range(4)))
    assert check(recipe(place, "{name: keyword, wanted: [p1]}")) == []
    out = capsys.readouterr().out
    assert "no references: --references names their column" in out and "empty" in out and "other" not in out


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"rewards": None}, "ppo.yaml: rewards"),
        ({"dataset": None}, "dataset is not set"),
        ({"rewards": [{"name": "bleuu"}]}, "did you mean 'bleu'"),
        ({"rewards": [{"name": "environment", "instant": "turns"}]}, "paid for games, and none is played here"),
        ({"rewards": [{"name": "bleu", "column": "x" * 20_000}]}, "no column 'x{100}'; it has"),
        ({"rewards": [{"name": "keyword", "column": "fact"}]}, "no column 'fact'"),
        ({"rewards": [{"name": "length", "max": 3, "unit": "tokens"}]}, "unit: tokens needs completion_ids"),
    ],
)
def test_what_does_not_fit_is_an_error(place, settings, words):
    with pytest.raises((UserError, RewardError), match=words):
        check(recipe(place, {"name": "bleu"}, **settings))


def test_too_few_rows_and_no_recipe(place):
    with pytest.raises(UserError, match="--rows is 1"):
        check(recipe(place, {"name": "bleu"}), count=1)
    with pytest.raises(UserError, match="sft.yaml: there is no such file"):
        check("sft.yaml")
    (place / "sft.yaml").write_text("dataset: rows.jsonl\n")
    with pytest.raises(UserError, match="sft.yaml has no rewards"):
        check("sft.yaml")


def test_the_command_and_its_exit_code(place):
    line = [sys.executable, "-m", "rewards.check", recipe(place, {"name": "mine:polite"}), "--rows", "8"]
    env = {"PYTHONPATH": str(ROOT), "PATH": "", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(line, cwd=place, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1 and "warning: empty text is paid 1" in done.stdout and done.stderr == ""


def test_long_references_are_not_said_over_and_over_in_full(place):
    """A long text 256 times took minutes to score; the beginning shows as well whether a reward has an end."""
    seen = []
    sys.modules["mine"] = types = type(sys)("mine")
    types.longest = lambda prompts, completions, **columns: seen.extend(map(len, completions)) or [1.0] * len(prompts)
    (place / "rows.jsonl").write_text(
        "".join(json.dumps({"prompt": "p", "references": [text]}) + "\n" for text in ("a" * 9000, "long words " * 900))
    )
    check(recipe(place, "{name: mine:longest}"))
    assert max(seen) == 4 * 9900 - 1 or max(seen) == 4 * 9899 + 3  # the kind `long` is the longest
    del sys.modules["mine"]
