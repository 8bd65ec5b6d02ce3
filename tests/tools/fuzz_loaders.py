"""The loaders that are fuzzed: for each one good files, and what reads them."""

import gzip
import io
import json
import random
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import NamedTuple

import pyarrow
import pyarrow.parquet
import toy
import yaml
from conftest import build_model, build_tokenizer

from pipeline import cli, judging
from pipeline.chat import speakers
from pipeline.config import DataArguments, GRPOStage, ModelArguments, RewardStage, SFTStage
from pipeline.data import loading as data
from pipeline.errors import UserError
from pipeline.eval.candidates import read_candidates
from pipeline.eval.rows import load_rows
from pipeline.eval.stage import EvalArguments
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
from pipeline.stages import merge
from pipeline.stages.merge import MergeArguments
from rewards import Learned, Perplexity, build_rewards

ROOT = Path(__file__).resolve().parents[2]
Files = dict[str, bytes]
WORDS = ("fox", "owl", "newt", "hare", "wren", "mole")


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
        "template": Family(lambda rng: chat_template(), lambda place: load_template(place, tokenizer)),
    }


def files_of(folder: Path) -> Files:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def lines(rows: list[dict]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


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
def rows_of(rng: random.Random, kind: str) -> list[dict]:
    def text(role: str, words: str):
        return [{"role": role, "content": words}] if messages else words

    messages = rng.random() < 0.3
    rows = []
    for word in WORDS:
        row = {"prompt": text("user", f"say {word} =>\n")}
        if kind == "sft":
            row["completion"] = text("assistant", f"It is {word}.")
        elif kind == "preference":
            row |= {"chosen": text("assistant", f"It is {word}."), "rejected": text("assistant", "No, “é” \t!")}
        else:
            row |= {"facts": [word, "x"], "number": 3, "ratio": 0.5, "yes": True, "none": None}
        rows.append(row)
    return rows


def kind_of(rng: random.Random) -> str:
    return rng.choice(("sft", "preference", "prompts"))


def jsonl(rng: random.Random) -> Files:
    kind = kind_of(rng)
    content = lines(rows_of(rng, kind))
    return rng.choice(({f"{kind}.jsonl": content}, {f"{kind}.jsonl.gz": gzip.compress(content, mtime=0)}))


def plain_json(rng: random.Random) -> Files:
    kind = kind_of(rng)
    rows = rows_of(rng, kind)
    return {f"{kind}.json": json.dumps(rng.choice((rows, {"data": rows}))).encode()}


def csv_rows(rng: random.Random) -> Files:
    import csv

    stream, suffix = io.StringIO(), rng.choice(("csv", "tsv", "csv.gz"))
    writer = csv.writer(stream, delimiter="\t" if suffix == "tsv" else ",")
    writer.writerow(("prompt", "completion"))
    writer.writerows((f"say {word}, =>\n", f'It is "{word}".') for word in WORDS)
    content = stream.getvalue().encode()
    return {f"sft.{suffix}": gzip.compress(content, mtime=0) if suffix.endswith("gz") else content}


def parquet(rng: random.Random) -> Files:
    kind, stream = kind_of(rng), io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows_of(rng, kind)), stream)
    return {f"{kind}.parquet": stream.getvalue()}


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
def run_folder() -> Files:
    """What PPO leaves, small."""
    text = "say fox =>\n"
    means = {"keyword": 0.5, "gold": 0.25, "length": 4.0}
    summary = {"algorithm": "ppo", "before": means, "after": means, "kl": 1.5, "heldout": 2, "seed": 0, "seconds": 9.0}
    summary |= {"greedy": {"before": means, "after": means}, "episodes": 8, "tokens": 30, "base": "base"}
    exams = [
        {
            "step": i,
            "episodes": 4 * i,
            "kl": 0.5 * i,
            "score": 0.1 * i,
            "rewards": {"keyword": 0.1},
            "referee": {"gold": 0.3},
        }
        for i in range(3)
    ]
    samples = [
        {"prompt": text, "before": "a b", "after": f"c {i}", "length_before": 2, "length_after": 3}
        | {"scores_before": {"keyword": 0.1 * i}, "scores_after": {"keyword": 0.3}}
        for i in range(3)
    ]
    numbers = [0.5, -0.25]
    names = ("rewards", "scores", "values", "advantages", "kl", "probs_before", "probs_after")
    tokens = {"prompt": text, "why": "best", "row": 0, "score": 1.0, "score_before": 0.5, "tokens": ["a", ""]}
    tokens |= {"silent": {"1": "<eos>"}, **dict.fromkeys(names, numbers)}
    shift = {
        "token": " a",
        "id": 3,
        "before": 1.0,
        "after": 2.0,
        "change": 1.0,
        "sampled_before": 1,
        "sampled_after": 2,
    }
    shift |= {"example": {"prompt": text, "context": "", "before": 0.1, "after": 0.2}}
    pair = {"prompt": text, "chosen": "a", "rejected": "b", "score_chosen": 1.0, "score_rejected": 0.5}
    config = {"model_name_or_path": "base", "rewards": [{"name": "keyword", "column": "facts"}], "seed": 0}
    config |= {"dataset": "a.jsonl", "output_dir": "runs/x/ppo", "learning_rate": 0.1, "versions": {"torch": "2.13"}}
    metrics = [{"step": i, "epoch": 0.1 * i, "score": 0.1 * i, "kl": 0.2, "time/update": 1.0} for i in range(3)]
    return {
        "x/ppo/summary.json": json.dumps(summary).encode(),
        "x/ppo/heldout.jsonl": lines(exams),
        "x/ppo/samples.jsonl": lines(samples),
        "x/ppo/tokens.jsonl": lines([tokens]),
        "x/ppo/shifts.json": json.dumps(
            {"completions": [2, 2], "positions": 9, "gains": [shift], "losses": []}
        ).encode(),
        "x/ppo/metrics.jsonl": lines(metrics),
        "x/ppo/config.yaml": yaml.safe_dump(config).encode(),
        "x/reward/pairs.jsonl": lines([pair, pair | {"score_chosen": 0.1}]),
        "x/reward/metrics.jsonl": lines(metrics[:2]),
        "x/reward/summary.json": json.dumps(
            {"stage": "reward", "accuracy": 0.5, "heldout_pairs": 2, "calibration_error": 0.1}
            | {"calibration_bins": [{"from": 0.5, "to": 0.55, "pairs": 2, "confidence": 0.52, "accuracy": 0.5}]}
        ).encode(),
    }


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
def run_with(run: Files, adapter: Files) -> Files:
    found = {Path(name).name: content for name, content in run.items() if name.startswith("x/ppo")}
    return {name: found[name] for name in ("summary.json", "config.yaml")} | adapter


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
def judging_files(rng: random.Random) -> Files:
    samples = [{"prompt": f"say {w}", "before": f"a {w}", "after": f"b {w}"} for w in WORDS]
    made = {"columns": ["before", "after"], "seed": 0, "identical": 0}
    made["pairs"] = [{"prompt": r["prompt"], "first": r["before"], "second": r["after"]} for r in samples]
    verdicts = [
        {"pair": i + 1, "prompt": r["prompt"], "left": "before", "right": "after", "verdict": "left", "seconds": 1.5}
        for i, r in enumerate(samples[:3])
    ]
    files = {"pairs.json": json.dumps(made).encode(), "verdicts/anna.jsonl": lines(verdicts)}
    return files if rng.random() < 0.7 else {"samples.jsonl": lines(samples)}


