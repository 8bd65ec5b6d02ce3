"""Data from files and folders: read right, or refused with the file, the line and what to do."""

import gzip
import json
import re

import pytest
from datasets import Dataset, DatasetDict

from pipeline.config import DataArguments
from pipeline.data import exact_rows, measured, readers
from pipeline.data import loading as data
from pipeline.errors import UserError

ROWS = [{"prompt": f"p{i} =>", "completion": f" c{i}"} for i in range(10)]


def lines(rows) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def load(path, kind=None, **settings):
    notes: list[str] = []
    train, heldout = data.load(DataArguments(dataset=str(path), **settings), kind, log=notes.append)
    return train, heldout, notes


def refused(path, kind=None, **settings) -> str:
    with pytest.raises(UserError) as error:
        load(path, kind, **settings)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_every_form_of_the_same_rows(tmp_path):
    text = lines(ROWS)
    (tmp_path / "a.jsonl").write_text(text)
    (tmp_path / "bom.jsonl").write_bytes(b"\xef\xbb\xbf" + text.encode())
    (tmp_path / "boms.jsonl").write_bytes(b"".join(b"\xef\xbb\xbf" + line.encode() for line in text.splitlines(True)))
    (tmp_path / "crlf.jsonl").write_bytes(text.replace("\n", "\r\n").encode())
    (tmp_path / "list.json").write_text(json.dumps(ROWS, indent=1))
    (tmp_path / "data.json").write_text(json.dumps({"data": ROWS}))
    (tmp_path / "lines.json").write_text(text)
    (tmp_path / "a.csv").write_text("prompt,completion\n" + "".join(f"p{i} =>, c{i}\n" for i in range(10)))
    (tmp_path / "a.tsv").write_text("prompt\tcompletion\n" + "".join(f"p{i} =>\t c{i}\n" for i in range(10)))
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    Dataset.from_list(ROWS).to_parquet(tmp_path / "a.parquet")
    files = sorted(tmp_path.iterdir())
    Dataset.from_list(ROWS).save_to_disk(tmp_path / "disk")
    DatasetDict({"train": Dataset.from_list(ROWS), "test": Dataset.from_list(ROWS[:2])}).save_to_disk(
        tmp_path / "dict"
    )
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "train.jsonl").write_text(text)
    (tmp_path / "folder" / "test.jsonl").write_text(lines(ROWS[:2]))
    for path in [*files, tmp_path / "disk", tmp_path / "dict", tmp_path / "folder"]:
        assert load(path)[0].to_list() == ROWS, path.name
    for path in (tmp_path / "dict", tmp_path / "folder"):
        assert len(data.load(DataArguments(dataset=str(path), eval_split="test"))[1]) == 2


def test_text_is_kept_to_the_letter(tmp_path):
    rows = [{"prompt": "a\u2028b\x0b\n", "completion": "日本語 \U0001f600 \"q\", 'x'\t"}]
    (tmp_path / "a.jsonl").write_text(lines(rows), encoding="utf-8")
    assert load(tmp_path / "a.jsonl")[0].to_list() == rows
    (tmp_path / "a.csv").write_text('prompt,completion\n"a, ""b""\nc",d\n')
    assert load(tmp_path / "a.csv")[0].to_list() == [{"prompt": 'a, "b"\nc', "completion": "d"}]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.jsonl", b"", "is empty"),
        ("a.jsonl", b" \n\n", "is empty"),
        ("a.jsonl", b'{"a": 1}\n{"a": \n', "line 2 is not valid JSON"),
        ("a.jsonl", b'{"a": 1}\n[1]\n', "line 2 is a list, not an object"),
        ("a.jsonl", b'{"a": "x"}\n{"a": "\xff"}\n', "line 2 is not UTF-8"),
        ("a.jsonl", b'{"a": ' + b"[" * 100000 + b"}\n", "line 1 is not valid JSON"),
        ("a.json", b"[{]", "is not valid JSON"),
        ("a.json", b"[]", "has no rows"),
        ("a.json", b"3", "wants a list of objects"),
        ("a.json", b'[{"a": 1}, 2]', "row 2 is a number"),
        ("a.csv", b"prompt,completion\na\n", "line 2 has 1 fields, but there are 2 columns"),
        ("a.csv", b"prompt,completion\na,b,c\n", "line 2 has 3 fields"),
        ("a.csv", b'prompt,completion\n"a,b\n', "is not valid CSV"),
        ("a.csv", b"prompt,prompt\na,b\n", "column names must be given and differ"),
        ("a.csv", b"prompt,\na,b\n", "column names must be given and differ"),
        ("a.csv", b"prompt,completion\n", "has no rows"),
        ("a.parquet", b"PAR1 nonsense", "is not a readable Parquet file"),
        ("a.jsonl.gz", b'{"a": 1}', "cannot be read"),
        ("a.jsonl.gz", gzip.compress(b'{"a": 1}\n' * 1000, mtime=0)[:-12], "cannot be read"),
        ("a.txt", b"hello", "unknown kind of file"),
        ("a.jsonl", b'{"a": "x"}\n{"a": 3}\n', "row 2: column a is a number, but text before"),
        ("a.jsonl", b'{"a": [1, "x"]}\n', "column a do not fit one type"),
        ("a.jsonl", b'{"a": "x", "a": "y"}\n', "line 1 is not valid JSON: the key 'a' stands twice in one object"),
        ("a.json", b'{"a": {"b": 1, "b": 1}}', "line 1 is not valid JSON: the key 'b' stands twice"),
        ("a.json", b'[{"a": 1, "a": 2}]', "the key 'a' stands twice"),
        ("a.jsonl", b'{"a": "x"}\n{"a": "\\ud83d"}\n', "row 2: column a has half a character ('\\ud83d')"),
        ("a.jsonl", b'{"a": {"b": "\\udc00 x"}}\n', "row 1: column a has half a character ('\\udc00')"),
    ],
)
def test_broken_files(tmp_path, name, content, says):
    (tmp_path / name).write_bytes(content)
    message = refused(tmp_path / name)
    assert says in message and name in message


