"""Rows of a file read back as they stand there: no key more, no number in another form, in every stage."""

import json

import pytest
import torch
from conftest import build_model, build_tokenizer
from datasets import Dataset, load_from_disk
from toy import lora

from pipeline.config import DataArguments, ModelArguments, SFTStage
from pipeline.data import exact_rows as exact_rows_module
from pipeline.data import loading as data
from pipeline.data.dialogues import as_messages
from pipeline.data.exact_rows import exact, exact_rows
from pipeline.data.loading import clean
from pipeline.data.readers import read
from pipeline.errors import UserError
from pipeline.ilql import data as ilql_data
from pipeline.ppo import PPOConfig, PPOTrainer
from pipeline.stages import sft

WEATHER = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}
ADD = {"type": "function", "function": {"name": "add", "arguments": {"a": 2, "b": 3, "digits": [1, 0.5]}}}
TALK = [
    [
        {"role": "user", "content": "Rain?"},
        {"role": "assistant", "tool_calls": [WEATHER]},
        {"role": "tool", "name": "weather", "content": "no"},
        {"role": "assistant", "content": "No."},
    ],
    [
        {"role": "user", "content": "2 + 3?"},
        {"content": None, "role": "assistant", "tool_calls": [ADD, WEATHER]},
        {"role": "tool", "content": "5"},
        {"role": "assistant", "content": "5."},
    ],
]
VALUES = [
    [{"city": "Oslo"}, {"a": 2, "b": 3}],
    [{"a": 1, "b": 2}, {"b": 2, "a": 1}],  # Arrow knows one order
    [{"a": None}, {"a": {}}, {}, None],
    [{"a": 1}, {"a": 0.5}, {"a": True}, {"a": "1"}, {"a": [1]}, {"a": {"b": 1}}],
    [[{"x": 1}], [{"y": [{"z": 1}, {"w": [[{"deep": None}]]}]}], []],
    [{"a": 0.1 + 0.2, "b": 1e-12, "c": 59.91273123456789}, {"d": 2**70, "e": -0.0}],
    [{"face": "\U0001f600"}, {"line": '\u2028 "quoted" \\ </s> é'}],
    [{"5": "5"}, {"json": '{"a": 1}'}, {"word": "null"}],
    [1, 0.5, None],
    [[1, 2], [0.5]],
    TALK,
]
# What the model is shown; a null or a key too many would stand in it.
TEMPLATE = (
    "{% for m in messages %}{{ '<' + m.role + '>' }}{% if m.content %}{{ m.content }}{% endif %}"
    "{% for call in m.tool_calls or [] %}{{ call | tojson }}{% endfor %}{{ eos_token }}{% endfor %}"
    "{% for tool in tools or [] %}{{ tool | tojson }}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)


def tokenizer():
    made = build_tokenizer()
    made.chat_template, made.model_max_length = TEMPLATE, 4096
    return made


def said(values) -> list[str]:
    """Unlike ==, this tells 1 from 1.0 and from true, and sees keys and their order."""
    return [json.dumps(value) for value in values]


def file_of(folder, rows, name="rows.jsonl"):
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(folder / name)


@pytest.mark.parametrize("values", VALUES, ids=lambda values: json.dumps(values)[:30])
def test_a_column_of_a_file_reads_back_as_it_stands_there(values, tmp_path):
    rows = read(file_of(tmp_path, [{"column": value, "other": "x"} for value in values]))
    assert said(rows["column"]) == said(row["column"] for row in rows) == said(values)
    (tmp_path / "rows.json").write_text(json.dumps([{"column": value} for value in values]))
    assert said(read(str(tmp_path / "rows.json"))["column"]) == said(values)


@pytest.mark.parametrize("values", VALUES, ids=lambda values: json.dumps(values)[:30])
def test_and_through_what_trl_and_we_do_with_rows(values, tmp_path):
    rows = exact({"column": values, "number": list(range(len(values)))})
    assert said(rows.map(lambda row: {"new": row["number"]})["column"]) == said(values)
    assert said(rows.map(lambda row: row)["column"]) == said(values)
    assert said(rows.filter(lambda row: row["number"] != 0)["column"]) == said(values[1:])
    assert said(rows.select([1, 0])["column"]) == said([values[1], values[0]])
    assert said(rows.to_dict()["column"]) == said(row["column"] for row in rows.to_list()) == said(values)
    rows.save_to_disk(str(tmp_path / "saved"))
    assert said(read(str(tmp_path / "saved"))["column"]) == said(values)
    assert said(load_from_disk(str(tmp_path / "saved"))["column"]) == said(values)
    rows.to_parquet(str(tmp_path / "rows.parquet"))
    assert said(read(str(tmp_path / "rows.parquet"))["column"]) == said(values)


def test_by_two_processes():
    rows = exact({"column": VALUES[4]}).map(lambda row: {"new": [row["column"]]}, num_proc=2)
    assert said(rows["column"]) == said(VALUES[4])
    assert said(rows["new"]) == said([[value] for value in VALUES[4]])


def test_a_key_that_only_a_late_row_has(tmp_path):
    # datasets settles the type of a column of a map by its first thousand rows
    late = [{"messages": TALK[0][-2:] if i == 1500 else [TALK[0][0], TALK[0][3]]} for i in range(1501)]
    late[1500]["messages"] = TALK[1][:2]
    rows = sft.to_prompt_completion(read(file_of(tmp_path, late)), SFTStage(output_dir="x", use_cpu=True), print)
    assert said(rows[1500]["completion"]) == said(TALK[1][1:2])
    assert said(rows[0]["completion"]) == said(TALK[0][3:])


def test_columns_that_arrow_does_not_change_keep_its_types():
    rows = exact({"a": ["x", None], "b": [1, 2], "c": [["x"], []], "d": [{"k": 1}, {"k": None}]})
    assert all("Json" not in str(kind) for kind in rows.features.values())
    with pytest.raises(ValueError):
        exact({"a": [1, "x"]})


def test_rows_of_different_keys():
    assert exact_rows([{"a": 1}, {"b": {"x": 1}}, {"b": {"y": 1}}]).to_list() == [
        {"a": 1, "b": None},
        {"a": None, "b": {"x": 1}},
        {"a": None, "b": {"y": 1}},
    ]


# ---------------------------------------------------------------- in the stages
@pytest.mark.parametrize("whole", [False, True])
def test_sft_learns_the_text_of_the_file(whole, tmp_path, tiny_model_folder, monkeypatch):
    made = []

    class Spy(sft.SFT):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            made.append(self)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sft, "SFT", Spy)
    monkeypatch.setattr(sft.models, "load_tokenizer", lambda *_: tokenizer())
    tools = [[WEATHER["function"]], [ADD["function"], WEATHER["function"]]]
    rows = [{"messages": turns, "tools": given} for turns, given in zip(TALK, tools, strict=True)]
    rows = [rows[i % 2] for i in range(4)]
    settings = {"completion_only_loss": False} if whole else {}
    sft.run(
        ModelArguments(model_name_or_path=str(tiny_model_folder), lora_r=2),
        DataArguments(dataset=file_of(tmp_path, rows)),
        SFTStage(output_dir="out", max_steps=1, save_strategy="no", use_cpu=True, max_length=512, **settings),
    )
    wanted = [tokenizer().apply_chat_template(row["messages"], tools=row["tools"], tokenize=False) for row in rows]
    assert '"arguments": {"city": "Oslo"}' in wanted[0] and "null" not in wanted[0]  # the test itself
    learned = [tokenizer().decode(row["input_ids"]) for row in made[0].train_dataset]
    assert learned == wanted


