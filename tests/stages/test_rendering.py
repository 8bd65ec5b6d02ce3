"""One place renders prompts: whatever a model reads in any stage is what it was trained on.

The references are TRL's own: what its trainers made of the same rows.
"""

import json
import re
from pathlib import Path

import pytest
import torch
from conftest import build_model, build_tokenizer
from datasets import Dataset, Json
from peft import LoraConfig, get_peft_model
from toy import randomize
from transformers import AutoModelForCausalLM
from trl import GRPOConfig, GRPOTrainer, RewardConfig, RewardTrainer, SFTConfig, SFTTrainer

from pipeline.chat import speakers
from pipeline.config import DataArguments, ModelArguments, RewardStage, SFTStage
from pipeline.data import loading as data
from pipeline.errors import UserError
from pipeline.eval import sampling
from pipeline.eval import stage as evaluation_stage
from pipeline.exam.exam import RewardArguments
from pipeline.ilql import data as offline
from pipeline.models import loading as models
from pipeline.models import probe, prompts
from pipeline.stages import ppo as ppo_stage
from pipeline.stages import reward_model, sft, trl_stage
from rewards import Learned, Perplexity
from rewards.base import RewardError
from rewards.rendering import TEMPLATE_COLUMNS

ROOT = Path(__file__).resolve().parents[2]
# Tools first; an answer without thinking begins with its mark; a style is shown wherever it is defined, null included.
TEMPLATE = (
    "{% if tools %}[{{ tools | map(attribute='name') | join(',') }}]{% endif %}"
    "{% if style is defined %}({{ style }}){% endif %}"
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<assistant>"
    "{% if enable_thinking is defined and enable_thinking is false %}<no>{% endif %}{% endif %}"
)
OFF = {"enable_thinking": False}
WORDS = [f"w{i}" for i in range(8)]


def asked(text: str) -> list[dict]:
    return [{"role": "user", "content": text}]


def said(text: str) -> list[dict]:
    return [{"role": "assistant", "content": text}]


# A row for each way of telling the template something, and what the prompt is then by the template above
ROWS = [
    ({}, "<user>hi<assistant>"),
    ({"chat_template_kwargs": OFF}, "<user>hi<assistant><no>"),
    ({"chat_template_kwargs": {"style": "dry"}}, "(dry)<user>hi<assistant>"),
    ({"tools": [{"name": "look", "of": {"a": 1}}, {"name": "go", "of": {"b": "x"}}]}, "[look,go]<user>hi<assistant>"),
    ({"tools": [{"name": "look"}], "chat_template_kwargs": OFF}, "[look]<user>hi<assistant><no>"),
    ({"tools": [], "chat_template_kwargs": None}, "<user>hi<assistant>"),
]


def tokenizer():
    made = build_tokenizer()
    made.chat_template = TEMPLATE
    return made


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("thinking") / "base"
    build_model().save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def written(folder: Path, rows: list[dict], name="rows.jsonl") -> str:
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder / name)


# ------------------------------------------------------------ by pencil
def test_what_a_row_tells_the_template_by_pencil():
    made = tokenizer()
    rows = [{"prompt": asked("hi")} | columns for columns, _ in ROWS] + [{"prompt": "plain text"}]
    wanted = [text for _, text in ROWS] + ["plain text"]
    assert [made.decode(ids) for ids in prompts.tokenize_prompts(made, rows)] == wanted
    assert [prompts.render(row, "prompts", made) for row in rows] == [[text] for text in wanted]


def test_the_setting_is_for_every_row_and_the_row_has_the_last_word(tmp_path):
    rows = [{"prompt": asked("hi"), "chat_template_kwargs": own} for own in (None, {"style": "dry"}, {"style": "no"})]
    args = DataArguments(written(tmp_path, rows), chat_template_kwargs='{"enable_thinking": false, "style": "wet"}')
    train, _ = data.load(args, "prompts")
    assert train["chat_template_kwargs"][:] == [OFF | {"style": style} for style in ("wet", "dry", "no")]
    wanted = [f"({style})<user>hi<assistant><no>" for style in ("wet", "dry", "no")]
    assert [tokenizer().decode(ids) for ids in prompts.tokenize_prompts(tokenizer(), list(train))] == wanted
    held = prompts.with_kwargs([{"prompt": asked("hi"), "chat_template_kwargs": {"style": "dry"}}], OFF)
    assert held == [{"prompt": asked("hi"), "chat_template_kwargs": OFF | {"style": "dry"}}]


