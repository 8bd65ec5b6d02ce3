"""The rows of a stage: loaded, checked, cleaned, split and shown before any training.

Three kinds of data, each as plain text or as messages (`[{"role": ..., "content": ...}]`):

- `sft`: prompt and completion; or messages; or text.
- `preference`: chosen and rejected, with a prompt or without. Dialogues in the form of the HH files
  (`\\n\\nHuman: ... \\n\\nAssistant: ...`) are split at the last `\\n\\nAssistant:` that both answers share.
- `prompts`: prompt, and any further columns for the rewards.
"""

import difflib
import json
import random
import textwrap
from collections.abc import Callable, Iterator
from typing import Any

from datasets import Dataset, Json
from transformers import PreTrainedTokenizerBase

from pipeline.config import DataArguments, mapping
from pipeline.data import dialogues
from pipeline.data.exact_rows import PIECE, exact, in_pieces
from pipeline.data.measured import token_counts
from pipeline.data.readers import read, to_dataset
from pipeline.data.reasoning_tasks import is_task, read_task
from pipeline.data.row_templates import TEMPLATES, fill_templates
from pipeline.errors import UserError, shortened
from pipeline.models.ends import without_end
from pipeline.models.prompts import KWARGS, PICTURES, are_messages, render
from pipeline.safety.console import say
from pipeline.watching.progress import counting
from rewards import text_of
from rewards.base import RESERVED

ANSWER = "\n\nAssistant:"
COLUMNS = {
    "sft": (("prompt", "completion"), ("messages",), ("text",)),
    "preference": (("prompt", "chosen", "rejected"), ("chosen", "rejected")),
    "prompts": (("prompt",), ("chosen", "rejected")),
}
# What other projects call the columns; named in the error, never renamed silently.
OTHER_NAMES = {
    "prompt": ("instruction", "question", "input", "query", "source", "mr"),
    "completion": ("response", "output", "answer", "target", "ref", "label", "summary"),
    "chosen": ("preferred", "response_chosen", "winner", "better"),
    "rejected": ("dispreferred", "response_rejected", "loser", "worse"),
    "text": ("content", "document"),
    "messages": ("conversation", "conversations", "dialog", "dialogue"),
}


def load(
    args: DataArguments, kind: str | None = None, seed: int = 42, log: Callable[[str], Any] | None = None
) -> tuple[Dataset, Dataset | None]:
    """Training rows and held-out rows (or None).

    With a `kind`, rows are checked and cleaned, and `log` gets in one line each what was dropped and why. Rows of
    one prompt are never on both sides of a split, and held-out rows that are also in the training data are left out.

    Raises:
        UserError: data that cannot be read, a missing column, a value of the wrong type, or nothing left.
    """
    log = log or (lambda line: None)
    if not args.dataset:
        raise UserError("dataset is not set: name a file, a folder or a Hub data set, e.g. --dataset my.jsonl")
    train = _one(args, args.dataset, args.dataset_split, kind, log)
    heldout = None
    if args.eval_dataset or args.eval_split:
        split = args.eval_split or args.dataset_split
        heldout = _one(args, args.eval_dataset or args.dataset, split, kind, log)
        if kind:
            heldout = _leave_out(heldout, train, kind, log)
    elif args.eval_fraction:
        train, heldout = hold_out(train, args.eval_fraction, seed)
    return train, heldout


def _one(args: DataArguments, source: str, split: str, kind: str | None, log: Callable[[str], Any]) -> Dataset:
    if is_task(source):
        rows = to_dataset(read_task(source, mapping(args.dataset_options, "dataset_options")), source)
    else:
        rows = read(source, split, args.dataset_config)
    name = source if split == "train" else f"{source} ({split})"
    if args.max_rows and len(rows) > args.max_rows:
        log(f"{name}: the first {args.max_rows:,} of {len(rows):,} rows (max_rows)")
        rows = rows.select(range(args.max_rows))
    if args.as_messages and kind and dialogues.are_pairs(rows):
        rows = dialogues.as_messages(rows, kind, name, log)
    else:
        rows = fill_templates(rows, args, name)
    if kind:
        rows, notes = clean(rows, kind, name)
        for note in notes:
            log(note)
        rows = for_the_template(rows, mapping(args.chat_template_kwargs, KWARGS), name)
    return rows


