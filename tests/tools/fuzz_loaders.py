"""The loaders that are fuzzed: for each one good files, and what reads them."""

import io
import json
import random
from collections.abc import Callable
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from typing import NamedTuple

import toy
import yaml
from conftest import build_model, build_tokenizer
from fuzz_files import (
    Files,
    answers,
    chat_template,
    checked_recipe,
    csv_rows,
    eval_files,
    files_of,
    jsonl,
    judge_files,
    judging_files,
    parquet,
    plain_json,
    run_folder,
    run_with,
)

from pipeline import cli, judging
from pipeline.chat import speakers
from pipeline.check import command
from pipeline.config import DataArguments, GRPOStage, ModelArguments, RewardStage, SFTStage
from pipeline.data import loading as data
from pipeline.errors import UserError
from pipeline.eval.candidates import read_candidates
from pipeline.eval.rows import load_rows
from pipeline.eval.settings import EvalArguments
from pipeline.exam.exam import RewardArguments
from pipeline.hub import card
from pipeline.hub.parcel import parcel
from pipeline.judging import pairs as judged
from pipeline.judging.verdicts import Verdicts
from pipeline.models import loading as models
from pipeline.models.adapters import POLICY
from pipeline.models.folders import resolve_model
from pipeline.ppo.config import PPOStage
from pipeline.report import charts, write_comparison, write_report
from pipeline.runs import checkpoint_loading
from pipeline.runs.folder import settings_of
from pipeline.safety.reading import read_yaml
from pipeline.stages import merge
from pipeline.stages.merge import MergeArguments
from rewards import Answer, Format, Instructions, Judge, Learned, Math, Perplexity, RewardError, build_rewards
from rewards.answer import MATCHES
from rewards.asking import columns_of
from rewards.chat_server import Passing, Reply
from rewards.reply_cache import ReplyCache, key_of
from rewards.rubric import Rubric

ROOT = Path(__file__).resolve().parents[2]


class Family(NamedTuple):
    """A kind of loader: good files, drawn anew for each case, and the loader of the folder with the broken ones."""

    seed: Callable[[random.Random], Files]
    load: Callable[[Path], object]


def make_families(folder: Path) -> dict[str, Family]:
    """All families; `folder` gets the good models that some of them need."""
    base, adapter, reward = make_models(folder)
    tokenizer = build_tokenizer()
    trainer, checkpoint = make_checkpoint(folder)
    run = run_folder()
    ReplyCache(folder / "cache.sqlite").put(key_of("x"), Reply("{}", 3))
    cache = (folder / "cache.sqlite").read_bytes()
    return {
        "yaml": Family(recipes, load_recipe),
        "jsonl": Family(jsonl, lambda place: load_data(place, tokenizer)),
        "json": Family(plain_json, lambda place: load_data(place, tokenizer)),
        "csv": Family(csv_rows, lambda place: load_data(place, tokenizer)),
        "parquet": Family(parquet, lambda place: load_data(place, tokenizer)),
        "adapter": Family(lambda rng: dict(adapter), load_adapter),
        "model": Family(lambda rng: dict(base), load_model),
        "reward": Family(lambda rng: dict(reward), load_reward),
        "checkpoint": Family(lambda rng: dict(checkpoint), lambda place: load_checkpoint(trainer, place)),
        "run": Family(lambda rng: dict(run), Reports()),
        "settings": Family(lambda rng: run_with(run, adapter), load_settings),
        "judging": Family(judging_files, load_judging),
        "eval": Family(eval_files, load_eval),
        "judge": Family(lambda rng: judge_files(rng, cache), load_judge),
        "answers": Family(Answers.seed, Answers()),
        "check": Family(checked_recipe, load_check),
        "template": Family(lambda rng: chat_template(), lambda place: load_template(place, tokenizer)),
    }


# ------------------------------------------------------------ recipes
STAGES = {
    "sft": (ModelArguments, DataArguments, SFTStage),
    "reward": (ModelArguments, DataArguments, RewardStage),
    "ppo": (ModelArguments, DataArguments, RewardArguments, PPOStage),
    "grpo": (ModelArguments, DataArguments, RewardArguments, GRPOStage),
    "judge": (judging.JudgeSettings,),
    "merge": (MergeArguments,),
    "eval": (EvalArguments,),
}
# The small ones more often: a parser of TRL's hundreds of settings takes long to build.
CHOICES = ("sft", "reward", "ppo", "grpo", *("judge", "merge", "eval") * 3)
SMALL = {
    "judge": b"samples: a.jsonl\noutput_dir: out\njudge: anna\ncolumns: [before, after]\nport: 8080\nseed: 3\n",
    "merge": b"run: runs/x/ppo\noutput: runs/x/merged\ndtype: float32\ntrust_remote_code: false\n",
}


def recipes(rng: random.Random) -> Files:
    stage = rng.choice(CHOICES)
    if stage in SMALL:
        return {f"{stage}.yaml": SMALL[stage]}
    path = rng.choice(sorted((ROOT / "recipes").glob(f"*/{stage}.yaml")))
    return {f"{stage}.yaml": path.read_bytes()}