@pytest.mark.parametrize(
    ("column", "value", "words"),
    [
        ("chat_template_kwargs", "off", "row 2: chat_template_kwargs wants a mapping"),
        ("tools", "hammer", "row 2: tools wants a list of functions"),
        ("tools", {"name": "look"}, "row 2: tools wants a list of functions"),
    ],
)
def test_what_the_template_cannot_be_told_is_refused_with_its_row(tmp_path, column, value, words):
    rows = [{"prompt": asked("hi"), column: None}, {"prompt": asked("hi"), column: value}]
    with pytest.raises(UserError, match=words):
        data.load(DataArguments(written(tmp_path, rows)), "prompts")
    rows = [{"prompt": "hi"}, {"prompt": "hi", column: value}]  # beside text it means nothing, to TRL neither
    assert data.load(DataArguments(written(tmp_path, rows)), "prompts")[0][1][column] == value


def test_a_setting_that_is_no_mapping_is_refused():
    with pytest.raises(UserError, match="chat_template_kwargs: 'off' is not valid: a mapping"):
        DataArguments("x", chat_template_kwargs="off")


def test_nobody_else_applies_a_chat_template():
    """Copies of the rendering went their own ways before there was one place for it."""
    calls = re.compile(r"\.apply_chat_template\(|maybe_apply_chat_template|max_position_embeddings")
    where = {
        str(path.relative_to(ROOT))
        for room in ("pipeline", "rewards", "recipes")
        for path in (ROOT / room).rglob("*.py")
        if calls.search(path.read_text("utf-8")) and "worlds" not in path.parts
    }
    # models/ends.py and text_ends.py look at how a template ends a turn; they render no prompt
    ends = {"pipeline/models/ends.py", "pipeline/rollouts/text_ends.py"}
    assert where == {"rewards/rendering.py", "pipeline/models/prompts.py", "rewards/model_based.py"} | ends


# ------------------------------------------------------------ against what TRL trains on
def rows_of(*names: str, as_text: bool = False) -> list[dict]:
    """The rows above with those of prompt, completion, chosen, rejected and messages that are named.

    Args: as_text: the columns for the template as JSON text, which a table keeps as it is.
    """
    each = {"prompt": asked("hi"), "completion": said("ho"), "chosen": said("yes"), "rejected": said("no")}
    each["messages"] = [*asked("hi"), *said("ho")]
    made = [{name: each[name] for name in names} | columns for columns, _ in ROWS]
    if as_text:
        made = [
            {k: json.dumps(v) if k in TEMPLATE_COLUMNS and v is not None else v for k, v in row.items()}
            for row in made
        ]
    return made


def for_trl(rows: list[dict]) -> Dataset:
    """As TRL takes them: no null, tools as a list; dicts of different keys kept apart."""
    rows = [{"tools": [], "chat_template_kwargs": {}} | row for row in rows]
    for row in rows:
        row["chat_template_kwargs"] = row["chat_template_kwargs"] or {}
    plain = Dataset.from_list([{k: v for k, v in row.items() if k not in TEMPLATE_COLUMNS} for row in rows])
    for name in TEMPLATE_COLUMNS:
        plain = plain.add_column(name, [json.dumps(row[name]) for row in rows], feature=Json())
    return plain


