"""The contract of bad input, and what its tables are written in: `Case`, `check`, and makers of bad things.

A bad input ends with exit code 2 and one line `error: ...` that says what is wrong, where, and what to do. No stack
trace. Every file and folder is as before; the output folder is not there, or empty.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from conftest import build_model
from front_door import FrontDoor, tree
from peft import LoraConfig, get_peft_model
from transformers import LlamaForSequenceClassification

WORDS = [f"w{i}" for i in range(16)]
ROWS = {
    "sft": [{"prompt": f"say {w} =>", "completion": f" It is {w}."} for w in WORDS],
    "pairs": [{"prompt": f"say {w} =>", "chosen": f" It is {w}.", "rejected": " No."} for w in WORDS],
    "prompts": [{"prompt": f"say {w} =>", "facts": [w]} for w in WORDS],
}
ALL = {"model_name_or_path": "base", "output_dir": "out", "use_cpu": True, "per_device_train_batch_size": 2}
ALL |= {"eval_fraction": 0.25, "max_steps": 1, "save_strategy": "no", "lora_r": 2}
SETTINGS = {
    "sft": ALL | {"dataset": "sft.jsonl", "max_length": 64},
    "reward": ALL | {"adapter_path": "sft", "dataset": "pairs.jsonl", "max_length": 64},
    "ppo": ALL
    | {"adapter_path": "sft", "dataset": "prompts.jsonl", "eval_samples": 2, "max_completion_length": 4}
    | {"rewards": [{"name": "keyword", "wanted": ["a"]}], "num_iterations": 1, "num_mini_batches": 1},
}


SETTINGS["grpo"] = {k: v for k, v in SETTINGS["ppo"].items() if k != "num_mini_batches"}


class Case(NamedTuple):
    """One bad input.

    settings: over those of `SETTINGS[recipe]`, written to run.yaml; None leaves one out. yaml: its whole text instead.
    flags: after `--config run.yaml`. make: makes the bad input in the place. says: words that the message must have.
    """

    name: str
    says: tuple[str, ...]
    recipe: str = "sft"
    settings: dict[str, Any] = {}
    make: Callable[[Path], Any] | None = None
    yaml: str | bytes | None = None
    flags: tuple[str, ...] = ()


def cases(*table: Case):
    """`pytest.mark.parametrize` over a table."""
    assert len({case.name for case in table}) == len(table)
    return pytest.mark.parametrize("case", table, ids=[case.name.replace(" ", "-") for case in table])


def check(door: FrontDoor, place: Path, case: Case, **more) -> str:
    """The message of a case, after everything that the contract says was found true."""
    prepare(place, case)
    before = tree(place)
    message = door(case.recipe, ["--config", "run.yaml", *case.flags], place, **more).error
    print(message)
    missing = [words for words in case.says if words not in message]
    assert not missing, f"{missing} not in: {message}"
    after, out = tree(place), case.settings.get("output_dir", "out")
    if out not in before and not any(path.startswith(f"{out}/") for path in after):
        after.pop(out, None)  # an empty folder is in nobody's way
    assert list(after) == list(before) and after == before
    return message


def prepare(place: Path, case: Case) -> None:
    """Writes run.yaml and whatever the case makes."""
    text = case.yaml
    if text is None:
        settings = SETTINGS.get(case.recipe, {}) | case.settings
        text = yaml.safe_dump({key: value for key, value in settings.items() if value is not None}, sort_keys=False)
    (place / "run.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    if case.make:
        case.make(place)


def write_rows(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def file(name: str, content: str | bytes | list[dict]) -> Callable[[Path], None]:
    """Makes a file; a list becomes JSON lines."""

    def make(place: Path) -> None:
        if isinstance(content, list):
            write_rows(place / name, content)
        else:
            (place / name).write_bytes(content if isinstance(content, bytes) else content.encode())

    return make


def edit(name: str, **changes) -> Callable[[Path], None]:
    """Changes keys of a JSON file; None takes one out."""

    def make(place: Path) -> None:
        found = json.loads((place / name).read_text()) | changes
        (place / name).write_text(json.dumps({key: value for key, value in found.items() if value is not None}))

    return make


def cut(name: str, keep: float = 0.5) -> Callable[[Path], None]:
    """Keeps the first part of a file only, as a full disk or a broken download leaves it."""

    def make(place: Path) -> None:
        content = (place / name).read_bytes()
        (place / name).write_bytes(content[: int(len(content) * keep)])

    return make


def both(*makes: Callable[[Path], Any]) -> Callable[[Path], None]:
    def make(place: Path) -> None:
        for one in makes:
            one(place)

    return make


def save_adapter(folder: Path, base: str, task: str = "CAUSAL_LM", **changes) -> None:
    """A LoRA adapter that names `base`, on the tiny model with `changes`; SEQ_CLS with its score head."""
    model = build_model(**changes)
    if task == "SEQ_CLS":
        model.config.num_labels = 1
        model = LlamaForSequenceClassification(model.config)
    modules = ["q_proj", "v_proj"]
    get_peft_model(model, LoraConfig(task_type=task, r=2, target_modules=modules)).save_pretrained(folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": base}))