def test_ppo_asks_and_pays_by_the_text_of_the_file(tmp_path):
    args = [{"city": "Oslo"}, {"a": 2, "b": 3, "c": {"d": 0.1 + 0.2}}]
    rows = [{"prompt": turns[:3], "call": arg, "score": n} for turns, arg, n in zip(TALK, args, [1, 0.5], strict=True)]
    train, _ = data.load(DataArguments(dataset=file_of(tmp_path, rows)), "prompts")
    seen = {}

    def look(prompts, completions, call, score, **columns):
        seen.update({row[0][0]["content"]: said(row) for row in zip(prompts, call, score, strict=True)})
        return [0.0] * len(prompts)

    torch.manual_seed(0)
    trainer = PPOTrainer(
        model=build_model(),
        reward_funcs=look,
        args=PPOConfig(
            str(tmp_path / "out"),
            per_device_train_batch_size=2,
            gradient_accumulation_steps=1,
            num_mini_batches=1,
            max_completion_length=4,
            total_episodes=2,
            num_iterations=1,
            use_cpu=True,
            bf16=False,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
        ),
        train_dataset=train,
        processing_class=tokenizer(),
        peft_config=lora(),
    )
    asked = []
    generate = trainer._generate_single_turn
    trainer._generate_single_turn = lambda ids, *rest: asked.extend(ids) or generate(ids, *rest)
    trainer.train()
    assert seen == {row["prompt"][0]["content"]: said([row["prompt"], row["call"], row["score"]]) for row in rows}
    wanted = {tokenizer().apply_chat_template(r["prompt"], tokenize=False, add_generation_prompt=True) for r in rows}
    assert {tokenizer().decode(ids) for ids in asked} == wanted


def test_ilql_keeps_the_columns_of_the_rewards(tmp_path):
    rows = [{"prompt": "a =>", "completion": " b", "call": call} for call in VALUES[0]]
    train, _ = data.load(DataArguments(dataset=file_of(tmp_path, rows)), "sft")
    assert said(ilql_data.tokenize(train, build_tokenizer(), 64)["call"]) == said(VALUES[0])


