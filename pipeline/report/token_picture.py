"""What each token earned as pictures, for trackers and notebooks: the report's section about `tokens.jsonl`, still.

A token above the middle of the scale is blue with a bar below it, one below the middle is orange with a bar above it,
as on the page. The letters stand in cells of one width (two for those of Chinese, Japanese and Korean).
"""

import textwrap
import unicodedata
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from pipeline.report.numbers import number
from pipeline.report.tokens import CHANNELS, TOKENS, Channel, legend, level, read_rows, scale
from pipeline.safety.visible import visible
from rewards.text import text_of

PICTURED = ("rewards", "advantages")
COLUMNS = 100  # cells in a line
MAX_TOKENS = 120  # of a completion in a picture
MAX_PROMPT = 2 * COLUMNS  # letters of a prompt
MAX_LINES = 400  # of a picture
UP, DOWN = (20 / 255, 110 / 255, 200 / 255), (205 / 255, 85 / 255, 0.0)  # of the page's light theme
SIZE, DPI = 9, 120  # points of the letters; dots an inch
CELL, LINE = SIZE * 0.602 / 72, SIZE * 1.9 / 72  # inches; DejaVu Sans Mono is 0.602 em wide
# Fonts with Chinese, Japanese or Korean letters, where one is installed.
WIDE = ("Noto Sans CJK JP", "Noto Sans CJK SC", "Noto Sans CJK KR", "WenQuanYi Zen Hei", "Hiragino Sans", "SimHei")


class Piece(NamedTuple):
    """Letters of a token that stand in one line."""

    text: str
    column: int  # cell of its first letter
    line: int
    width: int  # cells
    strength: int  # -100 to 100, see `level`


def token_pictures(run_dir: str | Path) -> dict[str, np.ndarray]:
    """`tokens/rewards`, and with a critic `tokens/advantages`: what the chosen completions of a run earned token by
    token, uint8 (height, width, 3). Empty where the run has no `tokens.jsonl` with rows.

    Raises:
        UserError: when the file is not what pipeline/stages/token_credit.py writes.
    """
    rows = read_rows(Path(run_dir, TOKENS))
    chosen = [channel for channel in CHANNELS if channel.name in PICTURED] if rows else []
    channels = [channel for channel in chosen if rows[0][channel.name] is not None]
    return {f"tokens/{channel.name}": picture(channel, rows) for channel in channels}


def picture(channel: Channel, rows: list[dict[str, Any]]) -> np.ndarray:
    """All rows colored by one channel, uint8 (height, width, 3)."""
    center, largest = scale(channel, rows)
    sheet = Sheet()
    for text in textwrap.wrap(f"{channel.title}. {channel.meaning}", COLUMNS):
        sheet.put([text])
    steps = legend(channel, center, largest)
    words = [f"{channel.less} ", *(f" {number(step['number'])} " for step in steps), f" {channel.more}"]
    sheet.put(words, [0, *(step["level"] for step in steps), 0])
    for row in rows:
        sheet.line += 1
        before = "" if row["score_before"] is None else f" (before training {number(row['score_before'], 2)})"
        sheet.put([f"{row['why']} · score {number(row['score'], 2)}{before}"])
        sheet.put([one_line(text_of(row["prompt"]).strip(), MAX_PROMPT)])
        tokens = [text or row["silent"].get(str(t), "") for t, text in enumerate(row["tokens"][:MAX_TOKENS])]
        levels = [level(x, center, largest) for x in row[channel.name][:MAX_TOKENS]]
        more = len(row["tokens"]) - len(tokens)
        sheet.put([*map(one_line, tokens), f" … {more} more tokens" if more else ""], [*levels, 0])
    return sheet.paint()


def one_line(text: str, most: int | None = None) -> str:
    """`text` without what would break a line; of a longer one the last `most` letters, where a prompt asks."""
    text = visible(text).replace("\n", "⏎")
    return text if most is None or len(text) <= most else f"… {text[-most:]}"


def cells(letter: str) -> int:
    """0, 1 or 2: how wide a letter stands in a terminal."""
    if unicodedata.combining(letter) or letter == "\u200d":
        return 0
    return 2 if unicodedata.east_asian_width(letter) in "WF" else 1


def laid_out(texts: list[str], levels: list[int], line: int) -> Iterator[Piece]:
    """The texts one after the other from `line` on, broken where a line is full."""
    column = 0
    for text, strength in zip(texts, levels, strict=True):
        start, piece = column, ""
        for letter in text:
            wide = cells(letter)
            if column + wide > COLUMNS:
                if piece:
                    yield Piece(piece, start, line, column - start, strength)
                line, column, start, piece = line + 1, 0, 0, ""
            piece, column = piece + letter, column + wide
        if piece:
            yield Piece(piece, start, line, column - start, strength)


class Sheet:
    """Text that has been laid out, and the line that comes next."""

    def __init__(self):
        self.line, self.pieces = 0, []

    def put(self, texts: list[str], levels: list[int] | None = None) -> None:
        """Texts one after the other, from the next line on; without levels they have no color."""
        pieces = list(laid_out(texts, levels or [0] * len(texts), self.line))
        self.pieces += [piece for piece in pieces if piece.line < MAX_LINES]
        self.line = (pieces[-1].line if pieces else self.line) + 1

    def paint(self) -> np.ndarray:
        """The picture, uint8 (height, width, 3)."""
        lines = min(self.line, MAX_LINES)
        figure = Figure(figsize=((COLUMNS + 2) * CELL, (lines + 0.5) * LINE), dpi=DPI, facecolor="white")
        canvas = FigureCanvasAgg(figure)
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_axis_off()
        axes.set_xlim(-1, COLUMNS + 1)
        axes.set_ylim(lines - 0.25, -0.75)
        installed = set(font_manager.get_font_names())
        fonts = ["DejaVu Sans Mono", *(name for name in WIDE if name in installed)]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph .* missing from")  # of a writing that no font here has
            for piece in self.pieces:
                _paint_piece(axes, piece, fonts)
            canvas.draw()
        return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _paint_piece(axes: Axes, piece: Piece, fonts: list[str]) -> None:
    share = abs(piece.strength) / 100
    if share:
        color = UP if piece.strength > 0 else DOWN
        axes.add_patch(
            Rectangle((piece.column, piece.line - 0.4), piece.width, 0.8, color=color, alpha=share / 2, lw=0)
        )
        bar = 0.16 * share  # of a line; half of it lies in the cell
        top = piece.line + 0.4 if piece.strength > 0 else piece.line - 0.4 - bar
        axes.add_patch(Rectangle((piece.column, top), piece.width, bar, color=color, lw=0))
    axes.text(piece.column, piece.line, piece.text, family=fonts, size=SIZE, va="center", parse_math=False)
