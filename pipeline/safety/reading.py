"""Files that may hold anything: read so that what is wrong with them becomes one sentence.

A run folder, a recipe or an adapter may be half written, come from another version, or from somebody else. JSON and
YAML are read as data only, and checked against a shape before anybody relies on it:

    float, int, str, bool, None, dict    a value of that type; a whole number is a float too, true is no number
    (a, b)                               one of several
    [a]                                  a list of them
    {str: a}                             a mapping from text to them
    {"key": a, "key?": b}                a mapping that has `key`, and perhaps `key?`; further keys are free
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from pipeline.errors import UserError

NUMBER = (float, bool, None)  # a figure that may be missing; where true stands it counts as missing
MESSAGES = [dict]
TEXT = (str, MESSAGES, None)  # a text, or a conversation
_SHOWN = 60  # characters of a key in a message
_LARGEST_YAML = 100_000  # values, those that an alias stands for counted each time
_WORDS = {
    float: "a number",
    int: "a whole number",
    str: "text",
    bool: "true or false",
    None: "empty",
    dict: "a mapping",
}


def read_text(path: Path) -> str:
    """The text of a file, or a `UserError` that names it."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8 text: it is damaged, or not what its name says") from None
    except (OSError, ValueError) as error:  # ValueError: no path at all
        raise UserError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from None


def parse_json(text: str, where: str) -> Any:
    """The value that a text in JSON stands for. Whole numbers of more than 18 digits become floats."""
    try:
        return json.loads(text, parse_int=_whole_number)
    except json.JSONDecodeError as error:
        raise UserError(f"{where} is not JSON: {error.msg} (line {error.lineno}, column {error.colno})") from None
    except RecursionError:
        raise UserError(f"{where} is not JSON that can be read: it is nested too deeply") from None


def read_json(path: Path, shape: Any = dict) -> Any:
    """The value in a file of JSON, an object unless `shape` says otherwise; or a `UserError` that names the file."""
    return checked(parse_json(read_text(path), str(path)), shape, str(path))


def read_lines(path: Path, shape: Any = dict, cut: bool = False) -> list[Any]:
    """The rows of a file of JSON lines, objects unless `shape` says otherwise.

    Args:
        cut: the last line may be half a line, as a kill leaves it; it is left out.
    """
    rows = []
    # not splitlines, which also splits at characters that JSON leaves as they are
    lines = [(number, line) for number, line in enumerate(read_text(path).split("\n"), start=1) if line.strip()]
    for number, line in lines:
        where = f"{path}, line {number}"
        try:
            rows.append(parse_json(line, where))
        except UserError:
            if cut and number == lines[-1][0]:
                break
            raise
        checked(rows[-1], shape, where)
    return rows


def parse_yaml(text: str, where: str, loader: type[yaml.SafeLoader] = yaml.SafeLoader) -> Any:
    """The value that a text in YAML stands for; tags that would make Python objects are errors.

    Args:
        loader: a SafeLoader, perhaps a stricter one.
    """
    try:
        reader = loader(text)
        try:
            node = reader.get_single_node()
            if node is None:
                return None
            _check_size(node)
            return reader.construct_document(node)
        finally:
            reader.dispose()
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    except RecursionError:
        raise UserError(f"{where} is not valid YAML: it is nested too deeply") from None
    except Exception as error:  # PyYAML trusts the tags of a file: `!!bool x` is a KeyError, `!!int ""` an IndexError
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        reason = getattr(error, "problem", None) or type(error).__name__
        raise UserError(f"{where}{line} is not valid YAML: {reason}") from None


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a file of YAML; empty when the file holds something else, such as nothing."""
    found = parse_yaml(read_text(path), str(path))
    return {str(key): value for key, value in found.items()} if isinstance(found, dict) else {}


def checked(value: Any, shape: Any, where: str) -> Any:
    """`value`, which is to have that shape.

    Raises:
        UserError: it does not; the message says where the first difference is.
    """
    if problem := next(_misfits(value, shape, ""), None):
        raise UserError(f"{where}: {problem}; it is damaged or of another version, so make it again")
    return value


def _misfits(value: Any, shape: Any, at: str) -> Iterator[str]:
    if isinstance(shape, tuple):
        problems = [next(_misfits(value, part, at), None) for part in shape]
        if all(problems):
            inner = [p for p, part in zip(problems, shape, strict=True) if type(part) is type(value)]
            yield (
                inner[0]
                if inner
                else f"{at or 'it'} is {_kind(value)}, but wants {' or '.join(map(_describe, shape))}"
            )
    elif isinstance(shape, list) and isinstance(value, list):
        for index, item in enumerate(value):
            yield from _misfits(item, shape[0], f"{at}[{index}]")
    elif isinstance(shape, dict) and isinstance(value, dict):
        if str in shape:
            for key, item in value.items():
                yield from _misfits(item, shape[str], _under(at, key))
        for key in (key for key in shape if key is not str):
            name = key.removesuffix("?")
            if name in value:
                yield from _misfits(value[name], shape[key], _under(at, name))
            elif name == key:
                yield f"{_under(at, name)} is missing"
    elif not _is_plain(value, shape):
        yield f"{at or 'it'} is {_kind(value)}, but wants {_describe(shape)}"


def _is_plain(value: Any, shape: Any) -> bool:
    if isinstance(shape, list | dict):
        return False
    if shape in (float, int) and isinstance(value, bool):
        return False
    return value is None if shape is None else isinstance(value, int | float if shape is float else shape)


def _under(at: str, key: Any) -> str:
    key = str(key) if len(str(key)) <= _SHOWN else f"{str(key)[:_SHOWN]}…"
    return f"{at}.{key}" if at else key


def _describe(shape: Any) -> str:
    if isinstance(shape, list):
        return "a list"
    return "a mapping" if isinstance(shape, dict) else _WORDS[shape]


def _kind(value: Any) -> str:
    found = next((word for kind, word in _WORDS.items() if kind is type(value)), None)
    return found or ("empty" if value is None else "a list" if isinstance(value, list) else type(value).__name__)


def _whole_number(digits: str) -> int | float:
    return int(digits) if len(digits) <= 18 else float(digits)


def _check_size(root: yaml.Node) -> None:
    """Raises `UserError` for a few lines whose aliases stand for millions of values, or for themselves."""
    sizes: dict[int, int | None] = {}  # None: being counted

    def size(node: yaml.Node) -> int:
        if id(node) in sizes:
            if sizes[id(node)] is None:
                raise UserError(f"line {node.start_mark.line + 1} has an alias of itself in it")
            return sizes[id(node)]
        sizes[id(node)] = None
        parts = node.value if isinstance(node, yaml.CollectionNode) else []
        parts = [part for pair in parts for part in pair] if isinstance(node, yaml.MappingNode) else parts
        sizes[id(node)] = total = 1 + sum(map(size, parts))
        if total > _LARGEST_YAML:
            raise UserError(f"line {node.start_mark.line + 1} begins more than {_LARGEST_YAML:,} values")
        return total

    size(root)