@pytest.mark.parametrize("names", [("prompt", "completion"), ("messages",)])
def test_sft_is_checked_and_trained_on_the_ids_of_trl(tmp_path, base, names):
    config = {"use_cpu": True, "bf16": False, "report_to": "none", "max_length": 64, "shuffle_dataset": False}
    rows = rows_of(*names)
    theirs = SFTTrainer(
        build_model(), SFTConfig(str(tmp_path / "trl"), **config), None, for_trl(rows), None, tokenizer()
    )
    wanted = [list(ids) for ids in theirs.train_dataset["input_ids"]]
    file = written(tmp_path, rows_of(*names, as_text=True))
    checked, _ = data.load(DataArguments(file), "sft")
    assert [prompts.ids(row, "sft", tokenizer())[0] for row in checked] == wanted
    seen = []

    class Spy(sft.SFT):
        def train(self, *args, **kwargs):
            seen.extend(list(ids) for ids in self.train_dataset["input_ids"])
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(sft, "SFT", Spy)
        stage = SFTStage(str(tmp_path / "out"), completion_only_loss=False, **config)
        sft.run(ModelArguments(str(base), lora_r=2), DataArguments(file), stage)
    assert seen == wanted
    assert tokenizer().decode(wanted[2]).startswith("(dry)<user>hi<assistant>ho</s>")


def test_a_reward_model_scores_the_ids_that_it_was_trained_on(tmp_path, base):
    rows = rows_of("prompt", "chosen", "rejected")
    config = {"use_cpu": True, "bf16": False, "report_to": "none", "max_length": 64}
    scorer = models.load_base(ModelArguments(str(base)), "scores", tokenizer=tokenizer())
    theirs = RewardTrainer(
        scorer, RewardConfig(str(tmp_path / "trl"), **config), None, for_trl(rows), None, tokenizer()
    )
    chosen, rejected = ([list(ids) for ids in theirs.train_dataset[f"{side}_ids"]] for side in ("chosen", "rejected"))
    seen = []

    class Spy(reward_model.Reward):
        def train(self, *args, **kwargs):
            seen.extend(self.train_dataset[side][:] for side in ("chosen_ids", "rejected_ids"))
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(reward_model, "Reward", Spy)
        file = written(tmp_path, rows_of("prompt", "chosen", "rejected", as_text=True))
        held_out = written(tmp_path, [{"prompt": asked("x"), "chosen": said("y"), "rejected": said("z")}], "h.jsonl")
        reward_model.run(
            ModelArguments(str(base), lora_r=2),
            DataArguments(file, eval_dataset=held_out),
            RewardStage(str(tmp_path / "out"), **config),
        )
    assert [[list(ids) for ids in side] for side in seen] == [chosen, rejected]
    read = []
    learned = Learned(model=scorer, tokenizer=tokenizer())
    learned.score_ids = lambda rows: read.extend(rows) or [0.0] * len(rows)
    columns = {name: [row.get(name) for row in rows] for name in ("tools", "chat_template_kwargs")}
    learned([row["prompt"] for row in rows], [row["chosen"] for row in rows], **columns)
    assert read == chosen
    assert learned.encode(rows[2]["prompt"], rows[2]["chosen"], rows[2]) == chosen[2]


def test_fluency_reads_the_prompt_of_the_policy():
    made = tokenizer()
    reward = Perplexity(model=build_model(), tokenizer=tokenizer())
    rows = rows_of("prompt")
    columns = {name: [row.get(name) for row in rows] for name in ("tools", "chat_template_kwargs")}
    read = []
    reward.score_rows = lambda rows: read.extend(rows) or [0.0] * len(rows)
    reward([row["prompt"] for row in rows], [said("ho")] * len(rows), **columns)
    assert [made.decode(row.ids[: row.start]) for row in read] == [text for _, text in ROWS]


def test_offline_completions_follow_the_prompt_of_the_policy():
    rows = Dataset.from_list(
        [{"prompt": asked("hi"), "completion": said("ho"), "chat_template_kwargs": {"style": "dry"}}]
    )
    [row] = offline.tokenize(rows, tokenizer(), 64)
    assert tokenizer().decode(row["prompt_ids"]) == "(dry)<user>hi<assistant>"
    assert tokenizer().decode(row["completion_ids"]) == "ho</s>"