def test_files_that_are_not_there(tmp_path):
    (tmp_path / "train.jsonl").write_text(lines(ROWS))
    assert f"did you mean {tmp_path / 'train.jsonl'}?" in refused(tmp_path / "trian.jsonl")
    assert "no such file" in refused("nowhere/x.csv")
    assert "no such file or folder" in refused("./nowhere")
    assert "the Hub does not give it" in refused("somebody/nothing")
    assert "dataset is not set" in refused("")


def test_folders_that_will_not_do(tmp_path):
    assert "holds no data" in refused(tmp_path)
    (tmp_path / "a.jsonl").write_text(lines(ROWS))
    (tmp_path / "b.jsonl").write_text(lines(ROWS))
    assert "several files (a.jsonl, b.jsonl)" in refused(tmp_path)
    DatasetDict({"train": Dataset.from_list(ROWS)}).save_to_disk(tmp_path / "dict")
    assert "has no split test; it has train" in refused(tmp_path / "dict", eval_split="test")


@pytest.mark.parametrize(
    ("columns", "kind", "says"),
    [
        (("prompt", "completions"), "sft", "no column completion .*Is it completions[?] Then rename"),
        (("instruction", "completion"), "sft", "no column prompt .*Is it instruction[?]"),
        (("prompt", "ref"), "sft", "no column completion .*Is it ref[?]"),
        (("prompt", "chosen"), "preference", "no column rejected"),
        (("prompt", "choosen", "rejected"), "preference", "no column chosen .*Is it choosen[?]"),
        (("question",), "prompts", "no column prompt .*Is it question[?]"),
        (("a", "b"), "sft", "it has a, b; wants prompt.completion or messages or text"),
    ],
)
def test_missing_columns_name_the_nearest(columns, kind, says):
    rows = Dataset.from_list([{column: "x" for column in columns}])
    with pytest.raises(UserError, match=says):
        data.clean(rows, kind)


def test_rows_that_teach_nothing_are_dropped_and_counted():
    rows = [
        {"prompt": "a", "chosen": "b", "rejected": "c"},
        {"prompt": " \n", "chosen": "b", "rejected": "c"},
        {"prompt": "a", "chosen": "b", "rejected": "b"},
        {"prompt": "a", "chosen": "", "rejected": "c"},
        {"prompt": None, "chosen": "b", "rejected": "c"},
    ]
    kept, notes = data.clean(Dataset.from_list(rows), "preference", "x.jsonl")
    assert kept.to_list() == rows[:1]
    assert notes == [
        "x.jsonl: 2 rows dropped: prompt is empty (rows 2, 5)",
        "x.jsonl: 1 rows dropped: chosen and rejected are the same (rows 3)",
        "x.jsonl: 1 rows dropped: chosen is empty (rows 4)",
    ]
    with pytest.raises(UserError, match="no row is left of 1; prompt is empty"):
        data.clean(Dataset.from_list(rows[1:2]), "preference")


USER = {"role": "user", "content": "hi"}
BOT = {"role": "assistant", "content": "ho"}


