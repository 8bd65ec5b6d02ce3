"""Length and repetition, by pencil."""

import pytest

from rewards import Length, Repetition, RewardError


@pytest.mark.parametrize(
    "length, score",
    [(0, -1.0), (2, -0.5), (3, -0.25), (4, 0.0), (10, 0.0), (11, -0.1), (15, -0.5), (20, -1.0), (1000, -1.0)],
)
def test_length_between_two_bounds(length, score):
    assert Length(min=4, max=10).score(length) == pytest.approx(score)


def test_length_with_one_bound():
    assert [Length(max=4).score(n) for n in (0, 4, 5)] == [0.0, 0.0, -0.25]
    assert [Length(min=4).score(n) for n in (3, 4, 99)] == [-0.25, 0.0, 0.0]


def test_units():
    text = "Two words"
    assert Length(max=1)(["p"], [text]) == [-1.0]
    assert Length(max=8, unit="characters")(["p"], [text]) == [-0.125]
    assert Length(max=2, unit="tokens")(["p"], [text], completion_ids=[[5, 6, 2]]) == [-0.5]
    # without spaces each character is a word
    assert Length(max=4)(["p"], ["猫坐在上面。"]) == [-0.25]


def test_tokens_need_the_sampled_ids():
    with pytest.raises(RewardError, match="completion_ids"):
        Length(max=2, unit="tokens")(["p"], ["x"])


@pytest.mark.parametrize(
    "text, n, score",
    [
        ("a b c d", 1, 0.0),
        ("a b a b", 1, -0.5),
        ("a A a, a!", 1, -0.75),
        ("a b a b a", 2, -0.5),  # ab ba ab ba
        ("the cat the cat the cat", 3, -0.5),  # tct ctc tct ctc
        ("a b", 3, 0.0),
        ("", 3, 0.0),
        ("好好好好", 2, -2 / 3),
    ],
)
def test_repetition(text, n, score):
    assert Repetition(n=n)(["p"], [text]) == [pytest.approx(score)]


@pytest.mark.parametrize("count, score", [(0, 0.0), (3, 0.0), (4, -1 / 3), (5, -2 / 3), (6, -1.0), (50, -1.0)])
def test_brevity_is_a_length_in_shares_of_a_source(count, score):
    """A source of 10 words and a share of 0.3: 3 words are free, each one more costs a third, down to -1."""
    source, completion = "a b c d e f g h i j", "x " * count
    assert Length(column="source", max=0.3)(["p"], [completion], source=[source]) == [pytest.approx(score)]
    assert Length(column="prompt", max=0.3)([source], [completion]) == [pytest.approx(score)]


def test_a_share_of_a_source_in_other_units_scripts_and_bounds():
    # 4 of 8 characters; 1/4 allowed: (1/2 - 1/4) / (1/4)
    assert Length(column="source", max=0.25, unit="characters")(["p"], ["abcd"], source=["a" * 8]) == [-1.0]
    # 2 of 10 words, at least 4 wanted
    assert Length(column="source", min=0.4)(["p"], ["x x"], source=["a " * 10]) == [pytest.approx(-0.5)]
    # 4 characters of 6
    assert Length(column="source", max=0.5)(["p"], ["猫坐在上"], source=["猫坐在床上了"]) == [pytest.approx(-1 / 3)]
    # each row has its own source; one that is empty says nothing
    scores = Length(column="source", max=1)(["p"] * 3, ["x x"] * 3, source=["a", "a a", None])
    assert scores == [-1.0, 0.0, None]


def test_a_share_needs_a_text_and_a_unit_that_it_has():
    with pytest.raises(RewardError, match="unit: tokens is for the completion alone"):
        Length(column="source", max=0.3, unit="tokens")
    with pytest.raises(RewardError, match="no column 'source'"):
        Length(column="source", max=0.3)(["p"], ["x"], text=["y"])