def load_recipe(place: Path) -> None:
    path = next(place.iterdir())
    found = cli.parse(*STAGES[path.stem], argv=["--config", str(path)])
    text = yaml.safe_dump([settings_of(item) for item in found], allow_unicode=True)
    assert "python/" not in text
    specs = [spec for item in found for spec in getattr(item, "rewards", None) or []]
    # `module:function` is what a recipe may name
    build_rewards([spec for spec in specs if ":" not in str(spec.get("name"))])


# ------------------------------------------------------------ data


def load_data(place: Path, tokenizer) -> None:
    path = next(place.iterdir())
    kind = path.name.split(".")[0]
    told: list[str] = []
    train, heldout = data.load(DataArguments(str(path), eval_fraction=0.3), kind, 0, told.append)
    data.show_examples(train, heldout, tokenizer, kind, 64, str(path), told.append)


# ------------------------------------------------------------ models and adapters
def make_models(folder: Path) -> tuple[Files, Files, Files]:
    """Files of a base, of an SFT adapter on it and of a reward model on it; the base also lies in `folder`/base."""
    from peft import get_peft_model

    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "max_position_embeddings": 64}
    build_model(**small).save_pretrained(folder / "base")
    build_tokenizer().save_pretrained(folder / "base")
    args = ModelArguments(str(folder / "base"), lora_r=2)
    for name, kind in (("sft", "CAUSAL_LM"), ("reward", "SEQ_CLS")):
        model = models.load_base(args, "scores" if kind == "SEQ_CLS" else "causal", tokenizer=build_tokenizer())
        get_peft_model(model, models.lora_config(args, kind)).save_pretrained(folder / name)
        path = folder / name / "adapter_config.json"
        path.write_text(path.read_text().replace(str(folder / "base"), "base"))
        (folder / name / "README.md").unlink(missing_ok=True)
    return tuple(files_of(folder / name) for name in ("base", "sft", "reward"))


def load_model(place: Path) -> None:
    args = ModelArguments(str(place))
    stage = resolve_model(args)
    tokenizer = models.load_tokenizer(stage, args)
    models.load_base(args, base=stage.base, tokenizer=tokenizer)


def load_adapter(place: Path) -> None:
    args = ModelArguments(adapter_path=str(place))
    stage = resolve_model(args)
    tokenizer = models.load_tokenizer(stage, args)
    base = models.load_base(args, base=stage.base, tokenizer=tokenizer)
    models.load_adapter(base, stage.adapter, name=POLICY)


def load_reward(place: Path) -> None:
    Learned(str(place), device="cpu")(["say fox =>\n"], ["It is fox."])
    Perplexity(str(place), device="cpu")


# ------------------------------------------------------------ checkpoints
def make_checkpoint(folder: Path):
    """A trainer of PPO on the toy, and the files of its checkpoint in the middle of a rollout."""
    trainer = toy.make_trainer(folder / "ppo", save_strategy="steps", save_steps=1, logging_steps=1, replay=1)
    trainer.train()
    return trainer, files_of(folder / "ppo" / "checkpoint-1")


def load_checkpoint(trainer, place: Path) -> None:
    checkpoint_loading.check_checkpoint(place)
    checkpoint = str(place)
    trainer._load_from_checkpoint(checkpoint)
    trainer._load_optimizer_and_scheduler(checkpoint)
    trainer._load_rng_state(checkpoint)


# ------------------------------------------------------------ run folders


class Reports:
    """The pages and the card of a run. Drawing is what takes the time, so that every tenth case alone draws."""

    count = 0

    def __call__(self, place: Path) -> None:
        self.count += 1
        drawn = charts._svg
        if self.count % 10:
            charts._svg = lambda figure, *rest: charts.Markup("<svg></svg>")
        try:
            write_report(place / "x/ppo")
            write_comparison([place / "x/ppo", place / "x/reward"])
        finally:
            charts._svg = drawn
        if not self.count % 10:
            with redirect_stdout(io.StringIO()):
                card.write_card(place / "x/ppo")


# ------------------------------------------------------------ what is read of a run to go on with it


def load_settings(place: Path) -> None:
    problems = []
    loaders = (
        lambda: merge.run_arguments(place, MergeArguments(str(place), "out")),
        lambda: speakers.settings_of_run(place, own_code=False),
        lambda: parcel("policy", place, "me/model"),
    )
    with redirect_stdout(io.StringIO()):
        for load in loaders:
            try:
                load()
            except UserError as error:
                problems.append(error)
    if problems:
        raise problems[0]


# ------------------------------------------------------------ judging and evaluation


def load_judging(place: Path) -> None:
    from pipeline.judging import results, server

    samples = place / "samples.jsonl"
    found = judged.load(str(samples) if samples.exists() else None, place / "pairs.json", ["before", "after"], 0)
    with Verdicts(place / "verdicts" / "anna.jsonl", found, "anna") as verdicts:
        server.Session(verdicts).show()
    results.collect(place, found)


