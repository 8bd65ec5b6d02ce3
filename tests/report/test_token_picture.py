"""What each token earned as a picture: the colors are those of the numbers, and no text can break it."""

import json

import numpy as np
import pytest

from pipeline.report import token_picture
from pipeline.report.token_picture import CELL, COLUMNS, DPI, LINE, Piece, laid_out, token_pictures
from pipeline.report.tokens import TOKENS

BLUE, ORANGE = np.array([20, 110, 200]), np.array([205, 85, 0])


def row(tokens, rewards, **changes) -> dict:
    zeros = [0.0] * len(tokens)
    numbers = {name: zeros for name in ("kl", "probs_before", "probs_after", "advantages", "values", "scores")}
    made = {"prompt": "say it", "why": "best", "score": 1.0, "score_before": None, "tokens": tokens, "silent": {}}
    return made | numbers | {"rewards": rewards} | changes


def write(folder, *rows):
    (folder / TOKENS).write_text("".join(json.dumps(each) + "\n" for each in rows), encoding="utf-8")
    return token_pictures(folder)


def dot(picture, column: float, line: float):
    """The color in the middle of a cell, by the measures of the sheet: a cell of margin left, ¾ of a line above."""
    return picture[round((line + 0.75) * LINE * DPI), round((column + 1) * CELL * DPI)].astype(int)


def test_a_token_has_the_color_of_what_it_earned(tmp_path):
    picture = write(tmp_path, row(["    ", "    ", "    "], [1.0, 0.0, -0.25]))["tokens/rewards"]
    assert picture.dtype == np.uint8 and picture.shape[2] == 3
    line = round(len(picture) / (LINE * DPI) - 1.5)  # the tokens stand in the last one
    # alpha is half of the level; the level is the square root: full for 1, half for a quarter of it
    blue, orange = 255 - (255 - BLUE) * 0.5, 255 - (255 - ORANGE) * 0.25
    assert dot(picture, 2, line) == pytest.approx(blue, abs=2)
    assert dot(picture, 6, line).tolist() == [255, 255, 255]
    assert dot(picture, 10, line) == pytest.approx(orange, abs=2)
    # the bar: below what earns, above what costs
    assert dot(picture, 2, line + 0.47) == pytest.approx(BLUE, abs=6)
    assert dot(picture, 2, line - 0.47).tolist() == [255, 255, 255] == dot(picture, 10, line + 0.47).tolist()
    rows = [dot(picture, 10, line - x / 100) for x in range(36, 56)]  # as thin as two dots
    assert min(abs(color - ORANGE).max() for color in rows) <= 12


def test_advantages_have_a_picture_only_with_a_critic(tmp_path):
    assert set(write(tmp_path, row(["a"], [1.0]))) == {"tokens/rewards", "tokens/advantages"}
    assert set(write(tmp_path, row(["a"], [1.0], advantages=None))) == {"tokens/rewards"}
    assert token_pictures(tmp_path / "nothing") == {} == write(tmp_path)


def test_a_line_that_is_full_breaks_and_wide_letters_take_two_cells():
    assert list(laid_out(["ab", "", "c"], [1, 2, 3], 4)) == [Piece("ab", 0, 4, 2, 1), Piece("c", 2, 4, 1, 3)]
    full = "x" * (COLUMNS - 1)
    assert list(laid_out([full, "yz"], [0, 7], 0)) == [
        Piece(full, 0, 0, COLUMNS - 1, 0),
        Piece("y", COLUMNS - 1, 0, 1, 7),
        Piece("z", 0, 1, 1, 7),
    ]
    assert list(laid_out([full, "話"], [0, 7], 0))[1] == Piece("話", 0, 1, 2, 7)
    assert list(laid_out(["e\u0301!"], [1], 0)) == [Piece("e\u0301!", 0, 0, 2, 1)]


@pytest.mark.filterwarnings("error")
def test_no_text_breaks_the_picture(tmp_path):
    nasty = ["$x^", "\\frac{", "_", "\n", "\t", "\x1b[2J", "話", "\U0001f600", "\u202e", "", "<b>"]
    rows = [row(nasty, [float(i) for i in range(len(nasty))], silent={"9": "</s>"}, prompt="$" * 999)]
    rows += [row(["word "] * 1000, [1.0] * 1000), row([], [])]
    assert write(tmp_path, *rows)["tokens/rewards"].shape[0] > 200


def test_a_picture_does_not_grow_without_an_end(tmp_path, monkeypatch):
    monkeypatch.setattr(token_picture, "MAX_LINES", 30)
    picture = write(tmp_path, row(["x" * 100_000, "!"], [1.0, 0.0]))["tokens/rewards"]
    assert picture.shape[0] == pytest.approx(30.5 * LINE * DPI, abs=1)
