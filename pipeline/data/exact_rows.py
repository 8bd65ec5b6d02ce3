"""Columns that read back as they were written, whatever stands in them.

Arrow gives every row of a column one type: of `{"city": "Oslo"}` and `{"a": 2}` it makes two dicts with both keys, the
other one null, and of 1 and 0.5 two floats. The nulls would stand in the loss, and in what rewards read. A column that
Arrow would change so is kept as JSON, in the type that datasets has for it; all others stay as they are.
"""

import importlib
import itertools
import json
from collections.abc import Callable, Iterable
from typing import Any

import pyarrow
from datasets import Dataset, Features, Json, List, Value, concatenate_datasets
from transformers import PreTrainedTokenizerBase

DEEPEST = 8  # dicts in dicts as Arrow's own type; to put two such tables together takes datasets 2^depth steps
PIECE = 10_000  # rows of a large data set that stand in memory as Python's objects at one time
# What datasets raises for values of no type; RecursionError: lists in lists, dozens of them.
MISFITS = (pyarrow.ArrowException, TypeError, ValueError, OverflowError, RecursionError)


def exact(columns: dict[str, list[Any]]) -> Dataset:
    """A data set of these columns in which every value reads back as it is: keys, their order, kinds of number.

    Raises one of `MISFITS` for values that have no common type and no dicts in them.
    """
    return Dataset.from_dict(columns, Features({name: _type(values) for name, values in columns.items()}))


def exact_rows(rows: list[dict[str, Any]]) -> Dataset:
    """`exact` of rows; a column that a row lacks is None there."""
    names = dict.fromkeys(name for row in rows for name in row)
    return exact({name: [row.get(name) for row in rows] for name in names})


def from_rows(rows: Iterable[dict[str, Any]]) -> Dataset | None:
    """The rows that an iterator gives, of which a piece at a time stands in memory as Python's objects.

    None without a row. Raises one of `MISFITS` for a column that is not of one type throughout.
    """
    rest, pieces = iter(rows), []
    while piece := list(itertools.islice(rest, PIECE)):
        pieces.append(exact_rows(piece))
        if len(pieces[-1]) < len(piece):
            raise ValueError("rows without a column, which a table cannot hold by themselves")
    return _joined(pieces) if pieces else None


def in_pieces(rows: Dataset, change: Callable[[Dataset], Dataset]) -> Dataset:
    """`change`, which looks at each row by itself, of all rows; a piece at a time, as Python's objects are large."""
    starts = range(0, len(rows), PIECE)
    pieces = [change(rows.select(range(first, min(first + PIECE, len(rows))))) for first in starts]
    try:
        return _joined(pieces)
    except MISFITS:  # a column that has another type in a later piece
        return change(rows)


def _joined(pieces: list[Dataset]) -> Dataset:
    """The pieces as one data set. Raises one of `MISFITS` where a column is not of one type throughout: dicts of other
    keys, or in another order, would be laid over each other as Arrow does it within a piece."""
    try:
        whole = concatenate_datasets(pieces)
    except AttributeError as error:  # how datasets says that a column is null in one piece and has dicts in another
        raise ValueError(str(error)) from error
    for piece in pieces:
        for name, kind in piece.features.items():
            if not _fits(kind, whole.features[name]):
                raise ValueError(f"column {name} is {kind} here and {whole.features[name]} elsewhere")
    return whole


def _fits(part: Any, whole: Any) -> bool:
    """Whether values of the type `part` read back as they were from a column of the type `whole`."""
    if part == Value("null"):
        return True
    if isinstance(part, List) and isinstance(whole, List):
        return _fits(part.feature, whole.feature)
    if isinstance(part, dict) and isinstance(whole, dict):
        return list(part) == list(whole) and all(map(_fits, part.values(), whole.values()))
    return bool(part == whole)


def _type(values: list[Any]) -> Any:
    kinds = {type(value) for value in values} - {type(None)}
    if kinds == {str}:
        return Value("string")
    try:
        plain = Dataset.from_dict({"column": values})
        if len(kinds) < 2 and not kinds & {list, dict}:
            return plain.features["column"]
        kept = _dicts(plain.features["column"]) <= DEEPEST and all(map(_same, values, plain["column"]))
    except UnicodeError:  # half a character, of which no tokenizer makes anything
        raise
    except MISFITS:
        if len(kinds) > 1 or not any(map(_has_dict, values)):
            raise
        kept = False
    return plain.features["column"] if kept else Json()


def _dicts(kind: Any) -> int:
    """How many dicts lie in each other in a type."""
    if isinstance(kind, List):
        return _dicts(kind.feature)
    return 1 + max(map(_dicts, kind.values()), default=0) if isinstance(kind, dict) else 0


def _same(written: Any, read: Any) -> bool:
    return json.dumps(written) == json.dumps(read)  # unlike ==, it tells 1 from 1.0 and sees the order of keys


def _has_dict(value: Any) -> bool:
    return isinstance(value, dict) or isinstance(value, list) and any(map(_has_dict, value))


def _dumps(value: Any, **options: Any) -> str:
    return json.dumps(value, default=_plain, **options)


def _plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else str(value)


# datasets writes this type with pandas' ujson, which keeps ten digits of a number and reads back half of all numbers
# with another last bit. Python's own json keeps all of them.
for _name in ("utils.json", "features.features", "arrow_writer", "packaged_modules.json.json"):
    _module: Any = importlib.import_module(f"datasets.{_name}")
    _module.ujson_dumps, _module.ujson_loads = _dumps, json.loads


def begin_once(rows: Dataset, tokenizer: PreTrainedTokenizerBase) -> Dataset:
    """The rows without the begin-of-text token before their texts, where the tokenizer itself puts one there too."""
    bos = tokenizer.bos_token
    if not bos or tokenizer("a")["input_ids"][:1] != [tokenizer.bos_token_id]:
        return rows
    first = ("prompt",) if "prompt" in rows.column_names else ("text", "chosen", "rejected")
    texts = {name: list(rows[name]) for name in first if name in rows.column_names}
    once = {name: [x.removeprefix(bos) if isinstance(x, str) else x for x in column] for name, column in texts.items()}
    return rows if once == texts else exact(rows.to_dict() | once)
