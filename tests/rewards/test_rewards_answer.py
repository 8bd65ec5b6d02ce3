"""The answer reward: by pencil, and against SQuAD's definitions."""

import pytest

from rewards import Answer, RewardError, build_rewards
from rewards.answer import letter_of, normalized, token_f1


def score(reward, answer, completion):
    (found,) = reward(["p"], [completion], answer=[answer])
    return found


@pytest.mark.parametrize(
    ("match", "answer", "completion", "expected"),
    [
        ("exact", "Paris", " Paris\n", 1),
        ("exact", "Paris", "paris", 0),
        ("exact", "Paris", "", 0),
        ("normalized", "Paris", "paris.", 1),
        ("normalized", "The Eiffel Tower", "an  eiffel-tower!", 0),  # SQuAD takes the hyphen out: "eiffeltower"
        ("normalized", "The Eiffel Tower", "Eiffel tower, the", 1),
        ("normalized", "Paris", "It is Paris", 0),
        ("normalized", ["Paris", "City of Light"], "the city of light", 1),
        ("normalized", 42, "42", 1),
        ("normalized", {"text": ["Denver Broncos", "Broncos"], "answer_start": [177, 184]}, "the Broncos", 1),
        ("f1", "Denver Broncos", "The Denver Broncos", 1),
        ("f1", "Denver Broncos", "Broncos of Denver", 2 * (2 / 3) * 1 / (2 / 3 + 1)),  # P 2/3, R 1
        ("f1", "a b b c", "b b b", 2 * 2 / 3 * 2 / 3 / (2 / 3 + 2 / 3)),  # "a" is an article; "b" counts twice
        ("f1", ["no", "Denver Broncos"], "Denver", 2 * 1 * 0.5 / 1.5),
        ("f1", "Denver", "", 0),
        ("f1", "北京大学", "大学在北京", 2 * (4 / 5) * 1 / (4 / 5 + 1)),  # characters are words
        ("choice", "B", "The answer is B.", 1),
        ("choice", "B", "The answer is (C).", 0),
        ("choice", 1, "B) because it is", 1),  # MMLU counts from 0
        ("choice", "(b)", "I think A, no: the answer: **B**", 1),
        ("choice", "B", "I do not know.", 0),
    ],
)
def test_scores_by_pencil(match, answer, completion, expected):
    assert score(Answer(match=match), answer, completion) == pytest.approx(expected)


@pytest.mark.parametrize("match", ["exact", "normalized", "f1", "choice"])
def test_a_row_without_an_answer_has_no_score(match):
    assert [score(Answer(match=match), answer, "B") for answer in (None, "", [], [None], {"text": []})] == [None] * 5


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("C", "C"),
        (" (C) ", "C"),
        ("C.", "C"),
        ("**C**", "C"),
        ("C: the third", "C"),
        ("The answer is C", "C"),
        ("Answer: C, since A is wrong", "C"),
        ("The correct answer is **(C)**.", "C"),
        ("the answer is A. Wait, the answer is C.", "C"),  # the last word counts
        (r"so \boxed{C}", "C"),
        (r"The answer is A? No: \boxed{\text{C}}", "C"),
        ("It must be (C), for (C) alone is even.", "C"),
        ("A cat sat on the mat.", None),
        ("Answer: A cat", "A"),  # for better or worse
        ("It is (A) or (B).", None),
        ("A)\nB)\nC)\nD)", None),  # all of them: nothing is chosen
        ("A. Paris\nC. Rome", None),
        ("Cats", None),
        ("The answer is Cats", None),
        ("The answer is E", None),
        ("a", None),  # an article
        ("", None),
    ],
)
def test_the_letter_that_is_chosen(text, letter):
    assert letter_of(text, "ABCD") == letter


def test_other_letters():
    reward = Answer(match="choice", choices="12345", column="stars")
    assert reward(["p"] * 3, ["4", "The answer is 5", "6"], stars=["4", 5, "1"]) == [1.0, 1.0, 0.0]


def test_a_part_of_the_completion_is_read():
    reward = Answer(tag="answer", after="</think>")
    texts = ["<think>no</think><answer> Paris </answer>", "<answer>Paris</answer>", "</think>Paris"]
    assert reward(["p"] * 3, texts, answer=["Paris"] * 3) == [1.0, 0.0, 0.0]


def test_squads_script_by_hand():
    """Lower case, then punctuation, then articles, then spaces: in that order, as in the official script."""
    assert normalized("The\tcat's  A-list, an A.") == "cats alist"
    assert normalized("Theo and Anna") == "theo and anna"
    assert token_f1("the", "a an") == 1.0 and token_f1("the", "cat") == 0.0


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"match": "fuzzy"}, "match is 'fuzzy'; give exact or normalized or f1 or choice"),
        ({"choices": "A"}, "give two letters or more"),
        ({"choices": "AA"}, "each once"),
        ({"choices": ["yes", "no"]}, "give two letters"),
        ({"tag": 3}, "tag is 3; give a text"),
    ],
)
def test_options_that_are_wrong(options, says):
    with pytest.raises(RewardError, match=says):
        build_rewards([{"name": "answer"} | options])


def test_a_letter_that_is_no_choice_is_named():
    with pytest.raises(
        RewardError, match="column 'answer', row 1 of the batch, holds 'E', which is none of A, B, C, D"
    ):
        Answer(match="choice")(["p"] * 2, ["A", "A"], answer=["A", "E"])
    with pytest.raises(RewardError, match="row 0 .* '4'"):
        Answer(match="choice")(["p"], ["A"], answer=[4])


@pytest.mark.parametrize("match", ["normalized", "f1"])
@pytest.mark.parametrize("answer", ["A", "the", "!?"])
def test_what_is_an_article_or_signs_alone_is_compared_as_it_is(match, answer):
    """Else empty text would be right where the letter A is."""
    assert [score(Answer(match=match), answer, text) for text in ("", "an", answer.lower())] == [0, 0, 1]


def test_numbers_of_the_column_are_read_as_they_are_written():
    """pandas makes 4.0 of 4 where a column has gaps, and NaN of the gaps."""
    assert [score(Answer(), 4.0, text) for text in ("4", "40")] == [1, 0]
    assert score(Answer(match="choice"), 1.0, "B") == 1 and score(Answer(), float("nan"), "nan") is None
    assert score(Answer(), 1e22, "1" + "0" * 22) == 1 and score(Answer(), 10**5000, "5") == 0
    with pytest.raises(RewardError, match="holds {'a': 1}"):
        score(Answer(), {"a": 1}, "1")


@pytest.mark.parametrize("text", ["answer" + " " * 50_000 + "x", "\n" * 50_000 + "x", ("answer is" + " " * 999) * 40])
def test_runs_of_spaces_cost_no_more_than_other_text(text):
    """Gone through in cubic time, each of these would take hours."""
    assert letter_of(text, "ABCD") is None
