"""The prompts of an evaluation, and the file of greedy answers: one a line as plain text, or JSON lines.

A file that has a column `mr` and no column `prompt` holds meaning representations of the E2E data: its rows are
those of `pipeline/worlds/e2e`, one for each different representation in the order of their first appearance, with the
texts of a column `ref`, if there is one, as references.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from pipeline.config import DataArguments
from pipeline.data import loading as data
from pipeline.errors import UserError
from pipeline.safety.console import say
from pipeline.worlds.e2e import delexicalize, parse_mr, prompt_of, relexicalize
from pipeline.worlds.e2e import prompt_row as e2e_row

# ends of lines to some readers, which JSON leaves as they are
_LINE_ENDS = {ord(letter): f"\\u{ord(letter):04x}" for letter in "\x85\u2028\u2029"}


def load_rows(args: DataArguments, limit: int | None = None, complete: bool = False) -> list[dict]:
    """Rows with `prompt` and further columns, the first `limit` of them.

    Args:
        complete: rows that would be dropped (an empty prompt) are an error, since each row is to have its line.

    Raises:
        UserError: data that cannot be read, or that has neither prompts nor meaning representations.
    """
    rows, _ = data.load(args, log=say)
    if "mr" in rows.column_names and "prompt" not in rows.column_names:
        return meaning_rows(rows.to_list(), args.dataset)[:limit]
    rows, notes = data.clean(rows, "prompts", args.dataset)
    if complete and notes:
        raise UserError(f"outputs wants an answer to every row, but {notes[0]}")
    for note in notes:
        say(note)
    rows = data.for_the_template(rows, args.chat_template_kwargs, args.dataset)
    return rows.select(range(min(limit or len(rows), len(rows)))).to_list()


def meaning_rows(rows: Sequence[dict], name: str) -> list[dict]:
    """E2E rows (prompt, mr, references, facts, slots), one for each different `mr`."""
    found: dict[str, tuple[dict, list[str]]] = {}
    for number, row in enumerate(rows, start=1):
        mr = str(row["mr"] or "")
        if mr not in found:
            try:
                found[mr] = (parse_mr(mr), [])
            except UserError as error:
                raise UserError(f"dataset {name}, row {number}: {error}") from None
        meaning, references = found[mr]
        if text := " ".join((row.get("ref") or "").split()):
            references.append(delexicalize(text, meaning))
    return [e2e_row(mr, meaning, references) for mr, (meaning, references) in found.items()]


def with_names(text: str, row: dict) -> str:
    """`text` with names in the place of placeholders, where the row is one of the E2E data."""
    try:
        meaning = parse_mr(row.get("mr") or "")
    except (UserError, TypeError):  # another project's column of that name
        return text
    return relexicalize(text, meaning) if row["prompt"] == prompt_of(meaning) else text


def line_of(completion: str, row: dict) -> str:
    """A completion on one line, with its names."""
    return with_names(" ".join(completion.splitlines()).strip(), row)


def json_line_of(completion: str, row: dict, as_messages: bool = False) -> str:
    """Prompt and completion letter by letter, as JSON on one line, with its names.

    Args: as_messages: a prompt of one message was a text, and is written as such.
    """
    prompt = row["prompt"]
    if as_messages and not isinstance(prompt, str) and len(prompt) == 1:
        prompt = prompt[0]["content"]
    line = json.dumps({"prompt": prompt, "completion": with_names(completion, row)}, ensure_ascii=False)
    return line.translate(_LINE_ENDS)


def check_outputs(path: str) -> Path:
    """The file to write, or a `UserError`: its folder is not there."""
    file = Path(path)
    if not file.parent.is_dir():
        raise UserError(f"outputs {path}: there is no folder {file.parent}; make it first")
    return file


def outputs(path: Path, completions: Sequence[str], rows: Sequence[dict], as_messages: bool = False) -> str:
    """One line a row, in order: as JSON where the file's name ends in `.jsonl`, else as plain text.

    Args: as_messages: see `json_line_of`.
    """
    as_json = path.suffix == ".jsonl"
    pairs = zip(completions, rows, strict=True)
    lines = [json_line_of(*pair, as_messages) if as_json else line_of(*pair) for pair in pairs]
    return "".join(line + "\n" for line in lines)