@pytest.mark.parametrize(
    ("row", "kind", "says"),
    [
        ({"prompt": 5, "completion": "x"}, "sft", "row 1: prompt is int, but wants text or messages"),
        ({"prompt": [{"role": "user"}], "completion": "x"}, "sft", "row 1: prompt is list"),
        (
            {"prompt": "x", "completion": [BOT]},
            "sft",
            "prompt is text, completion is messages; all want the same form",
        ),
        ({"messages": "x"}, "sft", "messages is text"),
    ],
)
def test_values_of_the_wrong_form(row, kind, says):
    with pytest.raises(UserError, match=re.escape(says)):
        data.clean(Dataset.from_list([row]), kind)


def test_hh_dialogues_are_split_at_the_last_answer_they_share():
    shared = "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant:"
    rows = [
        {"chosen": shared + " yes", "rejected": shared + " no"},
        # the dialogues differ before the last answer: nothing to split, and the texts stay as they are
        {"chosen": "\n\nHuman: a\n\nAssistant: x", "rejected": "\n\nHuman: b\n\nAssistant: x"},
        {"chosen": "no dialogue", "rejected": "neither"},
    ]
    kept, notes = data.clean(Dataset.from_list(rows), "preference", "hh")
    assert kept.to_list() == [{"prompt": shared, "chosen": " yes", "rejected": " no"}] + [
        {"prompt": "", **row} for row in rows[1:]
    ]
    assert notes == ["hh: prompt taken from the dialogue in 1 of 3 rows"]
    prompts, _ = data.clean(Dataset.from_list(rows), "prompts", "hh")
    assert prompts.to_list() == [{"prompt": shared}]


def test_hh_file_as_it_lies(shared):
    path = shared("hh", "harmless-base.jsonl.gz")
    rows = load(path)[0]
    kept, _, notes = load(path, "preference")
    assert (len(rows), rows.column_names) == (2312, ["chosen", "rejected"])
    dropped = len(rows) - len(kept)
    assert dropped == sum(row["chosen"] == row["rejected"] for row in rows)
    originals = [row for row in rows.to_list() if row["chosen"] != row["rejected"]]
    joined = [{side: row["prompt"] + row[side] for side in ("chosen", "rejected")} for row in kept]
    assert joined == originals
    assert sum(row["prompt"].endswith("\n\nAssistant:") for row in kept) > 0.99 * len(kept)


def test_prompts_keep_their_further_columns():
    rows = Dataset.from_list([{"prompt": "a", "references": ["x", "y"], "facts": ["f"]}])
    assert data.clean(rows, "prompts")[0].to_list() == rows.to_list()


def test_hold_out_keeps_a_prompt_on_one_side_and_repeats_with_the_seed(tmp_path):
    rows = [{"prompt": f"p{i // 4}", "completion": f"c{i}"} for i in range(200)]
    (tmp_path / "a.jsonl").write_text(lines(rows))

    def split(seed):
        train, heldout = data.load(DataArguments(dataset=str(tmp_path / "a.jsonl"), eval_fraction=0.2), "sft", seed)
        return train.to_list(), heldout.to_list()

    train, heldout = split(1)
    assert len(heldout) == 40 and len(train) == 160
    assert not {row["prompt"] for row in train} & {row["prompt"] for row in heldout}
    assert sorted(row["completion"] for row in train + heldout) == sorted(row["completion"] for row in rows)
    assert split(1) == (train, heldout) != split(2)


def test_hold_out_of_nothing_is_refused():
    with pytest.raises(UserError, match="1 different prompts.* leaves one side empty"):
        data.hold_out(Dataset.from_list([{"prompt": "a"}] * 5), 0.2, 0)


def test_heldout_rows_that_are_in_the_training_data_are_left_out(tmp_path):
    (tmp_path / "a.jsonl").write_text(lines(ROWS))
    (tmp_path / "b.jsonl").write_text(lines([ROWS[3], {"prompt": "new", "completion": "x"}]))
    train, heldout, notes = load(tmp_path / "a.jsonl", "sft", eval_dataset=str(tmp_path / "b.jsonl"))
    assert len(train) == 10 and heldout.to_list() == [{"prompt": "new", "completion": "x"}]
    assert notes == ["held-out data: 1 rows dropped: they are in the training data too"]
    assert "every held-out row" in refused(tmp_path / "a.jsonl", "sft", eval_dataset=str(tmp_path / "a.jsonl"))


def test_max_rows_is_said(tmp_path):
    (tmp_path / "a.jsonl").write_text(lines(ROWS))
    train, _, notes = load(tmp_path / "a.jsonl", "sft", max_rows=4)
    assert train.to_list() == ROWS[:4]
    assert "the first 4 of 10 rows (max_rows)" in notes[0]


