"""Roughly how long a recipe takes here: what its YAMLs ask for, times the pace of this machine (probe.py)."""

import gzip
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from statistics import mean
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from transformers import AutoConfig, PreTrainedConfig

from pipeline import cli
from pipeline.config import ModelArguments, steps_per_update
from pipeline.data.readers import data_suffix, read_file
from pipeline.errors import UserError, shortened
from pipeline.eval import sharpened
from pipeline.eval.settings import EvalArguments
from pipeline.memory.estimate import Adapter, Architecture
from pipeline.memory.scale import SIZES, learning
from pipeline.models.folders import resolve_stage
from pipeline.models.precision import resolve_dtype
from pipeline.sweep.settings import dataclasses_of
from pipeline.worlds import BaseModelSettings, WorldSettings, load_world
from pipeline.worlds.base_model import config_of
from pipeline.worlds.gguf import GGUFSettings
from plumbline.new_recipe import command_of
from plumbline.probe import Batch, Pace

STAGES = ("base", "sft", "reward", "ppo", "grpo", "rloo", "eval")
ALGORITHMS = ("a2c", "reinforce")  # of the PPO stage
START = 10.0  # seconds: the libraries are imported, the model is loaded, the report is written
EVAL_ROWS = 64  # prompts of an evaluation that are answered at once, roughly
SAMPLE = 64  # rows that are looked at to know how long one is
UNKNOWN_ROWS, UNKNOWN_BYTES = 10_000, 1_000  # where the data are not here
BYTES = {True: 3.0, False: 4.0}  # of text a token, with a vocabulary of less than 5,000 words and a larger one
BY_MODEL = ("learned", "perplexity", "reconstruction", "relevance", "judge")  # rewards that ask a model


@dataclass
class Work:
    """What a stage does with the model."""

    stage: str
    config: PreTrainedConfig
    dtype: torch.dtype
    rank: int
    batch: Batch
    learned: float = 0.0  # tokens, forward and backward
    learned_all: float = 0.0  # tokens, all weights
    looked: float = 0.0  # tokens, forward
    drawn: float = 0.0  # steps of sampling, for a whole batch of completions
    guessed: list[str] = field(default_factory=list)

    def seconds(self, pace: Pace) -> float:
        """At that pace."""
        learned = self.learned * pace.learn + self.learned_all * pace.learn_all
        return START + learned + self.looked * pace.look + self.drawn * pace.draw


@dataclass(frozen=True)
class Rows:
    """How many, and how many bytes of text one has in its columns."""

    count: int
    bytes: Mapping[str, float]
    guess: str | None = None

    def of(self, *columns: str) -> float:
        return sum(self.bytes.get(column, 0.0) for column in columns)


class Made(NamedTuple):
    """What the base stage of a recipe makes."""

    settings: WorldSettings
    model: BaseModelSettings
    gguf: GGUFSettings


def made_by(folder: Path) -> Made | None:
    """The settings in base.yaml; None where the recipe has none."""
    path = folder / "base.yaml"
    return Made(*cli.parse(*Made.__annotations__.values(), argv=["--config", str(path)])) if path.is_file() else None


def work_of(path: Path) -> Work | None:
    """What the stage of a YAML does; None for stages of which nothing is reckoned.

    Raises:
        UserError: the stage would not take the YAML, or its model is not known here.
    """
    stage = command_of(path)
    stage = "ppo" if stage in ALGORITHMS else stage
    if stage not in STAGES:
        return None
    made = made_by(path.parent)
    if stage == "base":
        return None if made is None or made.gguf.given else _base(made)
    kinds = (EvalArguments,) if stage == "eval" else dataclasses_of(stage)
    values: dict[str, Any] = {}
    for item in reversed(cli.parse(*kinds, argv=["--config", str(path)])):
        values |= vars(item)
    if stage == "eval":
        return _eval(values, made)
    model = model_of(values.get("model_name_or_path"), made)
    rows = rows_of(values["dataset"], made)
    if values.get("max_rows"):
        rows = replace(rows, count=min(rows.count, values["max_rows"]))
    settings = _Settings(stage, values, model, rows, made)
    return _rollouts(settings) if stage in ("ppo", "grpo", "rloo") else _taught(settings)


@dataclass
class _Settings:
    """A stage's settings by name, with what they are about."""

    stage: str
    values: dict[str, Any]
    model: PreTrainedConfig
    rows: Rows
    made: Made | None

    def __getitem__(self, key: str) -> Any:
        return self.values[key]

    def tokens(self, *columns: str) -> float:
        """Of a row's text in these columns."""
        return self.rows.of(*columns) / BYTES[self.model.vocab_size < 5000]

    def row(self, *columns: str) -> float:
        """The same; where a row has other columns, which a template puts together, of half of its text."""
        return self.tokens(*columns) or self.tokens(*self.rows.bytes) / 2

    def work(self, batch: Batch) -> Work:
        names = {each.name for each in fields(ModelArguments)}
        model = ModelArguments(**{key: value for key, value in self.values.items() if key in names})
        dtype = resolve_dtype(model)
        guessed = [self.rows.guess] if self.rows.guess else []
        return Work(self.stage, self.model, dtype, self.values.get("lora_r", 16), batch, guessed=guessed)


