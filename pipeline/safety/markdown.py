"""Markdown in which every value is escaped: what a model, a data set or a setting says can only ever be text.

A template's `{{ value }}` becomes code within the line, unless the value is `Markdown` already. Code is the one place
where Markdown knows no elements, links, headings or entities; and it is written so that the value cannot end it.
"""

import json
import math
import re
import unicodedata
from pathlib import Path
from typing import Any

import jinja2

MAX_INLINE, MAX_BLOCK = 200, 800  # characters of a value that are shown
# Characters that turn the direction of writing, so that a line could read otherwise than it is.
_TURNING = dict.fromkeys([0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A)], "\ufffd")


class Markdown(str):
    """Text that is Markdown already. Made here and by templates alone, never from what a model or data set says."""


def inline(value: Any) -> Markdown:
    """A value as code within a line or a cell of a table.

    A pipe would end the cell even in code, and escapes of it are read differently by different renderers: it stands
    between two pieces of code as a character reference.
    """
    text = visible(" ".join(str(value).split()))
    text = text if len(text) <= MAX_INLINE else text[:MAX_INLINE] + " …"
    return Markdown("&#124;".join(_code(piece.strip()) for piece in text.split("|")) or "–")


def block(value: Any, language: str = "text") -> Markdown:
    """A value as a block of code. The fence is longer than any row of backticks in it, so it cannot be closed."""
    text = re.sub("\r\n?|[\u2028\u2029]", "\n", str(value))
    text = visible(text if len(text) <= MAX_BLOCK else text[:MAX_BLOCK] + " …")
    fence = "`" * max(3, _longest_run(text) + 1)
    return Markdown(f"{fence}{language}\n{text}\n{fence}")


def python(code: str) -> Markdown:
    """A block of Python. Give values to it through `quoted` only."""
    return block(code, "python")


def quoted(value: str) -> str:
    """A value as a Python string."""
    return json.dumps(value)


def figure(value: Any) -> Markdown:
    """A number with three significant digits, a whole one in full; – for none."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return Markdown("–")
    if isinstance(value, int) or abs(value) >= 1000:
        return Markdown(f"{value:,.0f}")
    return Markdown(f"{value:#.3g}" if abs(value) >= 1e-4 or value == 0 else f"{value:.1e}")


def visible(text: str) -> str:
    """The text with what cannot be seen (control characters, half characters, turns of direction) shown as �."""
    text = text.translate(_TURNING)
    return "".join("\ufffd" if c not in "\n\t" and unicodedata.category(c) in ("Cc", "Cs") else c for c in text)


def environment() -> jinja2.Environment:
    """Templates that escape for Markdown as autoescape does for HTML; a name that is missing is an error."""
    env = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parents[1] / "templates"),
        undefined=jinja2.StrictUndefined,
        finalize=lambda value: value if isinstance(value, Markdown) else inline(value),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    env.filters |= {"block": block, "figure": figure, "python": python}
    return env


def _code(text: str) -> str:
    if not text:
        return ""
    ticks = "`" * (_longest_run(text) + 1)
    pad = " " if text[0] == "`" or text[-1] == "`" else ""  # one space at each end is taken off again
    return f"{ticks}{pad}{text}{pad}{ticks}"


def _longest_run(text: str) -> int:
    return max(map(len, re.findall("`+", text)), default=0)