def test_preference_pairs_and_held_out_rows(tmp_path):
    pairs = [
        {"prompt": turns[:1], "chosen": turns[1:2], "rejected": [{"role": "assistant", "content": "?"}]}
        for turns in TALK
    ]
    rows = [pairs[i % 2] | {"prompt": [{"role": "user", "content": f"{i}"}]} for i in range(6)]
    train, heldout = data.load(DataArguments(dataset=file_of(tmp_path, rows), eval_fraction=0.34), "preference")
    kept = [*train, *heldout]
    assert len(kept) == 6  # an answer that only calls tools is none of nothing
    assert sorted(said(kept)) == sorted(said(rows))


def test_what_is_no_message_is_still_refused(tmp_path):
    rows = [{"messages": [{"role": "user"}, {"role": "assistant", "content": "x"}]}]
    with pytest.raises(UserError, match="row 1: messages is list, but wants text or messages"):
        data.load(DataArguments(dataset=file_of(tmp_path, rows)), "sft")


def test_a_file_longer_than_a_piece_reads_as_the_same_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(exact_rows_module, "PIECE", 3)
    same = [{"prompt": f"p {i}", "n": i, "call": {f"key{i % 2}": i}} for i in range(8)]
    later = [{"prompt": "a", "n": 1} for _ in range(4)] + [{"prompt": "b", "n": 0.5, "more": None}]
    for name, rows in (("same", same), ("later", later)):
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        assert [{k: v for k, v in row.items() if k in rows[0]} for row in read(str(path))] == [
            {k: row[k] for k in rows[0]} for row in rows
        ]
    mixed = tmp_path / "mixed.jsonl"
    mixed.write_text("".join(json.dumps({"prompt": "a" if i < 5 else 5}) + "\n" for i in range(8)))
    with pytest.raises(UserError, match="row 6: column prompt is a number, but text before"):
        read(str(mixed))


# A piece alone would be a column of Arrow's own type; two of them make one that changes what stands in them.
@pytest.mark.parametrize(
    "first, later",
    [
        ({"a": 1}, {"b": 2}),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
        ({}, {"a": 1}),
        ([{"x": {"a": 1}}], [{"x": {"b": 1}}]),
        (["x"], [{"a": 1}]),
        (None, {"a": [None]}),
        ({"a": None}, {"a": {"b": 1}}),
        ([], [1, 0.5]),
        ({"n": 1}, {"n": 2**70}),
    ],
)
def test_pieces_of_unlike_dicts_are_not_laid_over_each_other(first, later, tmp_path, monkeypatch):
    monkeypatch.setattr(exact_rows_module, "PIECE", 3)
    values = [first] * 3 + [later] * 4
    rows = read(file_of(tmp_path, [{"column": value, "other": "x"} for value in values]))
    assert said(rows["column"]) == said(values)


def test_rows_without_a_column_are_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(exact_rows_module, "PIECE", 2)
    assert read(file_of(tmp_path, [{}, {}, {}, {"a": "x"}, {}]))["a"][:] == [None, None, None, "x", None]


@pytest.mark.parametrize("deep", ["[" * 80 + "1" + "]" * 80, '{"a":' * 80 + "1" + "}" * 80])
def test_what_is_nested_deeper_than_arrow_goes(deep, tmp_path):
    path = tmp_path / "deep.jsonl"
    path.write_text(f'{{"p": 1}}\n{{"p": {deep}}}\n')
    with pytest.raises(UserError, match="row 2: column p is a (list|mapping), but a number before"):
        read(str(path))
    path.write_text(f'{{"p": {deep}}}\n')
    if deep[0] == "[":
        with pytest.raises(UserError, match="row 1: the values of column p do not fit one type"):
            read(str(path))
    else:
        assert said(read(str(path))["p"]) == said([json.loads(deep)])


def test_a_dialogue_file_longer_than_a_piece_keeps_its_rows(monkeypatch):
    monkeypatch.setattr(exact_rows_module, "PIECE", 2)
    rows = [
        {
            "chosen": f"\n\nHuman: {i}?\n\nAssistant: yes",
            "rejected": f"\n\nHuman: {i if i != 3 else 'x'}?\n\nAssistant: no",
        }
        for i in range(5)
    ]
    pairs, notes = clean(Dataset.from_list(rows), "preference")
    assert notes == ["data: prompt taken from the dialogue in 4 of 5 rows"]
    assert pairs["prompt"][:] == [f"\n\nHuman: {i}?\n\nAssistant:" if i != 3 else "" for i in range(5)]
    assert pairs["chosen"][:] == [" yes", " yes", " yes", rows[3]["chosen"], " yes"]
    assert pairs["rejected"][:] == [" no", " no", " no", rows[3]["rejected"], " no"]
    said = []
    messages = as_messages(Dataset.from_list(rows), "sft", "data", said.append)
    assert said == ["data: 1 rows dropped: no two dialogues with one prompt"]
    assert messages["messages"][:] == [
        [{"role": "user", "content": f"{i}?"}, {"role": "assistant", "content": "yes"}] for i in (0, 1, 2, 4)
    ]