def columns_of(rows: Dataset, kind: str, name: str) -> tuple[str, ...]:
    """The columns by which rows of this kind are read, or a `UserError` with the nearest names."""
    have = rows.column_names
    for wanted in COLUMNS[kind]:
        if all(column in have for column in wanted):
            return wanted
    best = max(COLUMNS[kind], key=lambda wanted: sum(column in have for column in wanted))
    missing = next(column for column in best if column not in have)
    near = [column for column in have if column in OTHER_NAMES.get(missing, ())]
    near = near or difflib.get_close_matches(missing, have, n=1, cutoff=0.6)
    hint = f" Is it {near[0][:100]}? Then rename that column to {missing}" if near else ""
    if hint:
        template = f'{TEMPLATES[missing]}: "{{{near[0][:100]}}}"' if missing in TEMPLATES else ""
        hint += f", or set {template}." if template else "."
    forms = " or ".join("+".join(wanted) for wanted in COLUMNS[kind])
    had = textwrap.shorten(", ".join(have), 300)
    raise UserError(f"dataset {name} has no column {missing} (it has {had}; wants {forms}).{hint}")


def clean(rows: Dataset, kind: str, name: str = "data") -> tuple[Dataset, list[str]]:
    """Checks every row and leaves out those that teach nothing; the notes say how many and why.

    Raises:
        UserError: a missing column, a value that is neither text nor messages, or no row left.
    """
    wanted = columns_of(rows, kind, name)
    notes: list[str] = []
    keep: list[int] = []
    dropped: dict[str, list[int]] = {}
    with counting("rows checked", len(rows)) as checked:
        for index, row in enumerate(rows.select_columns(list(wanted))):
            _check_types(row, wanted, f"dataset {name}, row {index + 1}")
            reason = _reason_to_drop(row, wanted)
            if reason:
                dropped.setdefault(reason, []).append(index + 1)
            else:
                keep.append(index)
            if (index + 1) % PIECE == 0:
                checked(PIECE)
    for reason, numbers in dropped.items():
        shown = ", ".join(map(str, numbers[:5])) + (", ..." if len(numbers) > 5 else "")
        notes.append(f"{name}: {len(numbers):,} rows dropped: {reason} (rows {shown})")
    if not keep:
        raise UserError(f"dataset {name}: no row is left of {len(rows):,}; {'; '.join(dropped)}")
    rows = rows.select(keep) if len(keep) < len(rows) else rows
    if wanted == ("chosen", "rejected"):
        rows = split_dialogues(rows, kind, name, notes)
    return rows, notes


def _check_types(row: dict[str, Any], wanted: tuple[str, ...], where: str) -> None:
    forms = {}
    for column in wanted:
        value = row[column]
        if isinstance(value, str) or value is None:
            forms[column] = "text" if value is not None else None
        elif isinstance(value, list) and all(map(_is_message, value)):
            forms[column] = "messages"
            for message in value:
                if not isinstance(message["role"], str) or not isinstance(message.get("content"), str | list | None):
                    raise UserError(
                        f"{where}: {column} has a message whose role or content is no text: "
                        f"{shortened(str(message), 100)}; wants text in both"
                    )
                shown = {str(part.get("type")) for part in message.get("content") or () if isinstance(part, dict)} - {
                    "text"
                }
                if shown:
                    raise UserError(
                        f"{where}: {column} has a message with {', '.join(sorted(shown))} in it: models here read "
                        "text alone; leave the row out, or its part that is no text"
                    )
        else:
            raise UserError(
                f"{where}: {column} is {type(value).__name__}, but wants text or messages "
                '([{"role": "user", "content": "..."}])'
            )
    kinds = {form for form in forms.values() if form}
    if len(kinds) > 1:
        listed = ", ".join(f"{column} is {form}" for column, form in forms.items())
        raise UserError(f"{where}: {listed}; all want the same form")
    if wanted == ("messages",) and forms["messages"] == "text":
        raise UserError(f"{where}: messages is text; call the column text, or give a list of messages")


def _is_message(value: Any) -> bool:
    """A turn without content is one where it calls tools."""
    return isinstance(value, dict) and "role" in value and ("content" in value or "tool_calls" in value)


def _calls_tools(value: Any) -> bool:
    return isinstance(value, list) and any(message.get("tool_calls") for message in value)


def _reason_to_drop(row: dict[str, Any], wanted: tuple[str, ...]) -> str | None:
    for column in wanted:
        if not text_of(row[column]).strip() and not _calls_tools(row[column]):
            return f"{column} is empty"
    if "chosen" in wanted and row["chosen"] == row["rejected"]:
        return "chosen and rejected are the same"
    return None