def load_eval(place: Path) -> None:
    (args,) = cli.parse(EvalArguments, argv=["--config", str(place / "eval.yaml")])
    specs = [
        {key: str(place / value) if str(value).startswith("..") else value for key, value in spec.items()}
        for spec in args.candidates
    ]
    read_candidates(specs, args.model_arguments())
    with redirect_stdout(io.StringIO()):
        load_rows(DataArguments(str(place / "prompts.jsonl")), args.eval_samples)


# ------------------------------------------------------------ a language model as the judge


def load_judge(place: Path) -> None:
    spec = read_yaml(place / "judge.yaml")
    if ":" in str(spec.get("name")):  # what a recipe may name
        return
    build_rewards([spec])
    judge = Judge("http://localhost:8000/v1", "m", cache=str(place / "cache.sqlite"))
    try:
        judge.server._read((place / "answer.json").read_bytes(), {"messages": []})
    except Passing as error:
        assert len(error.failure.reason) < 300
    reply = (place / "reply.txt").read_bytes().decode("utf-8", "replace")
    rubric = Rubric([{"name": "right", "description": "no mistakes"}], [1, 5])
    score = rubric.marked(reply, "the answer")
    assert score is None or 0 <= score <= 1
    rubric.mark(reply, reply)
    with judge._in_words():
        judge.asked.cache.get([key_of("x"), key_of("y")])
        judge.asked.cache.put(key_of("y"), Reply(reply, 2))


# ------------------------------------------------------------ answers to be checked
class Answers:
    """Rows and completions that the rewards for checkable answers score, and a schema."""

    math = Math(seconds=5)

    @classmethod
    def seed(cls, rng: random.Random) -> Files:
        cls.math.prepare()  # its process is started before anybody listens for processes
        return answers(rng)

    def __call__(self, place: Path) -> None:
        path, problems = next(place.glob("prompts.jsonl")), []
        try:
            train, _ = data.load(DataArguments(str(path)), "prompts", 0, lambda line: None)
            rows = train.to_list()
        except UserError as error:  # rewards may be given rows that our loaders would not have passed on
            problems.append(error)
            rows = unchecked(path)
        if not rows:
            raise problems[0]
        columns = columns_of(rows)
        said = [text if isinstance(text, str) else json.dumps(text) for text in columns.get("said", ["4"] * len(rows))]
        specs = [{"match": match, "column": "letter" if match == "choice" else "answer"} for match in MATCHES]
        makers = [*(partial(Answer, **spec) for spec in specs), partial(Answer, tag="answer", after="</think>")]
        makers += [lambda: self.math, partial(Format, sections=["think", "answer"], partial=True)]
        makers += [partial(Format, schema=str(place / "schema.json"), partial=whole) for whole in (True, False)]
        makers += [Instructions, lambda: build_rewards(["think_format_reward"])[0].reward]
        for make in makers:
            try:
                scores = make()([row["prompt"] for row in rows], said, **columns)
                assert len(scores) == len(rows) and all(score is None or 0 <= score <= 1 for score in scores)
            except RewardError as error:
                problems.append(error)
        if problems:
            raise problems[0]


def unchecked(path: Path) -> list[dict]:
    """The rows of a file that are JSON with a prompt and the same columns as the first, of whatever types."""
    found: list[dict] = []
    for line in path.read_bytes().split(b"\n"):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if (
            isinstance(row, dict)
            and isinstance(row.get("prompt"), str)
            and set(row) == set(found[0] if found else row)
        ):
            found.append(row)
    return found


def load_check(place: Path) -> None:
    """With the data of the place, whatever the broken recipe says, and without code of its own."""
    path = place / "ppo.yaml"
    found = read_yaml(path)
    if "dataset" in found:
        found["dataset"] = str(place / "rows.jsonl")
    found |= {key: None for key in ("model_name_or_path", "adapter_path", "eval_dataset") if key in found}
    if isinstance(specs := found.get("rewards"), list):
        found["rewards"] = [spec for spec in specs if not speakers._names_code(spec)]
    path.write_text(yaml.safe_dump(found, allow_unicode=True), encoding="utf-8")
    with redirect_stdout(io.StringIO()):
        command.check(str(path), count=4)


# ------------------------------------------------------------ chat templates


def load_template(place: Path, tokenizer) -> None:
    path = place / "template.jinja"
    reward = Learned(model=_JUDGE, tokenizer=tokenizer, template=str(path))
    messages = [{"role": "user", "content": "say fox"}], [{"role": "assistant", "content": "fox"}]
    reward([messages[0]], [messages[1]])


class _Judge:
    """Something with a score, for templates: what it says does not matter."""

    device = "cpu"

    class config:
        num_labels, id2label, problem_type, max_position_embeddings, pad_token_id = 1, {0: "x"}, None, 64, 0

        @classmethod
        def get_text_config(cls):
            return cls

    def __call__(self, input_ids, attention_mask):
        class Out:
            logits = input_ids[:, :1].float()

        return Out


_JUDGE = _Judge()
