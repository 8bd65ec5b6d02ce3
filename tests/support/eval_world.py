"""Candidates, prompts and rewards for the evaluation stage."""

import csv
import json
from pathlib import Path

import toy
from conftest import build_model, build_tokenizer
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from pipeline.eval import stage

PROMPTS = ["say w0 =>\n", "say a longer word =>\n", "w2\n", "one\n", "say w4 again\n", "x\n"]
MRS = [
    "name[Aromi], eatType[pub], near[The Mill]",
    "name[Zizzi], area[riverside]",
    "name[Aromi], eatType[pub], near[The Mill]",
    "name[Aromi], food[Italian], customer rating[low]",
]


def size(prompts, completions, **columns) -> list[float]:
    return [float(len(text)) for text in completions]


def some(prompts, completions, **columns) -> list[float | None]:
    return [None if i % 2 else 1.0 for i in range(len(completions))]


def more_bytes(prompts, completions_a, completions_b, facts, references) -> list[float]:
    sides = zip(completions_a, completions_b, strict=True)
    return [float(len(a) > len(b)) if len(a) != len(b) else 0.5 for a, b in sides]


def first(prompts, completions_a, completions_b):
    return [1] * len(prompts)


def save_adapter(base: Path, folder: Path, seed: int) -> Path:
    model = AutoModelForCausalLM.from_pretrained(base)
    settings = LoraConfig(r=2, lora_alpha=4, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(model, settings)
    toy.randomize(model, "default", seed, scale=1.0)
    model.save_pretrained(folder)
    return folder


def make_world(folder: Path, tiny_model_folder: Path) -> Path:
    """A folder with two adapters on the tiny base, a model of its own, and prompts."""
    for name, seed in (("one", 1), ("two", 2)):
        save_adapter(tiny_model_folder, folder / name, seed)
    build_model(seed=7).save_pretrained(folder / "other")
    build_tokenizer().save_pretrained(folder / "other")
    rows = [{"prompt": prompt, "facts": [prompt[:1]], "references": [prompt.strip()]} for prompt in PROMPTS]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with (folder / "mrs.csv").open("w", newline="") as file:
        csv.writer(file).writerows(
            [["mr", "ref"], *([mr, f"Aromi is\nby The Mill{end}"] for mr, end in zip(MRS, ".,!?", strict=True))]
        )
    return folder


def arguments(world: Path, base: Path, output: Path | None, **changes) -> stage.EvalArguments:
    settings = {
        "candidates": [{"base": str(base)}, {"one": str(world / "one")}, {"two": str(world / "two")}],
        "reference": "one",
        "dataset": str(world / "prompts.jsonl"),
        "output_dir": output and str(output),
        "rewards": [{"name": "eval_world:size", "clip": [0, 1], "normalize": "running"}],
        "max_completion_length": 12,
        "temperature": 0.8,
        "eval_batch_size": 4,
        "seed": 3,
        "dtype": "float32",
        "use_cpu": True,
    }
    return stage.EvalArguments(**settings | changes)
