"""Rows of any form to a prompt and a completion, or to a pair: `prompt_template: "Translate: {source}\\n"`.

`{name}` in a template stands for the row's column of that name, `{name[0]}` for the first entry of a list. A list of
texts is written one to a line, a number as it is. Braces around anything else stay as they are, so code and JSON can
stand in a template. The columns themselves are kept, for the rewards.
"""

import difflib
import re
from collections.abc import Callable
from typing import Any

from datasets import Dataset

from pipeline.errors import UserError

FIELD = re.compile(r"\{([A-Za-z_]\w*)(?:\[(\d+)\])?\}")
ROLES = {"prompt": "user", "completion": "assistant", "chosen": "assistant", "rejected": "assistant"}
TEMPLATES = {column: f"{column}_template" for column in ROLES}


def fill_templates(rows: Dataset, args: Any, name: str) -> Dataset:
    """`rows` with the columns that the templates of `args` (a DataArguments) make, or as they are.

    A row in which a column of the template is missing (None) gets an empty text, which is dropped and counted later.

    Raises:
        UserError: a column that the data does not have, or a value that is no text, with the row.
    """
    columns: dict[str, list[Any]] = {}
    for column, setting in TEMPLATES.items():
        if template := getattr(args, setting):
            make = _maker(template, setting, rows.column_names, name)
            columns[column] = [make(row, number) for number, row in enumerate(rows, start=1)]
    if args.as_messages:
        columns = {c: columns.get(c) or list(rows[c]) for c in ROLES if c in columns or c in rows.column_names}
        columns = {column: _messages(texts, column, name) for column, texts in columns.items()}
    for column, values in columns.items():
        if column not in rows.column_names:
            rows = rows.add_column(column, values)
        else:  # added before the old one goes: a table without columns has no rows
            rows = rows.add_column(f"new {column}", values).remove_columns(column)
            rows = rows.rename_column(f"new {column}", column)
    return rows


def _messages(texts: list[str | None], column: str, name: str) -> list[list[dict[str, str]]]:
    for number, text in enumerate(texts, start=1):
        if not isinstance(text, str | None):
            raise UserError(f"as_messages: dataset {name}, row {number}: {column} is no text; leave as_messages out")
    role = ROLES[column]
    return [[{"role": role, "content": text or ""}] for text in texts]


def _maker(template: str, setting: str, columns: list[str], name: str) -> Callable[[dict[str, Any], int], str]:
    fields = list(FIELD.finditer(template))
    for field in fields:
        if field[1] not in columns:
            near = difflib.get_close_matches(field[1], columns, n=1, cutoff=0.6)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise UserError(
                f"{setting}: dataset {name} has no column {field[1]} (it has {', '.join(columns)[:300]}){hint}"
            )

    def make(row: dict[str, Any], number: int) -> str:
        where = f"{setting}: dataset {name}, row {number}"
        values = [_text(row[field[1]], field, where) for field in fields]
        texts = [text for text in values if text is not None]
        if len(texts) < len(values):
            return ""
        found = iter(texts)
        return FIELD.sub(lambda _: next(found), template)

    return make


def _text(value: Any, field: re.Match[str], where: str) -> str | None:
    if field[2] is not None and value is not None:
        if not isinstance(value, list):
            raise UserError(f"{where}: {field[0]} wants a list in the column {field[1]}, not {type(value).__name__}")
        if int(field[2]) >= len(value):
            raise UserError(f"{where}: {field[0]} is not there, the list has {len(value)} entries (the first is 0)")
        value = value[int(field[2])]
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, list) and all(isinstance(entry, str) for entry in value):
        return "\n".join(value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    raise UserError(f"{where}: the column {field[1]} holds {type(value).__name__}; a template wants text")
