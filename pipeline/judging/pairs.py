"""Which completions are compared, in which order, and on which side each stands."""

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.data.readers import read
from pipeline.errors import UserError
from pipeline.runs.folder import write_aside
from pipeline.safety.reading import read_json
from rewards import text_of

Text = str | list[dict[str, Any]]  # text, or messages


class Pair(NamedTuple):
    """One prompt and the completions of the two columns."""

    prompt: Text
    first: Text
    second: Text


class Pairs(NamedTuple):
    """What is judged: the same for every judge, in the order in which it is shown."""

    columns: tuple[str, str]  # names of first and second, e.g. before and after
    seed: int
    identical: int  # rows left out because their two completions are the same
    pairs: list[Pair]

    def sides(self, judge: str) -> list[bool]:
        """For each pair, whether the second column stands on the left: for half of them, drawn for each judge."""
        second_left = [number % 2 == 0 for number in range(len(self.pairs))]
        random.Random(f"sides {self.seed} {judge}").shuffle(second_left)
        return second_left


def load(samples: str | None, path: Path, columns: Sequence[str], seed: int) -> Pairs:
    """The pairs of `samples`, in an order drawn from `seed`; kept in `path`, so that verdicts never lose their texts.

    Without `samples`, those that lie in `path` already.

    Raises:
        UserError: nothing to read, a column that is missing or no text, no two different completions, or other pairs
            than those that lie in `path`.
    """
    if samples is None:
        if not path.is_file():
            raise UserError(
                "samples is not set: name the file of completions, e.g. --samples runs/tiny/ppo/samples.jsonl"
            )
        return _parse(read_json(path), path)
    found = _from_samples(samples, columns, seed)
    if path.exists():
        if _parse(read_json(path), path) != found:
            raise UserError(
                f"{path.parent} holds verdicts on other pairs than {samples} now gives (other completions, columns or "
                "seed): give another --output_dir"
            )
        return found
    path.parent.mkdir(parents=True, exist_ok=True)
    pairs = [pair._asdict() for pair in found.pairs]
    write_aside(path, json.dumps(found._replace(pairs=pairs)._asdict(), ensure_ascii=False, indent=1) + "\n")
    return found


def _from_samples(samples: str, columns: Sequence[str], seed: int) -> Pairs:
    rows = read(samples)
    pairs, identical = [], 0
    for number, row in enumerate(rows, start=1):
        pair = Pair(*(_text(row, column, f"{samples}, row {number}") for column in ("prompt", *columns)))
        if text_of(pair.first).strip() == text_of(pair.second).strip():
            identical += 1
        else:
            pairs.append(pair)
    if not pairs:
        raise UserError(f"{samples}: the two completions are the same in every row, so there is nothing to judge")
    random.Random(f"order {seed}").shuffle(pairs)
    return Pairs(tuple(columns), seed, identical, pairs)


def _text(row: dict[str, Any], column: str, where: str) -> Text:
    """What stands in a column; in the rows of an evaluation (`candidates`), what a candidate said: `ppo`, or
    `ppo.greedy` for another decoding than sampled."""
    if column in row:
        value = row[column]
    else:
        candidates = row.get("candidates")
        candidates = candidates if isinstance(candidates, dict) else {}
        name, _, decoding = column.partition(".")
        if name not in candidates:
            have = ", ".join([*(key for key in row if key != "candidates"), *candidates])
            raise UserError(f"{where} has no column {column} (it has {have}): name two with --columns")
        said = (candidates[name] or {}).get(decoding or "sampled") or {}
        value = said.get("completion") if isinstance(said, dict) else said
    if not _is_text(value):
        raise UserError(f"{where}: {column} is neither text nor messages")
    return value


def _is_text(value: Any) -> bool:
    return isinstance(value, str) or (
        isinstance(value, list)
        and bool(value)
        and all(
            isinstance(m, dict) and isinstance(m.get("content"), str) and isinstance(m.get("role"), str) for m in value
        )
    )


def _parse(found: dict[str, Any], path: Path) -> Pairs:
    try:
        pairs = [Pair(**pair) for pair in found["pairs"]]
        columns = tuple(found["columns"])
        if not all(_is_text(text) for pair in pairs for text in pair) or not all(isinstance(x, str) for x in columns):
            raise ValueError
        return Pairs(columns, int(found["seed"]), int(found["identical"]), pairs)
    except (KeyError, TypeError, ValueError, OverflowError):
        raise UserError(f"{path} is not a list of pairs that `make judge` wrote: give another --output_dir") from None
