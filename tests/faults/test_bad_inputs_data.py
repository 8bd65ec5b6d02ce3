"""Bad data, through the front door: each case one sentence with file, row or column, and nothing left behind."""

import gzip
import io
import json

import pyarrow
import pyarrow.parquet
from catalogue import ROWS, Case, cases, check, file

pytest_plugins = ["places"]

SFT, PAIRS, PROMPTS = ROWS["sft"], ROWS["pairs"], ROWS["prompts"]
LINES = "".join(json.dumps(row) + "\n" for row in SFT)
USER, BOT = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}


def parquet(rows: list[dict]) -> bytes:
    box = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), box)
    return box.getvalue()


def data(name: str, *says: str, content=None, file_name: str = "bad.jsonl", recipe: str = "sft", **settings) -> Case:
    """A case whose data set is `file_name` with `content`."""
    make = None if content is None else file(file_name, content)
    return Case(name, says, recipe, {"dataset": file_name} | settings, make)


FILES = [
    data("missing file", "dataset stf.jsonl", "no such file", "did you mean sft.jsonl?", file_name="stf.jsonl"),
    data("missing folder", "dataset ./nowhere", "no such file or folder", file_name="./nowhere"),
    data("dataset not set", "dataset is not set", "--dataset", file_name=None),
    data("empty file", "dataset bad.jsonl is empty", content=b""),
    data("blank lines only", "dataset bad.jsonl is empty", content=b"\n \n\n"),
    data("header only", "dataset bad.csv has no rows", content="prompt,completion\n", file_name="bad.csv"),
    data("broken json", "bad.jsonl, line 3 is not valid JSON", "column", content=LINES.replace("w2 =", 'w2" =')),
    data("a list in a line", "bad.jsonl, line 2 is a list, not an object", content='{"prompt": "a"}\n[1]\n'),
    data("json of one number", "bad.json wants a list of objects", content="3", file_name="bad.json"),
    data(
        "json cut in the middle",
        "bad.json",
        "not valid JSON",
        "line 2",
        content='[{"a": 1},\n{"a":',
        file_name="bad.json",
    ),
    data(
        "not utf-8", "bad.jsonl, line 2 is not UTF-8", "save the file as UTF-8", content=b'{"a": "x"}\n{"a": "\xe9"}\n'
    ),
    data("utf-16", "bad.jsonl, line 1 is not UTF-8", "save the file as UTF-8", content=LINES.encode("utf-16")),
    data("nested too deeply", "bad.jsonl, line 1 is not valid JSON", content='{"a": ' + "[" * 100_000 + "}\n"),
    data("a huge line that is cut", "bad.jsonl, line 1 is not valid JSON", content='{"prompt": "' + "x" * 3_000_000),
    data(
        "ragged csv",
        "bad.csv, line 3 has 3 fields",
        "2 columns",
        "quotes",
        content="prompt,completion\na,b\nc,d,e\n",
        file_name="bad.csv",
    ),
    data(
        "csv with an open quote", "bad.csv", "not valid CSV", content='prompt,completion\n"a,b\n', file_name="bad.csv"
    ),
    data(
        "csv with two columns of one name",
        "bad.csv, line 1",
        "column names",
        content="prompt,prompt\na,b\n",
        file_name="bad.csv",
    ),
    data(
        "torn gzip",
        "bad.jsonl.gz cannot be read",
        "is the file whole?",
        content=gzip.compress(LINES.encode())[:-12],
        file_name="bad.jsonl.gz",
    ),
    data("gzip that is none", "bad.jsonl.gz cannot be read", "gzip", content=LINES, file_name="bad.jsonl.gz"),
    data(
        "spoilt gzip",
        "bad.jsonl.gz cannot be unpacked",
        content=gzip.compress(LINES.encode())[:40] + b"\xff" * 60,
        file_name="bad.jsonl.gz",
    ),
    data(
        "torn parquet",
        "bad.parquet is not a readable Parquet file",
        content=parquet(SFT)[:-20],
        file_name="bad.parquet",
    ),
    data("parquet that is none", "bad.parquet is not a readable Parquet file", content=LINES, file_name="bad.parquet"),
    data("unknown kind of file", "bad.xlsx", "unknown kind of file", ".jsonl", content=b"PK", file_name="bad.xlsx"),
    data("a folder of models", "dataset base", "several files", "name one of them", file_name="base"),
    data("a folder with several files", "dataset .", "several files", "name one of them", file_name="."),
    data(
        "a hub name that is not there",
        "dataset somebody/nothing",
        "no file or folder here",
        file_name="somebody/nothing",
    ),
    data(
        "held-out file missing",
        "dataset heldout.jsonl: there is no such file",
        file_name="sft.jsonl",
        eval_dataset="heldout.jsonl",
        eval_fraction=None,
    ),
]
COLUMNS = [
    data(
        "misspelt column",
        "no column completion",
        "it has prompt, completions",
        "Is it completions?",
        "rename",
        content=[{"prompt": "a", "completions": "b"}],
    ),
    data(
        "a column under another project's name",
        "no column prompt",
        "Is it instruction?",
        content=[{"instruction": "a", "completion": "b"}],
    ),
    data(
        "pairs given to sft", "no column completion", "prompt+completion or messages or text", file_name="pairs.jsonl"
    ),
    data(
        "sft rows given to the reward model", "sft.jsonl has no column chosen", recipe="reward", file_name="sft.jsonl"
    ),
    data("no rejected", "no column rejected", content=[{"prompt": "a", "chosen": "b"}], recipe="reward"),
    data("no prompt for ppo", "no column prompt", "Is it question?", content=[{"question": "a"}], recipe="ppo"),
    data(
        "mixed types in a column",
        "bad.jsonl, row 2: column prompt is a number, but text before",
        content=[SFT[0], {"prompt": 3, "completion": "x"}],
    ),
    data(
        "numbers for texts",
        "row 1: prompt is int",
        "wants text or messages",
        content=[{"prompt": 3, "completion": "x"}],
    ),
    data(
        "text beside messages",
        "row 1: prompt is text, completion is messages",
        "the same form",
        content=[{"prompt": "a", "completion": [BOT]}],
    ),
    data(
        "messages without a role",
        "row 1: messages",
        "role",
        content=[{"messages": [{"content": "hi"}, {"content": "ho"}]}],
    ),
    data(
        "content of two kinds",
        "bad.jsonl, row 2: messages has a message whose role or content is no text",
        "wants text in both",
        content=[{"messages": [USER, BOT]}, {"messages": [USER | {"content": 3}, BOT]}],
    ),
    data(
        "numbers for content",
        "row 1: messages",
        "content",
        "wants text",
        content=[{"messages": [USER | {"content": 3}]}] * 4,
    ),
    data(
        "messages that end with the user",
        "no conversation ends with an assistant turn",
        content=[{"messages": [BOT, USER]}] * 2,
        eval_fraction=None,
    ),
    data(
        "roles that the template does not take",
        "row 1",
        "chat template",
        "roles must alternate",
        content=[{"messages": [USER, USER, BOT]}] * 2,
        eval_fraction=None,
    ),
    data(
        "one class only",
        "no column chosen",
        "prompt, completion, label",
        content=[{"prompt": "a", "completion": "b", "label": True}],
        recipe="reward",
    ),
]
ROWS_ = [
    data(
        "empty prompts", "no row is left of 2", "prompt is empty", content=[{"prompt": " \n", "completion": "x"}] * 2
    ),
    data(
        "null cells", "no row is left of 2", "completion is empty", content=[{"prompt": "a", "completion": None}] * 2
    ),
    data(
        "chosen is rejected",
        "no row is left of 3",
        "chosen and rejected are the same",
        content=[{"prompt": "a", "chosen": "b", "rejected": "b"}] * 3,
        recipe="reward",
    ),
    data(
        "every pair too long",
        "every pair is longer than max_length 8",
        "the shortest has 20 tokens",
        "raise it",
        file_name="pairs.jsonl",
        recipe="reward",
        max_length=8,
    ),
    data("every prompt too long", "prompt alone fills max_length 8", "raise it", file_name="sft.jsonl", max_length=8),
    data("all held out", "leaves one side empty", "more rows", content=SFT[:1]),
    data("one prompt only", "1 different prompts", "leaves one side empty", content=[SFT[0]] * 5),
    data(
        "held-out rows are the training rows",
        "every held-out row is in the training data too",
        "other held-out rows",
        file_name="sft.jsonl",
        eval_dataset="sft.jsonl",
        eval_fraction=None,
    ),
    data(
        "fewer prompts than a rollout",
        "train_dataset has 12 prompts, but one rollout takes 64",
        "lower",
        file_name="prompts.jsonl",
        recipe="ppo",
        per_device_train_batch_size=64,
    ),
    data(
        "nothing held out for ppo",
        "eval_dataset is not set",
        "held out",
        file_name="prompts.jsonl",
        recipe="ppo",
        eval_fraction=None,
    ),
    data(
        "dialogues without a prompt for ppo",
        "no column prompt",
        "no dialogues",
        content=[{"chosen": "a", "rejected": "b"}],
        recipe="ppo",
    ),
]


@cases(*FILES, *COLUMNS, *ROWS_)
def test_bad_data(door, place, case):
    if case.name.startswith("roles"):
        strict = (
            "{% if messages[0].role == messages[1].role %}{{ raise_exception('roles must alternate') }}{% endif %}"
        )
        (place / "base" / "chat_template.jinja").write_text(strict)
    check(door, place, case)
