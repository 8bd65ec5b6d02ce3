"""Rows from a file, a folder or the Hub, with an error that names file and line when something is broken."""

import bisect
import csv
import gzip
import io
import json
import sys
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
from datasets import Dataset, DatasetDict

from pipeline.data.exact_rows import MISFITS, PIECE, exact, exact_rows, from_rows
from pipeline.data.parallel_text import pair_of, read_pair
from pipeline.errors import UserError, shortened
from pipeline.models.folders import is_hub_name
from pipeline.safety.visible import visible
from pipeline.watching.progress import Count, counting, uncounted

SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet")


def read(source: str, split: str = "train", config: str | None = None) -> Dataset:
    """The rows of a file, two files of parallel text, a local folder (`save_to_disk` or data files) or a Hub data set.

    Raises:
        UserError: nothing there, nothing in it, or something that cannot be read; with file and line.
    """
    path = Path(source)
    if path.is_dir():
        found = _read_folder(path, split)
    elif path.exists() or data_suffix(path):
        found = read_file(path)
    elif pair := pair_of(source):
        found = to_dataset(read_pair(pair, lambda file: _text(_content(file), file)), source)
    elif is_hub_name(source):
        found = _read_hub(source, split, config)
    else:
        raise UserError(f"dataset {source}: there is no such file or folder, and it cannot be a Hub name")
    if len(found) == 0:
        raise UserError(f"dataset {source} has no rows")
    return found


