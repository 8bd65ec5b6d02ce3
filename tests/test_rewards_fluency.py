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