def for_the_template(rows: Dataset, kwargs: dict[str, Any] | None, name: str) -> Dataset:
    """Rows of messages with what their columns tell the chat template in the form in which TRL takes it.

    `chat_template_kwargs` is a mapping in every row, `kwargs` (the setting) with what the row says of its own; `tools`
    is a list or None. The columns of rows of text mean nothing to TRL and stay as they are.

    Raises:
        UserError: a value of another kind, with its row.
    """
    if not are_messages(rows[0]):
        return rows
    wants = {"chat_template_kwargs": (dict, "a mapping"), "tools": (list, "a list of functions (JSON schemas)")}
    for column, (form, words) in wants.items():
        if column not in rows.column_names and not (column == KWARGS and kwargs):
            continue
        values = rows[column] if column in rows.column_names else [None] * len(rows)
        found = [_parsed(value) for value in values]
        for number, value in enumerate(found, start=1):
            if not isinstance(value, form | None):
                raise UserError(
                    f"dataset {name}, row {number}: {column} wants {words}, or that as JSON text: the chat template "
                    f"is given it; rename the column if it is something else (it is {shortened(str(value), 60)!r})"
                )
        found = [(kwargs or {}) | (value or {}) if form is dict else value or None for value in found]
        if column not in rows.column_names or found != list(values):
            rows = rows.remove_columns(column) if column in rows.column_names else rows
            # as JSON, since Arrow's structs fill up the keys of other rows with null
            texts = [None if value is None else json.dumps(value) for value in found]
            rows = rows.add_column(column, texts, feature=Json())
    return rows


def _parsed(value: Any) -> Any:
    if isinstance(value, str):
        try:
            return json.loads(value) if value.strip() else None
        except ValueError:
            pass
    return value


def split_dialogues(rows: Dataset, kind: str, name: str, notes: list[str]) -> Dataset:
    """Gives dialogues without a prompt column their prompt: what both answers share, up to the last answer's start.

    Preference rows that share nothing keep an empty prompt: prompt + answer is the same text as before either way.
    """
    first = rows[0]["chosen"]
    if isinstance(first, list):
        return _split_messages(rows, kind)
    pairs = ((row["chosen"], row["rejected"]) for row in rows.select_columns(["chosen", "rejected"]))
    good = [index for index, pair in enumerate(pairs) if _shared_prompt(*pair)]
    if kind == "prompts":
        if not good:
            raise UserError(
                f"dataset {name} has no column prompt, and its chosen texts are no dialogues to take it from"
            )
        if len(good) < len(rows):
            notes.append(f"{name}: {len(rows) - len(good):,} rows dropped: the two dialogues share no prompt")
        return in_pieces(rows.select(good), lambda piece: exact({"prompt": _shared_prompts(piece)}))
    if not good:
        return rows
    notes.append(f"{name}: prompt taken from the dialogue in {len(good):,} of {len(rows):,} rows")
    return in_pieces(rows, _with_prompts)


def _shared_prompt(chosen: str, rejected: str) -> str:
    """What two dialogues share up to the start of the last answer; "" where that is not at the same place."""
    end = chosen.rfind(ANSWER) + len(ANSWER)
    shared = end >= len(ANSWER) and rejected.rfind(ANSWER) + len(ANSWER) == end and rejected.startswith(chosen[:end])
    return chosen[:end] if shared else ""


def _shared_prompts(rows: Dataset) -> list[str]:
    return [_shared_prompt(*pair) for pair in zip(rows["chosen"], rows["rejected"], strict=True)]


def _with_prompts(rows: Dataset) -> Dataset:
    prompts, columns = _shared_prompts(rows), rows.to_dict()
    for column in ("chosen", "rejected"):
        columns[column] = [text[len(prompt) :] for text, prompt in zip(columns[column], prompts, strict=True)]
    return exact({"prompt": prompts, **columns})


def _split_messages(rows: Dataset, kind: str) -> Dataset:
    if kind != "prompts":
        return rows  # TRL takes whole conversations as they are
    return exact({"prompt": [chosen[:-1] for chosen in rows["chosen"] if len(chosen) > 1]})