def _base(made: Made) -> Work:
    world, settings = load_world(made.settings.world), made.settings
    few = _few(settings)
    texts = [first + text for first, text in world.pretraining_texts(few, world.make_data(few))]
    length = mean(len(text.encode()) for text in texts) / BYTES[True]
    batch = Batch(made.model.pretraining_batch_size, round(length))
    work = Work("base", config_of(made.model, made.model.vocab_size), torch.float32, 16, batch)
    work.learned_all = settings.pretraining_texts * made.model.pretraining_epochs * length
    return work


def _taught(asked: _Settings) -> Work:
    """SFT and the reward model, whose rows are pairs."""
    pair = asked.stage == "reward"
    longest = asked["max_length"] or math.inf
    if pair:
        length = mean(min(asked.row("prompt", answer), longest) for answer in ("chosen", "rejected"))
    else:
        length = min(asked.row("prompt", "completion", "messages", "text"), longest)
    length, sequences = max(length, 1), 1 + pair
    micro = asked["per_device_train_batch_size"]
    work = asked.work(Batch(micro * sequences, round(length)))
    held_out = asked["eval_fraction"] or 0
    rows = asked.rows.count * (1 - held_out) * asked["num_train_epochs"]
    if asked["max_steps"] > 0:
        rows = asked["max_steps"] * micro * asked["gradient_accumulation_steps"]
    work.learned = rows * sequences * length * _again(asked)
    if pair:  # a pace is of a model that says words
        work.learned *= _without_words(work)
    held = rows_of(asked["eval_dataset"], asked.made).count if asked["eval_dataset"] else held_out * asked.rows.count
    work.looked = 2 * held * sequences * length
    return work


def _without_words(work: Work) -> float:
    """The part of a model's arithmetic that is left where a score takes the place of the words."""
    model, adapter = Architecture.of(work.config.get_text_config()), Adapter(work.rank)
    trunk, whole = (learning(model, adapter, 1, work.batch.length, words, False) for words in (0, 1))
    return trunk / whole


