"""Dialogues in one text, as the HH files have them, read as messages."""

import pytest
from datasets import Dataset

from pipeline.config import DataArguments
from pipeline.data import loading as data
from pipeline.data.dialogues import as_messages, messages_of
from pipeline.errors import UserError

START = "\n\nHuman: Hi.\n\nAssistant: Hello!\nI am here.\n\nHuman: Why?\n\nAssistant:"
PROMPT = [
    {"role": "user", "content": "Hi."},
    {"role": "assistant", "content": "Hello!\nI am here."},
    {"role": "user", "content": "Why?"},
]
ROWS = [
    {"chosen": f"{START} Because.", "rejected": f"{START} No."},
    {"chosen": f"{START} Because.", "rejected": "\n\nHuman: Other.\n\nAssistant: No."},  # no prompt in common
    {"chosen": "Just a text.", "rejected": "Another."},
    {"chosen": f"{START}", "rejected": f"{START} No."},  # nothing is said
]


def said(text: str) -> list[dict]:
    return [{"role": "assistant", "content": text}]


def test_turns_by_hand():
    assert messages_of(f"{START} Because.") == PROMPT + said("Because.")
    assert messages_of("Human: No blank line before.") == [{"role": "user", "content": "No blank line before."}]
    assert messages_of("\n\nHuman: He said Assistant: now") == [{"role": "user", "content": "He said Assistant: now"}]
    assert messages_of("Once.\n\nHuman: Hi.") is None and messages_of("") is None


@pytest.mark.parametrize(
    "kind, wanted",
    [
        ("preference", [{"prompt": PROMPT, "chosen": said("Because."), "rejected": said("No.")}]),
        ("prompts", [{"prompt": PROMPT}] * 2),
        ("sft", [{"messages": PROMPT + said("Because.")}]),
    ],
)
def test_rows_of_each_kind(tmp_path, kind, wanted):
    path = tmp_path / "pairs.jsonl"
    Dataset.from_list(ROWS).to_json(path)
    heard = []
    rows, _ = data.load(DataArguments(dataset=str(path), as_messages=True), kind, log=heard.append)
    assert rows.to_list() == wanted
    assert "2 rows dropped: no two dialogues with one prompt" in heard[0]
    if kind == "preference":
        assert "1 rows dropped: chosen is empty (rows 2)" in heard[1]


def test_other_data_are_refused():
    with pytest.raises(UserError, match=r"dataset my\.jsonl: as_messages reads texts .* \(it has prompt\); leave it"):
        as_messages(Dataset.from_list([{"prompt": "x"}]), "prompts", "my.jsonl", print)
    with pytest.raises(UserError, match="no row is a pair of dialogues of the form"):
        as_messages(Dataset.from_list(ROWS[2:3]), "sft", "my.jsonl", print)


def test_hh_is_read_as_messages(shared):
    heard = []
    path = str(shared("hh", "harmless-base.jsonl.gz"))
    rows, _ = data.load(DataArguments(dataset=path, as_messages=True), "preference", log=heard.append)
    assert len(rows) > 2290  # of 2,312
    turns = [len(row["prompt"]) for row in rows]
    assert sum(n > 1 for n in turns) / len(turns) > 0.6 and max(turns) > 20
    assert all(row["prompt"][0]["role"] == "user" for row in rows.select(range(100)))