def hold_out(rows: Dataset, fraction: float, seed: int) -> tuple[Dataset, Dataset]:
    """Sets about `fraction` of the rows aside, all rows of a prompt together, the same ones for the same seed."""
    groups: dict[str, list[int]] = {}
    column = next(
        (c for c in ("prompt", "messages", "text", "chosen") if c in rows.column_names), rows.column_names[0]
    )
    for index, value in enumerate(rows[column]):
        # Rows with no prompt of their own (an empty one) are no group.
        key = json.dumps(value, ensure_ascii=False, default=str) if text_of(value).strip() else f"row {index}"
        groups.setdefault(key, []).append(index)
    keys = sorted(groups)
    random.Random(seed).shuffle(keys)
    wanted = fraction * len(rows)
    aside: list[int] = []
    for key in keys:
        if len(aside) >= wanted:
            break
        aside += groups[key]
    if not aside or len(aside) == len(rows):
        raise UserError(
            f"{fraction:.0%} of {len(rows):,} rows ({len(keys):,} different prompts) leaves one side empty: "
            "give more rows, another fraction, or an eval_dataset"
        )
    chosen = set(aside)
    return rows.select([i for i in range(len(rows)) if i not in chosen]), rows.select(sorted(aside))


def _leave_out(heldout: Dataset, train: Dataset, kind: str, log: Callable[[str], Any]) -> Dataset:
    wanted = [column for column in columns_of(heldout, kind, "held-out data") if column in train.column_names]

    def keys(rows: Dataset) -> list[str]:
        return [json.dumps(row, ensure_ascii=False, sort_keys=True) for row in rows.select_columns(wanted)]

    seen = set(keys(train))
    keep = [index for index, key in enumerate(keys(heldout)) if key not in seen]
    if len(keep) == len(heldout):
        return heldout
    log(f"held-out data: {len(heldout) - len(keep):,} rows dropped: they are in the training data too")
    if not keep:
        raise UserError("every held-out row is in the training data too: give other held-out rows")
    return heldout.select(keep)


def show_examples(
    train: Dataset,
    heldout: Dataset | None,
    tokenizer: PreTrainedTokenizerBase,
    kind: str,
    max_length: int | None,
    name: str = "data",
    log: Callable[[str], Any] = say,
    template: str | None = None,
) -> int:
    """Shows rows, columns, lengths, what will be cut or dropped, and two examples. Returns the longest row in tokens,
    held-out prompts included: they are answered too.

    Args: template: chat template in place of the tokenizer's own.

    Raises:
        UserError: when every row is longer than `max_length` allows, or the chat template does not take a row.
    """
    held = "none held out" if heldout is None else f"{len(heldout):,} held out"
    log(f"{name}: {len(train):,} rows, {held}; columns {', '.join(train.column_names)}")
    for note in _about_columns(train.column_names, kind):
        log(note)

    lengths = token_counts(train, kind, tokenizer, template, name)
    answered = heldout if kind == "prompts" else None
    also = [] if answered is None else token_counts(answered, kind, tokenizer, template, f"{name} (held out)")
    if are_messages(train[0]) and kind != "preference" and (missing := without_end(tokenizer)):
        log(missing)
    ranked = sorted(lengths)
    line = f"tokens a row: median {ranked[len(ranked) // 2]}, longest {ranked[-1]}"
    if max_length is not None:
        over = sum(length > max_length for length in lengths)
        fate = "dropped" if kind == "preference" else "cut"
        line += f"; longer than max_length {max_length}: {over:,} {fate}"
        if over == len(lengths) and kind == "preference":
            raise UserError(
                f"dataset {name}: every pair is longer than max_length {max_length} (the shortest has {ranked[0]} "
                "tokens): raise it"
            )
    log(line + (f" (of {len(lengths):,} rows)" if len(lengths) < len(train) else ""))
    labels = ["chosen", "rejected"] if kind == "preference" else ["text"]
    for number, row in enumerate(train.select(range(min(2, len(train)))), start=1):
        for label, text in zip(labels, render(row, kind, tokenizer, template), strict=False):
            log(f"example {number} {label}: {_one_line(text)}")
    return max([ranked[-1], *also])


def _about_columns(columns: list[str], kind: str) -> Iterator[str]:
    """What columns do not mean here, though they do elsewhere."""
    if pictures := [column for column in columns if column in PICTURES]:
        rewards = "; the rewards get them" if kind == "prompts" else ""
        yield f"note: models here read text alone: {' and '.join(pictures)} treated like any other column{rewards}"
    taken = [column for column in columns if column in RESERVED - {"prompt", "completion"}]
    if taken and kind == "prompts":
        yield f"note: rewards do not get {', '.join(taken)}: such a name means something else to them; rename it"


def _one_line(text: str, limit: int = 300) -> str:
    shown = text.replace("\n", "\\n").replace("\r", "\\r").replace("\x1b", "")
    return shown if len(shown) <= limit else f"{shown[: limit - 60]} ... {shown[-55:]}"