def _rollouts(asked: _Settings) -> Work:
    """PPO and its kin: completions are sampled, looked at, and learned from several times."""
    episodes = asked["generation_batch_size"]
    updates = asked["max_steps"] / steps_per_update(SimpleNamespace(**asked.values))
    if updates <= 0:
        updates = asked["num_train_epochs"] * asked.rows.count * asked["num_generations"] / episodes
    prompt, answer, steps = _lengths(asked)
    length = prompt + answer
    work = asked.work(Batch(asked["per_device_train_batch_size"], round(length), episodes))
    critic = asked.stage == "ppo" and asked["algorithm"] != "reinforce"
    share = min(1, (asked["critic_layers"] or math.inf) / asked.model.num_hidden_layers) if critic else 0
    models = sum(spec["name"] in BY_MODEL for spec in asked["rewards"])
    tokens = updates * episodes * length
    work.learned = tokens * asked["num_iterations"] * (1 + share) * _again(asked)
    work.looked = tokens * (2 + critic + models)
    work.drawn = updates * steps
    exams = 2 + (updates // asked["eval_every"] if asked["eval_every"] else 0)
    questions = asked["eval_samples"]
    work.drawn += exams * 2 * steps * max(1, questions / episodes)  # sampled and greedy
    work.looked += exams * 2 * questions * length * (2 + models)
    work.guessed.append(f"completions of {answer:.0f} tokens")
    return work


def _eval(values: dict[str, Any], made: Made | None) -> Work:
    rows = rows_of(values["dataset"], made)
    named = next(iter(values["candidates"][0].values()))
    asked = _Settings("eval", values, model_of(named, made), rows, made)
    prompt, answer, steps = _lengths(asked)
    count = min(rows.count, values.get("eval_samples") or rows.count)
    work = asked.work(Batch(16, round(prompt + answer), min(count, EVAL_ROWS)))
    candidates, models = len(values["candidates"]), sum(spec["name"] in BY_MODEL for spec in values["rewards"] or ())

    def say(rows: int, times: int = 1, passes: int = 0) -> None:
        """`rows` are answered so many times, and each answer is looked at in so many passes."""
        work.drawn += times * steps * max(1, rows / EVAL_ROWS)
        work.looked += times * passes * rows * (prompt + answer)

    if values["outputs"]:  # greedy answers, of which nothing is said
        say(count)
        return work
    say(count, 2 * candidates, 2 + models)  # greedy and sampled
    if values["best_of"]:
        say(count * values["best_of"], passes=models)
    if values["sharpened"]:  # at several temperatures, until the entropy is the policy's; then one more candidate
        few, trained = min(count, sharpened.TEXTS), _trained(values)
        work.looked += candidates * few * (prompt + answer)
        say(few, trained * sharpened.HALVINGS, passes=1)
        say(count, trained, 3 + models)
    return work


def _trained(values: dict[str, Any]) -> int:
    """The candidates of an evaluation beside the reference and, where that is known, the base under it."""
    paths = {name: str(path) for each in values["candidates"] for name, path in each.items()}
    reference = values["reference"] or next(iter(paths))
    try:
        base = resolve_stage(paths[reference]).base
    except (UserError, KeyError):  # of a run that is still to be made: it stands on one of the candidates, mostly
        base = next((path for path in paths.values() if Path(path).name == "base"), "")
    return sum(name != reference and Path(path) != Path(base) for name, path in paths.items())


def _lengths(asked: _Settings) -> tuple[float, float, float]:
    """Tokens of a prompt, of a completion, and of the longest completion of a batch, which sampling waits for."""
    longest = asked["max_completion_length"]
    reference = asked.tokens("references") or asked.tokens("completion") or 0.5 * longest
    return max(1.0, asked.row("prompt", "messages")), min(reference, longest), min(2 * reference, longest)


def _again(asked: _Settings) -> float:
    """Gradient checkpointing makes the forward pass twice: 4 passes in place of 3."""
    return 4 / 3 if asked["gradient_checkpointing"] else 1.0


# ------------------------------------------------------------ models and data
def model_of(name: str | None, made: Made | None) -> PreTrainedConfig:
    """The config of a model, without a request to the network: of a folder, of what base.yaml will make, of a copy in
    the cache, or of one with the size that stands in its name.

    Raises:
        UserError: none of these is known.
    """
    try:
        if name and (Path(name, "config.json").is_file() or not name.startswith("runs/")):
            found: PreTrainedConfig = AutoConfig.from_pretrained(name, local_files_only=True)
            return found
    except (OSError, ValueError):
        pass
    if made and not made.gguf.given and str(name).startswith(made.settings.output_dir):
        return config_of(made.model, made.model.vocab_size)
    for size, config in SIZES.items():
        if name and f"-{size.lower()}" in name.lower():
            return config
    raise UserError(f"{name or 'model_name_or_path'} is not on this machine, so that its size is not known yet")


def rows_of(dataset: str | None, made: Made | None) -> Rows:
    """How many rows a data set has, and how long they are; guessed where it is not here."""
    path = Path(str(dataset))
    if path.is_file() and path.name.endswith((".jsonl", ".jsonl.gz")):
        return _read(path)
    if path.is_file() and data_suffix(path):
        rows = read_file(path)
        return Rows(len(rows), _bytes(rows.select(range(min(SAMPLE, len(rows)))).to_list()))
    if made and str(dataset).startswith(made.settings.output_dir) and made.settings.data_path is None:
        few = load_world(made.settings.world).make_data(_few(made.settings))
        return Rows(made.settings.rows().get(path.stem, 0), _bytes(few.get(path.stem, [])))
    halves = dict.fromkeys(("prompt", "completion", "chosen", "rejected", "references"), UNKNOWN_BYTES / 2)
    return Rows(UNKNOWN_ROWS, halves, f"{UNKNOWN_ROWS:,} rows of {UNKNOWN_BYTES:,} letters, as {dataset} was not read")


def _read(path: Path) -> Rows:
    """Rows of a file of JSON lines."""
    opened = gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8")
    try:
        with opened as lines:
            first = [json.loads(line) for _, line in zip(range(SAMPLE), lines, strict=False) if line.strip()]
            count = len(first) + sum(1 for line in lines if line.strip())
    except (OSError, EOFError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSON lines: {shortened(str(error))}") from None
    return Rows(count, _bytes([row for row in first if isinstance(row, dict)]))


def _few(settings: WorldSettings) -> WorldSettings:
    """The same world with SAMPLE rows of everything, which takes no time."""
    few = replace(settings, pretraining_texts=SAMPLE, synthetic_prompts=0)
    for key in (each.name for each in fields(settings) if each.name.endswith("_rows")):
        setattr(few, key, SAMPLE)
    return few


def _bytes(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Column -> mean bytes of its text; of several references the first counts."""
    columns = {column for row in rows for column in row}
    return {column: mean(len(_text(column, row.get(column)).encode()) for row in rows) for column in columns}


def _text(column: str, value: Any) -> str:
    if isinstance(value, list) and value and isinstance(value[0], dict):  # messages
        return " ".join(str(turn.get("content") or "") for turn in value)
    if isinstance(value, list):
        return str(value[0]) if value else ""
    return str(value or "")