def test_show_examples_of_what_the_model_will_see(tiny_tokenizer):
    told: list[str] = []
    longest = data.show_examples(Dataset.from_list(ROWS), None, tiny_tokenizer, "sft", 8, "x.jsonl", told.append)
    # "p0 =>" is 5 bytes, " c0" 3, the end token 1
    assert longest == 9
    assert told == [
        "x.jsonl: 10 rows, none held out; columns prompt, completion",
        "tokens a row: median 9, longest 9; longer than max_length 8: 10 cut",
        "example 1 text: p0 => c0</s>",
        "example 2 text: p1 => c1</s>",
    ]


def test_show_examples_of_messages_uses_the_chat_template(tiny_tokenizer):
    told: list[str] = []
    rows = Dataset.from_list([{"prompt": [USER], "chosen": [BOT], "rejected": [USER]}])
    longest = data.show_examples(rows, rows, tiny_tokenizer, "preference", 100, log=told.append)
    assert told[2:] == ["example 1 chosen: <user>hi<assistant>ho</s>", "example 1 rejected: <user>hi<user>hi"]
    assert longest == len("<user>hi<assistant>ho") + 1
    told.clear()
    data.show_examples(Dataset.from_list([{"prompt": [USER]}]), None, tiny_tokenizer, "prompts", None, log=told.append)
    assert told[-1] == "example 1 text: <user>hi<assistant>"
    tiny_tokenizer.chat_template = None
    with pytest.raises(UserError, match="no chat template"):
        data.show_examples(rows, None, tiny_tokenizer, "preference", 100, log=told.append)


def test_the_longest_prompt_is_found_beyond_the_rows_whose_tokens_are_counted(tiny_tokenizer, monkeypatch):
    monkeypatch.setattr(measured, "FIRST", 3)
    monkeypatch.setattr(measured, "LONGEST", 2)
    rows = Dataset.from_list([{"prompt": "x" * size} for size in (5, 4, 3, 7, 2, 30, 6)])
    told = []
    assert data.show_examples(rows, None, tiny_tokenizer, "prompts", None, log=told.append) == 30
    assert any("longest 30 (of 5 rows)" in line for line in told)  # the first three, the 30 and the 7


def test_show_examples_refuses_pairs_that_are_all_too_long(tiny_tokenizer):
    rows = Dataset.from_list([{"chosen": "abcd", "rejected": "abce"}])
    with pytest.raises(UserError, match="every pair is longer than max_length 4 .the shortest has 5 tokens"):
        data.show_examples(rows, None, tiny_tokenizer, "preference", 4, log=lambda line: None)


def test_examples_cannot_move_the_cursor(tiny_tokenizer):
    told: list[str] = []
    rows = Dataset.from_list([{"text": "a\x1b[2Jb\nc" + "x" * 1000}])
    data.show_examples(rows, None, tiny_tokenizer, "sft", None, log=told.append)
    assert "\x1b" not in told[-1] and "\n" not in told[-1] and len(told[-1]) < 400


# ---------------------------------------------------------------- how far it is
@pytest.mark.parametrize("packed", [False, True])
def test_reading_and_checking_a_large_file_say_how_far_they_are(tmp_path, monkeypatch, capsys, tiny_tokenizer, packed):
    for module, name, rows in ((readers, "PIECE", 4), (data, "PIECE", 6), (measured, "TOLD", 7)):
        monkeypatch.setattr(module, name, rows)
    written = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
    path = tmp_path / ("a.jsonl.gz" if packed else "a.jsonl")
    path.write_bytes(gzip.compress(written) if packed else written)
    train = load(path, "sft")[0]
    data.show_examples(train, None, tiny_tokenizer, "sft", None)
    said = [line for line in capsys.readouterr().out.splitlines() if ", about " in line]
    assert len(ROWS) == 10 and len(said) == (2 if packed else 3)  # a line after the first part, unless that is all
    if not packed:
        there = sum(len(line) for line in written.splitlines(True)[:4])
        assert said.pop(0).startswith(f"reading a.jsonl, bytes: {there}/{len(written)}, about ")
    assert [line.split(", about ")[0] for line in said] == [
        "rows checked: 6/10",
        "rows whose tokens are counted: 7/10",
    ]


def test_a_small_file_is_read_without_a_word(tmp_path, capsys):
    (tmp_path / "a.jsonl").write_text(lines(ROWS))
    load(tmp_path / "a.jsonl", "sft")
    assert capsys.readouterr().out == ""


def test_an_error_in_a_late_piece_names_its_row_in_a_terminal_too(tmp_path, monkeypatch):
    monkeypatch.setattr(exact_rows, "PIECE", 3)
    rows = [{"prompt": "a", "completion": "b"}] * 7 + [{"prompt": "a", "completion": 5}]
    (tmp_path / "a.jsonl").write_text(lines(rows))
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    assert "row 8: column completion is a number, but text before" in refused(tmp_path / "a.jsonl")