def test_a_template_that_fails_is_named_with_the_roles():
    made = tokenizer()
    made.chat_template = "{{ raise_exception('no system here') }}"
    with pytest.raises(UserError, match=r"template does not take these messages \(user\): no system here; change"):
        prompts.tokenize_prompts(made, [{"prompt": asked("hi")}])
    reward = Learned(model=models.load_base, tokenizer=made)
    reward._prepare = lambda: None
    with pytest.raises(RewardError, match=r"does not take these messages \(user, assistant\): no system here"):
        reward.encode(asked("hi"), said("ho"))


# ------------------------------------------------------------ everything that a model reads, in every stage
class Read(list):
    """Every text of more than one token that the models of a stage read, without padding."""

    def of(self, model) -> None:
        def look(module, args, kwargs):
            ids = kwargs["input_ids"] if "input_ids" in kwargs else args[0]
            mask = kwargs.get("attention_mask")
            for i, row in enumerate(ids if ids.shape[1] > 1 else []):
                keep = torch.ones_like(row) if mask is None else mask[i, -len(row) :]
                self.append(row[keep.bool()].tolist())

        model.get_input_embeddings().register_forward_pre_hook(lambda module, args: None)
        model.register_forward_pre_hook(look, with_kwargs=True)

    def begin_with(self, begins: set[str]) -> None:
        texts = [tokenizer().decode(ids) for ids in self]
        assert len(texts) > 4
        for text in texts:
            assert any(text.startswith(begin) for begin in begins), text


@pytest.fixture
def read(monkeypatch):
    found, load_base = Read(), models.load_base

    def load(*args, **kwargs):
        model = load_base(*args, **kwargs)
        found.of(model)
        return model

    monkeypatch.setattr(models, "load_base", load)
    monkeypatch.setattr(probe, "check", lambda *args, **kwargs: None)  # which has the model read random ids
    return found


def length(prompts, completions, **columns):
    return [float(len(completion[0]["content"])) for completion in completions]


