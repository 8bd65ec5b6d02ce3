"""Tasks of reasoning_gym as data, and their verifiers as a reward: against the package itself."""

import json

import pytest

from pipeline.config import DataArguments
from pipeline.data import loading
from pipeline.errors import UserError
from rewards import RewardError, build_rewards
from rewards.reasoning import COLUMN, ReasoningGym, rows_of

reasoning_gym = pytest.importorskip("reasoning_gym", reason="the extra `reasoning` is not installed")

SUMS = {"min_terms": 2, "max_terms": 3, "max_digits": 1, "size": 12, "seed": 5}


def test_the_rows_are_the_entries_of_the_package():
    theirs = reasoning_gym.create_dataset("chain_sum", **SUMS)
    rows = rows_of("chain_sum", SUMS)
    assert [(r["prompt"], r["completion"]) for r in rows] == [
        (theirs[i]["question"], theirs[i]["answer"]) for i in range(12)
    ]
    assert [(r["question"], r["answer"]) for r in rows] == [(r["prompt"], r["completion"]) for r in rows]


@pytest.mark.parametrize(
    "task", ["chain_sum", "leg_counting", "number_sorting", "spell_backward", "countdown", "zebra_puzzles"]
)
def test_the_score_is_that_of_the_verifier(task):
    theirs = reasoning_gym.create_dataset(task, size=3, seed=1)
    rows = rows_of(task, {"size": 3, "seed": 1})
    said = [str(theirs[0]["answer"]), "7", ""]
    scores = ReasoningGym()([row["prompt"] for row in rows], said, reasoning_gym=[row[COLUMN] for row in rows])
    assert scores == [float(theirs.score_answer(text, theirs[i])) for i, text in enumerate(said)]
    assert scores[0] == 1.0


def test_the_answer_stands_in_its_tag():
    entry = [rows_of("chain_sum", SUMS)[0]]
    right, column = entry[0]["answer"], [entry[0][COLUMN]]
    reward = build_rewards(["{name: reasoning_gym, tag: answer}"])[0].reward
    texts = [f"<answer>1</answer> no, <answer> {right} </answer>!", right, f"<answer>{right}", f"{right}</answer>"]
    assert [reward([""], [text], reasoning_gym=column)[0] for text in texts[:2]] == [1.0, 0.0]
    assert ReasoningGym(tag="answer").answer(texts[2]) == "" and ReasoningGym(tag="answer").answer("a</answer>") == "a"
    assert ReasoningGym()([""], [f" {right}\n"], reasoning_gym=column) == [1.0]
    assert reward([""], ["x"], reasoning_gym=[None]) == [None]


def test_the_data_set_by_its_name():
    args = {"prompt_template": "{question}\n", "eval_fraction": 0.25, "dataset_options": json.dumps(SUMS)}
    train, heldout = loading.load(DataArguments("reasoning_gym:chain_sum", **args), "prompts", 0)
    assert len(train) + len(heldout) == 12 and not set(train["prompt"]) & set(heldout["prompt"])
    assert train[0]["prompt"] == train[0]["question"] + "\n"
    row = train[0]
    assert ReasoningGym()([row["prompt"]], [row["answer"]], reasoning_gym=[row[COLUMN]]) == [1.0]
    sft, _ = loading.load(DataArguments("reasoning_gym:chain_sum", dataset_options=SUMS), "sft")
    assert sft[0]["completion"] == sft[0]["answer"]


@pytest.mark.parametrize(
    "source, options, words",
    [
        ("chain_sums", {}, "dataset reasoning_gym:chain_sums: .* no task 'chain_sums' .did you mean 'chain_sum'"),
        ("chain_sum", {"max_term": 3}, "no option 'max_term' .did you mean 'max_terms'..; it takes .*seed, size"),
        ("chain_sum", {"min_terms": 9}, "refuses .*max_terms must be >= min_terms"),
        ("chain_sum", {"min_terms": "x"}, "refuses"),
        ("chain_sum", {"size": 0}, "refuses .*size must be positive"),
    ],
)
def test_what_does_not_fit_is_one_sentence(source, options, words):
    with pytest.raises(UserError, match=words) as error:
        loading.load(DataArguments(f"reasoning_gym:{source}", dataset_options=options), "prompts")
    assert "\n" not in str(error.value)


def test_rows_of_other_data_are_refused():
    for column in (["x"], ['{"task": "chain_sum"}'], [3]):
        with pytest.raises(RewardError, match="does not name an entry; use data of dataset: reasoning_gym"):
            ReasoningGym()(["p"], ["1"], reasoning_gym=column)
    with pytest.raises(RewardError, match="no column 'reasoning_gym'"):
        ReasoningGym()(["p"], ["1"])
    with pytest.raises(RewardError, match="tag is '<a>'"):
        ReasoningGym(tag="<a>")


def test_without_the_package_it_says_what_to_install(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(RewardError, match=r"pip install -e '.\[reasoning\]'"):
        ReasoningGym().prepare()
