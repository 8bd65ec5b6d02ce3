"""One stage of `make gpu-check` in a process of its own: `python -m tests.tools.gpu_stages smollm2 ppo folder`.

Stages: `base` (the model, and rows made on the spot), `sft`, `reward`, `ppo`, each the pipeline's own stage, run
on what the one before left in the folder. The last line of the output has the figures.
"""

import argparse
import json
import random
import time
from pathlib import Path
from typing import NamedTuple

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

from pipeline.config import DataArguments, ModelArguments, RewardStage, SFTStage
from pipeline.errors import UserError
from pipeline.exam.exam import RewardArguments
from pipeline.memory import report
from pipeline.ppo.config import PPOStage
from pipeline.runs.folder import METRICS
from pipeline.safety.reading import read_yaml
from pipeline.stages import ppo, reward_model, sft
from pipeline.worlds import gguf
from tests.tools.bench import environment, measure

STAGES = ("base", "sft", "reward", "ppo")
MODELS = ("smollm2", "qwen-0.5b")
WORDS = "the a we they rain river garden letter window market quiet early green along writes finds opens keeps".split()
SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")


class Plan(NamedTuple):
    """How much is done. Lengths are words, of which a random model's tokenizer makes a token each."""

    prompt: int = 64
    completion: int = 128
    rows: int = 16  # in a micro-batch
    accumulate: int = 2
    updates: int = 10
    steps: int = 20  # of SFT and reward model
    held_out: int = 16


SMALL = Plan(prompt=6, completion=8, rows=2, accumulate=1, updates=2, steps=2, held_out=2)


# ---------------------------------------------------------------- models
def shape(model: str, small: bool) -> PreTrainedConfig:
    """The config of a model of that shape."""
    if small:
        tiny = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
        sizes = tiny | {"num_key_value_heads": 1, "vocab_size": 64}
    elif model == "smollm2":
        sizes = {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9}
        sizes |= {"num_key_value_heads": 3, "vocab_size": 49152}
    else:
        sizes = {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14}
        sizes |= {"num_key_value_heads": 2, "vocab_size": 151936}
    kind = LlamaConfig if model == "smollm2" else Qwen2Config
    ends = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    return kind(**sizes, **ends, tie_word_embeddings=True, max_position_embeddings=8192)