def rollouts(folder: Path, base: Path, algorithm: str, **kwargs) -> Path:
    rows = [
        {"prompt": asked(word), "chat_template_kwargs": {"style": word} if word == "w0" else None} for word in WORDS
    ]
    settings = {"use_cpu": True, "bf16": False, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    settings |= {"total_episodes": 4, "num_iterations": 1, "max_completion_length": 4, "disable_tqdm": True, "seed": 3}
    settings |= {"num_generations": 1 if algorithm == "ppo" else 2, "output_dir": str(folder / algorithm)}
    kind = {"ppo": ppo_stage.PPOStage, "grpo": trl_stage.GRPOStage, "rloo": trl_stage.RLOOStage}[algorithm]
    run = ppo_stage.run if algorithm == "ppo" else trl_stage.run
    run(
        ModelArguments(str(base), lora_r=2, dtype="float32"),
        DataArguments(written(folder, rows), eval_fraction=0.5),
        RewardArguments(rewards=[{"name": "test_rendering:length"}], eval_samples=3, show_samples=0),
        kind(**settings, **kwargs),
    )
    return folder / algorithm


BEGINS = {f"<user>{word}<assistant><no>" for word in WORDS[1:]} | {"(w0)<user>w0<assistant><no>"}


@pytest.mark.parametrize("algorithm", ["grpo", "rloo"])
def test_rollouts_and_exams_of_trls_trainers_read_the_same_prompts(tmp_path, base, algorithm, read, capsys):
    rollouts(tmp_path, base, algorithm, chat_template_kwargs=dict(OFF))
    read.begin_with(BEGINS)
    assert "example 1 text: <user>w" in capsys.readouterr().out.replace("(w0)", "")


def test_every_stage_reads_the_prompts_that_ppo_trained_on(tmp_path, base, read, capsys):
    folder = rollouts(tmp_path, base, "ppo", chat_template_kwargs=dict(OFF))
    read.begin_with(BEGINS)
    shown = re.findall(r"example \d text: (.*)", capsys.readouterr().out)
    assert shown and all(text in BEGINS for text in shown)
    # chat: an example with its columns, and what the user types
    read.clear()
    run = speakers.load_run(str(folder), own_code=True)
    for row in run.rows:
        speakers.answer(run, [row["prompt"]] * 2, row, 1.0, 0)
    speakers.answer(run, [asked("w7")] * 2, {}, 1.0, 0)
    read.begin_with(BEGINS)
    # eval and sample: as the run was trained, for the base beside it as well
    rows = written(tmp_path, [{"prompt": asked(word)} for word in WORDS[1:4]], "heldout.jsonl")
    common = {"max_completion_length": 4, "use_cpu": True, "dtype": "float32", "dataset": rows}
    read.clear()
    candidates = [{"base": str(base)}, {"ppo": str(folder)}]
    evaluation_stage.run(
        evaluation_stage.EvalArguments(candidates=candidates, output_dir=str(tmp_path / "eval"), **common)
    )
    read.begin_with(BEGINS)
    read.clear()
    sampling.run(sampling.SampleArguments(str(folder), output=str(tmp_path / "samples.jsonl"), **common))
    read.begin_with(BEGINS)
    read.clear()
    again = {"output": str(tmp_path / "on.jsonl"), "chat_template_kwargs": {"enable_thinking": True}}
    sampling.run(sampling.SampleArguments(str(folder), **again, **common))
    read.begin_with({f"<user>{word}<assistant>" for word in WORDS})
    assert not any("<no>" in tokenizer().decode(ids) for ids in read)


def test_candidates_that_were_trained_on_different_prompts_want_a_word(tmp_path, base):
    for name, kwargs in (("one", OFF), ("two", {"enable_thinking": True})):
        model = AutoModelForCausalLM.from_pretrained(base)
        model = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
        model.save_pretrained(tmp_path / name)
        (tmp_path / name / "config.yaml").write_text(json.dumps({"chat_template_kwargs": kwargs}))
    candidates = [{"base": str(base)}, *({name: str(tmp_path / name)} for name in ("one", "two"))]
    rows = written(tmp_path, [{"prompt": asked("w1")}])
    with pytest.raises(UserError, match="candidate one was trained with chat_template_kwargs .*, and two with"):
        evaluation_stage.run(
            evaluation_stage.EvalArguments(candidates=candidates, dataset=rows, output_dir=str(tmp_path / "x"))
        )


def test_held_out_prompts_count_for_the_room_in_the_context(tmp_path, base):
    train = written(tmp_path, [{"prompt": asked(word)} for word in WORDS])
    long = written(tmp_path, [{"prompt": asked("x" * 500)}], "long.jsonl")
    config = ppo_stage.PPOStage(str(tmp_path / "out"), use_cpu=True, bf16=False, max_completion_length=16)
    with pytest.raises(UserError, match="the longest prompt has 517 tokens .* but the model's context is 512"):
        rewards = RewardArguments(rewards=[{"name": length}])
        ppo_stage.run(ModelArguments(str(base)), DataArguments(train, eval_dataset=long), rewards, config)


def test_trls_own_trainer_makes_the_same_prompts(tmp_path):
    """What RowPrompts puts in the place of TRL's method gives TRL's ids, where TRL knows all there is to know."""
    args = GRPOConfig(str(tmp_path), use_cpu=True, bf16=False, report_to="none", chat_template_kwargs=dict(OFF))
    rows = Dataset.from_list([{"prompt": asked(word)} for word in WORDS])
    theirs = GRPOTrainer(build_model(), length, args, rows, processing_class=tokenizer())
    ours = trl_stage.CountedGRPO(
        get_peft_model(build_model(), LoraConfig(r=2, task_type="CAUSAL_LM")),
        length,
        args,
        rows,
        processing_class=tokenizer(),
    )
    for batch in (
        [asked("a b"), [*asked("a"), *said("b"), *asked("c")], [*asked("a"), *said("b")]],
        ["plain", "text"],
    ):
        wanted = GRPOTrainer._tokenize_prompts(theirs, batch)
        assert ours._tokenize_prompts(batch) == wanted
    randomize(ours.model, "default", 1)
