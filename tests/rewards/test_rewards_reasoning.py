"""Tasks of reasoning_gym as data, and their verifiers as a reward: against the package itself."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from house import ROOT

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


EVALUATES = (
    "binary_matrix countdown intermediate_integration n_queens polynomial_multiplication puzzle24 "
    "simple_integration spiral_matrix string_insertion"
).split()


@pytest.fixture(scope="module")
def reward():
    made = ReasoningGym(seconds=20)
    yield made
    made._process.close()


def asked(reward, task, *texts, **columns):
    [row] = rows_of(task, {"size": 1, "seed": 1})
    found = reward([row["prompt"]] * len(texts), list(texts), reasoning_gym=[row[COLUMN]] * len(texts), **columns)
    return found, row["answer"]


@pytest.mark.parametrize("task", EVALUATES)
def test_what_a_model_wrote_reaches_nothing_though_the_verifier_evaluates_it(reward, task, tmp_path):
    """The package's own verifiers run it: `theirs` shows that the attack is one."""
    mark = tmp_path / "mark"
    attack = f"__import__('os').system('touch {mark}')"
    theirs = reasoning_gym.create_dataset(task, size=1, seed=1)
    theirs.score_answer(attack, theirs[0])
    assert mark.exists()
    mark.unlink()
    write = f"[open('{mark}', 'w').write('x')]"
    scores, right = asked(reward, task, attack, write, "__import__('os')._exit(0)")
    assert not mark.exists() and max(scores) <= 0.1
    assert asked(reward, task, right)[0] == [1.0]


def test_code_of_one_answer_does_not_reach_the_next(reward):
    """It is evaluated in a fork: whatever it changes is gone with it."""
    change = "[__import__('builtins').__dict__.update(float=lambda x: 1.0)]"
    (first, again), _ = asked(reward, "string_insertion", change, "wrong")
    assert (first, again) == (0.0, 0.0)


def test_an_evaluation_without_an_end_is_ended():
    made, logged = ReasoningGym(seconds=1), {}
    scores, right = asked(made, "countdown", "9**9**9**9", "", log_metric=logged.__setitem__)
    assert scores[0] == 0.0 and scores[1] == 0.01 and logged["reasoning_gym/late"] == 0.5
    made._process.close()


def test_an_answer_on_which_the_verifier_stumbles_is_wrong(reward):
    """And no row without a score: a policy might prefer that to a wrong answer."""
    logged = {}
    scores, right = asked(reward, "prime_factorization", "nan", "[]", log_metric=logged.__setitem__)
    assert scores == [0.0, 0.0] and logged == {"reasoning_gym/failed": 1.0, "reasoning_gym/late": 0.0}
    assert asked(reward, "prime_factorization", right)[0] == [1.0]


def test_where_there_is_no_sandbox_what_evaluates_is_refused_and_nothing_else(tmp_path):
    import rewards.reasoning as home

    script = tmp_path / "reasoning_process.py"
    script.write_text(Path(home.__file__).with_name("reasoning_process.py").read_text())
    (tmp_path / "sandbox_runner.py").write_text("def lock(*_): raise OSError('Landlock')")
    made = ReasoningGym()
    made._process.script = script
    assert asked(made, "spell_backward", "x")[0] == [0.0]
    with pytest.raises(RewardError, match="verifier of countdown evaluates what a model writes.*missing: Landlock"):
        asked(made, "countdown", "1 + 1")
    made._process.close()


def test_an_entry_that_is_not_there(reward):
    entry = {"task": "spell_backward", "options": {"size": 1}, "index": 0}
    for wrong in ({"task": ["x"]}, {"options": 3}, {"index": "x"}, {"index": None}):
        with pytest.raises(RewardError, match="does not name an entry"):
            reward(["p"], ["1"], reasoning_gym=[json.dumps(entry | wrong)])
    with pytest.raises(RewardError, match="seconds is 0; give a number from 0.1"):
        ReasoningGym(seconds=0)


@pytest.mark.parametrize("task", ["polynomial_multiplication", "list_functions", "word_ladder"])
def test_an_entry_is_the_same_in_every_process(task):
    """These tasks go through sets, whose order Python draws anew for each process."""
    code = (
        "import json, sys\nfrom rewards.reasoning import rows_of\n"
        f"print(json.dumps(rows_of({task!r}, {{'size': 2, 'seed': 1}})))"
    )
    found = []
    for seed in ("1", "2"):
        env = os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)}
        found.append(
            subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True).stdout
        )
    assert found[0] == found[1] and json.loads(found[0]) == rows_of(task, {"size": 2, "seed": 1})