def load_judging(place: Path) -> None:
    from pipeline.judging import results, server

    samples = place / "samples.jsonl"
    found = judged.load(str(samples) if samples.exists() else None, place / "pairs.json", ["before", "after"], 0)
    with Verdicts(place / "verdicts" / "anna.jsonl", found, "anna") as verdicts:
        server.Session(verdicts).show()
    results.collect(place, found)


def eval_files(rng: random.Random) -> Files:
    recipe = "candidates:\n- base: ../base\n- sft: ../sft\nreference: sft\ndataset: prompts.jsonl\nseed: 0\n"
    rows = [{"mr": f"name[{w}], food[Fish]", "ref": f"{w} has fish."} for w in WORDS] if rng.random() < 0.5 else None
    return {"eval.yaml": recipe.encode(), "prompts.jsonl": lines(rows or rows_of(rng, "prompts"))}


def load_eval(place: Path) -> None:
    (args,) = cli.parse(EvalArguments, argv=["--config", str(place / "eval.yaml")])
    specs = [
        {key: str(place / value) if str(value).startswith("..") else value for key, value in spec.items()}
        for spec in args.candidates
    ]
    read_candidates(specs, args.model_arguments())
    with redirect_stdout(io.StringIO()):
        load_rows(DataArguments(str(place / "prompts.jsonl")), args.eval_samples)


# ------------------------------------------------------------ chat templates
def chat_template() -> Files:
    return {"template.jinja": build_tokenizer().chat_template.encode()}


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