def random_tokenizer(size: int) -> PreTrainedTokenizerFast:
    """One with `size` words, so that whatever a random model samples can be read again."""
    words = [*SPECIAL, *WORDS]
    words += [f"w{i}" for i in range(size - len(words))]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    names = dict(zip(("pad_token", "bos_token", "eos_token", "unk_token"), SPECIAL, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def make_base(folder: Path, model: str, small: bool) -> str:
    """Writes the base into `folder`; returns what it is."""
    folder.mkdir(parents=True)
    if model == "smollm2" and not small:
        try:
            settings = read_yaml(environment.ROOT / "recipes/smollm2/base.yaml")
            known = gguf.GGUFSettings.__dataclass_fields__
            return gguf.read_base(folder, gguf.GGUFSettings(**{k: v for k, v in settings.items() if k in known}))
        except UserError as error:
            print(error)
    config = shape(model, small)
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    base.save_pretrained(folder)
    random_tokenizer(config.vocab_size).save_pretrained(folder)
    return f"random weights, {base.num_parameters() / 1e6:.0f} M parameters"


# ---------------------------------------------------------------- rows
def write_rows(folder: Path, plan: Plan) -> None:
    """Texts of drawn words: what they say does not matter, how long they are does."""
    draw = random.Random(0)

    def text(words: int) -> str:
        return " ".join(draw.choices(WORDS, k=words))

    count = plan.rows * plan.accumulate * max(plan.steps, plan.updates) + plan.held_out
    rows = [
        {"prompt": text(plan.prompt) + "\n", "chosen": text(plan.completion), "rejected": text(plan.completion)}
        for _ in range(count)
    ]
    columns = {"sft": ("prompt", "chosen"), "reward": ("prompt", "chosen", "rejected"), "ppo": ("prompt",)}
    for stage, wanted in columns.items():
        name = {"chosen": "completion"} if stage == "sft" else {}
        for part, some in (("heldout", rows[: plan.held_out]), ("train", rows[plan.held_out :])):
            lines = [json.dumps({name.get(key, key): row[key] for key in wanted}) for row in some]
            (folder / f"{stage}_{part}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


# ---------------------------------------------------------------- stages
def run(stage: str, folder: Path, plan: Plan, cpu: bool) -> dict:
    """Runs a stage into `folder/<stage>` and returns its figures."""
    estimates: list[int] = []
    shown = report.table

    def kept(found):
        estimates.append(found.total)
        return shown(found)

    report.table = kept
    memory, started = measure.Memory("cpu" if cpu else "cuda"), time.perf_counter()
    {"sft": run_sft, "reward": run_reward, "ppo": run_ppo}[stage](folder, plan, cpu)
    found = {"seconds": time.perf_counter() - started, "peak_mib": memory.peak()}
    found["estimate_mib"] = estimates[0] / 2**20
    if stage == "ppo":
        lines = (folder / stage / METRICS).read_text(encoding="utf-8").splitlines()
        found["updates"] = [row for row in map(json.loads, lines) if "ratio/first" in row]
    return found


def common(stage: str, folder: Path, plan: Plan, cpu: bool) -> tuple[ModelArguments, DataArguments, dict]:
    """Model, data and settings that the stages share."""
    base = folder / "base"
    adapter = str(folder / "sft") if stage != "sft" else None
    model = ModelArguments(str(base), adapter_path=adapter, dtype="float32" if cpu else "bfloat16")
    files = [str(folder / f"{stage}_{part}.jsonl") for part in ("train", "heldout")]
    settings = {
        "output_dir": str(folder / stage),
        "per_device_train_batch_size": plan.rows,
        "gradient_accumulation_steps": plan.accumulate,
        "use_cpu": cpu,
        "save_strategy": "no",
        "report_to": "none",
    }
    messages = (base / "chat_template.jinja").is_file()
    return model, DataArguments(files[0], eval_dataset=files[1], as_messages=messages), settings


def run_sft(folder: Path, plan: Plan, cpu: bool) -> None:
    model, data, settings = common("sft", folder, plan, cpu)
    sft.run(model, data, SFTStage(max_steps=plan.steps, max_length=1024, **settings))


def run_reward(folder: Path, plan: Plan, cpu: bool) -> None:
    model, data, settings = common("reward", folder, plan, cpu)
    reward_model.run(model, data, RewardStage(max_steps=plan.steps, max_length=1024, **settings))


def run_ppo(folder: Path, plan: Plan, cpu: bool) -> None:
    model, data, settings = common("ppo", folder, plan, cpu)
    trained = str(folder / "reward")
    rewards = RewardArguments(
        [{"name": "learned", "path": trained}],
        eval_samples=plan.held_out,
        eval_batch_size=plan.held_out,
        show_samples=0,
    )
    config = PPOStage(
        num_mini_batches=1,
        num_iterations=2,
        total_episodes=plan.rows * plan.accumulate * plan.updates,
        max_completion_length=plan.completion,
        critic_path=trained,
        learning_rate=1e-5,
        **settings,
    )
    ppo.run(model, data, rewards, config)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--cpu", action="store_true")
    parser.add_argument("--small", action="store_true")
    args = parser.parse_args()
    plan, started = SMALL if args.small else Plan(), time.perf_counter()
    if args.stage == "base":
        of = make_base(args.folder / "base", args.model, args.small)
        write_rows(args.folder, plan)
        measure.tell({"of": of, "seconds": time.perf_counter() - started})
    else:
        measure.tell(run(args.stage, args.folder, plan, args.cpu))


if __name__ == "__main__":
    main()