def data_suffix(path: Path) -> str | None:
    """`.jsonl` of `a.jsonl` and of `a.jsonl.gz`; None for a file that is no data."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes[-1:] == [".gz"]:
        suffixes.pop()
    return suffixes[-1] if suffixes and suffixes[-1] in SUFFIXES else None


def read_file(path: Path) -> Dataset:
    """The rows of one data file, plain or gzipped."""
    suffix = data_suffix(path)
    if not path.is_file():
        raise UserError(f"dataset {path}: there is no such file{_beside(path)}")
    if suffix is None:
        raise UserError(f"dataset {path}: unknown kind of file; wants one of {' '.join(SUFFIXES)}, also with .gz")
    if suffix == ".jsonl":
        return _read_jsonl(path)
    if suffix == ".parquet" and path.suffix.lower() != ".gz" and path.stat().st_size:
        return _read_parquet(path, str(path))
    content = _content(path)
    if not content.strip():
        raise UserError(f"dataset {path} is empty")
    if suffix == ".parquet":
        return _read_parquet(path, io.BytesIO(content))
    text = _text(content, path)
    if suffix in (".csv", ".tsv"):
        rows = list(_csv_rows(text, path, "\t" if suffix == ".tsv" else ","))
    else:
        rows = _json_rows(text, path)
    if not rows:
        raise UserError(f"dataset {path} has no rows")
    return to_dataset(rows, str(path))


def _read_parquet(path: Path, source: str | io.BytesIO) -> Dataset:
    try:
        return Dataset(pyarrow.parquet.read_table(source))
    except (pyarrow.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise UserError(
            f"dataset {path} is not a readable Parquet file: {reason}; copy or download it again"
        ) from None


def to_dataset(rows: list[dict[str, Any]], name: str) -> Dataset:
    """Rows as a `Dataset`, each value as it was; a column that a row lacks is None there. Columns of mixed types are
    named."""
    columns = dict.fromkeys(key for row in rows for key in row)
    try:
        return exact_rows(rows)
    except MISFITS:
        pass
    for key in columns:
        first = next((row[key] for row in rows if row.get(key) is not None), None)
        for number, row in enumerate(rows, start=1):
            value = row.get(key)
            if value is not None and type(value) is not type(first):
                raise UserError(
                    f"dataset {name}, row {number}: column {key} is {_kind(value)}, but {_kind(first)} before; "
                    "every row wants the same kind of value"
                )
    for key in columns:
        values = [row.get(key) for row in rows]
        if reason := _misfit(values):
            # the longest beginning that fits: whatever begins with a misfit is one too
            at = bisect.bisect_left(range(len(rows)), True, key=lambda last: bool(_misfit(values[: last + 1]))) + 1
            if isinstance(reason, UnicodeEncodeError):
                half = ascii(reason.object[reason.start])
                raise UserError(
                    f"dataset {name}, row {at}: column {key} has half a character ({half}), which is no text: mend "
                    "or remove it"
                )
            raise UserError(
                f"dataset {name}, row {at}: the values of column {key} do not fit one type "
                f"({str(reason).splitlines()[0]}); every row wants the same kind of value"
            )
    raise UserError(f"dataset {name}: the rows do not fit one table")


def _misfit(values: list[Any]) -> Exception | None:
    """Why the values do not make one column, or None."""
    try:
        exact({"column": values})
    except MISFITS as error:
        return error
    return None


def _kind(value: Any) -> str:
    words = {str: "text", bool: "true or false", int: "a number", float: "a number", list: "a list", dict: "a mapping"}
    return words.get(type(value), type(value).__name__)


def _content(path: Path) -> bytes:
    with _readable(path), gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb") as file:
        return file.read()


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (gzip.BadGzipFile, EOFError, OSError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        whole = "; is the file whole? Copy or download it again" if path.suffix.lower() == ".gz" else ""
        raise UserError(f"dataset {path} cannot be read: {reason}{whole}") from None
    except zlib.error as error:
        raise UserError(f"dataset {path} cannot be unpacked: {error}; copy or download it again") from None


def _text(content: bytes, path: Path) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _no_utf8(path, content.count(b"\n", 0, error.start) + 1) from None


def _no_utf8(path: Path, line: int) -> UserError:
    return UserError(f"dataset {path}, line {line} is not UTF-8 text: save the file as UTF-8")


def _read_jsonl(path: Path) -> Dataset:
    """Rows of a JSON-lines file; where its columns are not of one type throughout, all rows have to be looked at."""
    with counting(f"reading {visible(path.name)}, bytes", path.stat().st_size) as read:
        try:
            found = from_rows(_jsonl_rows(_lines(path, read), path))
        except MISFITS:
            found = None  # named by `to_dataset`
    rows = [] if found is not None else list(_jsonl_rows(_lines(path), path))
    if found is None and not rows:
        raise UserError(f"dataset {path} is empty")
    return to_dataset(rows, str(path)) if found is None else found


def _lines(path: Path, read: Count = uncounted) -> Iterator[str]:
    """The lines of a text file, plain or gzipped, one at a time; not split where JSON allows a separator in a text.

    Args: read: is told now and then how many more bytes of the file were read.
    """
    with _readable(path), path.open("rb") as raw, gzip.open(raw) if path.suffix.lower() == ".gz" else raw as file:
        told = 0
        for number, line in enumerate(file, start=1):
            if number % PIECE == 0:
                read((at := raw.tell()) - told)
                told = at
            try:
                yield line.decode("utf-8-sig")  # where files were put together, each has its mark
            except UnicodeDecodeError:
                raise _no_utf8(path, number) from None


def _jsonl_rows(lines: Iterable[str], path: Path) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(lines, start=1):
        if line.strip():
            yield _object(_json(line, f"dataset {path}, line {number}"), f"dataset {path}, line {number}")


def _json_rows(text: str, path: Path) -> list[dict[str, Any]]:
    if text.lstrip().startswith("{"):
        try:
            whole = _DECODER.decode(text.rstrip())
        except (ValueError, RecursionError):  # ValueError: no JSON, a key twice, or a number of thousands of digits
            return list(_jsonl_rows(text.split("\n"), path))
        if not isinstance(whole.get("data"), list):
            return [whole]
        whole = whole["data"]
    else:
        whole = _json(text, f"dataset {path}")
    if not isinstance(whole, list):
        raise UserError(f"dataset {path} wants a list of objects, one for each row")
    return [_object(row, f"dataset {path}, row {number}") for number, row in enumerate(whole, start=1)]


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON, in which each key stands once: of two values one would be lost."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {shortened(repr(twice))} stands twice in one object")
    return found


_DECODER = json.JSONDecoder(object_pairs_hook=_unique)


def _json(text: str, where: str) -> Any:
    try:
        return _DECODER.decode(text)
    except json.JSONDecodeError as error:
        place = (
            f" (line {error.lineno} of it, column {error.colno})" if error.lineno > 1 else f" (column {error.colno})"
        )
        raise UserError(f"{where} is not valid JSON: {error.msg}{place}") from None
    except (RecursionError, ValueError) as error:
        raise UserError(f"{where} is not valid JSON: {error}") from None


def _object(row: Any, where: str) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise UserError(f'{where} is {_kind(row)}, not an object such as {{"prompt": "...", "completion": "..."}}')
    return row


def _csv_rows(text: str, path: Path, delimiter: str) -> Iterator[dict[str, str]]:
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    try:
        for row in reader:
            if not row:
                continue
            if header is None:
                header = [name.strip() for name in row]
                if "" in header or len(set(header)) < len(header):
                    raise UserError(f"dataset {path}, line {reader.line_num}: column names must be given and differ")
            elif len(row) != len(header):
                raise UserError(
                    f"dataset {path}, line {reader.line_num} has {len(row)} fields, but there are {len(header)} "
                    "columns; a field with a comma or a line break in it wants quotes around it"
                )
            else:
                yield dict(zip(header, row, strict=True))
    except csv.Error as error:
        raise UserError(f"dataset {path}, line {reader.line_num} is not valid CSV: {error}") from None


def _read_folder(folder: Path, split: str) -> Dataset:
    if any((folder / name).is_file() for name in ("dataset_dict.json", "state.json", "dataset_info.json")):
        try:
            found = datasets.load_from_disk(str(folder))
        except Exception as error:
            raise UserError(f"dataset {folder} cannot be read: {' '.join(str(error).split())[:200]}") from None
        return _pick(found, split, str(folder))
    files = sorted(path for path in folder.iterdir() if path.is_file() and data_suffix(path))
    if not files:
        raise UserError(f"dataset {folder} holds no data: wants files with {' '.join(SUFFIXES)}")
    chosen = [path for path in files if path.name.startswith(split)] or files
    if len(chosen) > 1:
        names = ", ".join(path.name for path in chosen[:6])
        raise UserError(f"dataset {folder} holds several files ({names}): name one of them, e.g. {chosen[0]}")
    return read_file(chosen[0])


def _read_hub(name: str, split: str, config: str | None) -> Dataset:
    try:
        found = datasets.load_dataset(name, config)
    except Exception as error:  # the Hub client raises many kinds
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"dataset {name} is no file or folder here, and the Hub does not give it: {reason}") from None
    return _pick(found, split, name)


def _pick(found: Dataset | DatasetDict, split: str, name: str) -> Dataset:
    if isinstance(found, Dataset):
        return found
    if split not in found:
        raise UserError(f"dataset {name} has no split {split}; it has {', '.join(found)}")
    return found[split]


def _beside(path: Path) -> str:
    import difflib

    names = [item.name for item in path.parent.iterdir()] if path.parent.is_dir() else []
    close = difflib.get_close_matches(path.name, names, n=1)
    return f", did you mean {path.parent / close[0]}?" if close else ""
