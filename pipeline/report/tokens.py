"""Which token earned what: the section about `tokens.jsonl` and `shifts.json` (stages/token_credit.py writes them).

Every number of a token goes into the page once, as text; the color of each channel is a whole number from -100 to 100
in a CSS variable, so that the page switches between channels without a script.
"""

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.errors import UserError
from pipeline.safety import shapes
from pipeline.safety.reading import read_json, read_lines
from rewards.text import text_of

# The names of pipeline/stages/token_credit.py, which would bring torch and TRL with it.
TOKENS, SHIFTS = "tokens.jsonl", "shifts.json"
MAX_TOKENS = 1800  # on the page; completions that go beyond it are left out, and the page says so
MAX_PROMPT = 600  # characters of a prompt
STEPS = (-100, -50, 0, 50, 100)  # of the legend


class Channel(NamedTuple):
    """One way to color the tokens."""

    name: str
    variable: str  # of CSS
    title: str
    more: str  # what a bar below the token means
    less: str  # what a bar above it means
    meaning: str
    centered: bool = False  # around the mean of what is shown, rather than around 0


CHANNELS = (
    Channel(
        "rewards",
        "r",
        "Reward",
        "earns",
        "costs",
        "What the token is paid, as in training: its share of the score (the rest comes at the last token), "
        "less the price of leaving the start.",
    ),
    Channel(
        "values",
        "v",
        "Value",
        "above the mean",
        "below the mean",
        "What the critic expects of the rest of the text, before it sees the token.",
        centered=True,
    ),
    Channel(
        "advantages",
        "a",
        "Advantage",
        "better than expected",
        "worse than expected",
        "How much better than expected it went from this token on. PPO makes tokens above 0 more likely.",
    ),
    Channel(
        "kl",
        "k",
        "KL",
        "likelier now",
        "likelier before",
        "How far the policy has moved from its start at this token, in nats: log of probability after over before.",
    ),
    Channel(
        "shift",
        "s",
        "Probability shift",
        "likelier now",
        "likelier before",
        "Probability of the token after training less before, given the same text so far.",
    ),
)
# The numbers of a token in the order in which the page's script reads them.
NUMBERS = ("rewards", "scores", "values", "advantages", "kl", "probs_before", "probs_after")


def token_section(run_dir: str | Path) -> dict[str, Any] | None:
    """What templates/tokens.html.j2 shows as `tokens`; None when the run has no `tokens.jsonl` with rows.

    Raises:
        UserError: when a file is not what pipeline/stages/token_credit.py writes.
    """
    rows = read_rows(Path(run_dir, TOKENS))
    if not rows:
        return None
    shown = _fitting(rows)
    channels = [channel for channel in CHANNELS if channel.name == "shift" or rows[0][channel.name] is not None]
    scales = {channel: scale(channel, shown) for channel in channels}
    if all(not any(row["scores"][:-1]) for row in shown):  # paid at the end: one token of each text has a color
        channels.sort(key=lambda channel: channel.name != "advantages")
    return {
        "channels": [
            channel._asdict() | {"legend": legend(channel, *scales[channel]), "first": i == 0}
            for i, channel in enumerate(channels)
        ],
        "rows": [_show(row, scales) for row in shown],
        "left_out": len(rows) - len(shown),
        "shifts": _read_shifts(Path(run_dir, SHIFTS)),
    }


def level(x: float, center: float, largest: float) -> int:
    """How strong a color is, -100 to 100: it grows with the square root, so that small numbers next to a large one
    (KL next to a score) can still be told from 0."""
    share = (x - center) / largest if largest else 0.0
    if not math.isfinite(share):  # of a file that somebody changed
        return 0
    return round(100 * math.copysign(math.sqrt(min(abs(share), 1.0)), share))


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of `tokens.jsonl`, with the shift of each token's probability; none when there is no such file."""
    rows = read_lines(path, shapes.TOKENS) if path.is_file() else []
    for row in rows:
        if any(row.get(name) is not None and len(row[name]) != len(row["tokens"]) for name in NUMBERS):
            raise UserError(f"{path} does not have one number for each token: run the stage again")
        row["shift"] = [q - p for p, q in zip(row["probs_before"], row["probs_after"], strict=True)]
    return rows


def _read_shifts(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    shifts = read_json(path, shapes.SHIFTS)
    for entry in shifts["gains"] + shifts["losses"]:
        entry["shown"] = visible(entry["token"])
        entry["example"]["context"] = entry["example"]["context"].lstrip()
    return shifts


def _fitting(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """As many rows as have at most `MAX_TOKENS` tokens in all, those of a kind together; if not even one fits, the
    first one, to be cut."""
    shown, total = [], 0
    for row in rows:
        if total + len(row["tokens"]) <= MAX_TOKENS:
            total += len(row["tokens"])
            shown.append(row)
    kinds = list(dict.fromkeys(row["why"] for row in rows))
    return sorted(shown, key=lambda row: kinds.index(row["why"])) or [rows[0]]


def scale(channel: Channel, rows: Sequence[dict[str, Any]]) -> tuple[float, float]:
    """The number without color, and the distance from it that has the full color."""
    numbers = [x for row in rows for x in row[channel.name][:MAX_TOKENS]]
    center = sum(numbers) / len(numbers) if channel.centered and numbers else 0.0
    return center, max((abs(x - center) for x in numbers), default=0.0)


def legend(channel: Channel, center: float, largest: float) -> list[dict[str, Any]]:
    """The steps of a scale: level, number, and what the outer ones mean."""
    return [
        {"level": step, "number": center + math.copysign((step / 100) ** 2 * largest, step), "word": word}
        for step, word in zip(STEPS, (channel.less, "", "", "", channel.more), strict=True)
    ]


def _show(row: dict[str, Any], scales: dict[Channel, tuple[float, float]]) -> dict[str, Any]:
    prompt = text_of(row["prompt"]).strip()
    return {
        "why": row["why"],
        "score": row["score"],
        "score_before": row["score_before"],
        "prompt": prompt if len(prompt) <= MAX_PROMPT else f"… {prompt[-MAX_PROMPT:]}",
        "cut": max(0, len(row["tokens"]) - MAX_TOKENS),
        "tokens": [_token(row, t, scales) for t in range(min(len(row["tokens"]), MAX_TOKENS))],
    }


def _token(row: dict[str, Any], t: int, scales: dict[Channel, tuple[float, float]]) -> dict[str, Any]:
    levels = ((channel.variable, level(row[channel.name][t], *scale)) for channel, scale in scales.items())
    return {
        "text": row["tokens"][t],
        "silent": row["silent"].get(str(t), "") if not row["tokens"][t] else "",
        "style": ";".join(f"--{variable}:{x}" for variable, x in levels if x),
        "numbers": " ".join("-" if row[name] is None else f"{row[name][t]:.3g}" for name in NUMBERS),
    }


def visible(token: str) -> str:
    """A token alone, with the spaces and line ends that it has made visible."""
    token = token.replace("\n", "⏎").replace("\t", "⇥")
    return re.sub(r"^ +| +$", lambda spaces: "␣" * len(spaces[0]), token)
