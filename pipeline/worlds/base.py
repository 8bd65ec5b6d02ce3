"""What every world shares: its settings, its data files, and writing them."""

import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from ..errors import UserError

WorldData = dict[str, list[dict]]
"""File name without ending -> rows."""

Document = tuple[str, str]
"""A document for pre-training: what comes first and is read only (may be empty), and the text that is learned."""


@dataclass
class WorldSettings:
    """Which world to make and how much of it."""

    output_dir: str = field(default="runs/tiny", metadata={"help": "Gets the folders base/ and data/."})
    world: str = field(default="field_notes", metadata={"help": "Name of a world in pipeline/worlds."})
    data_path: str | None = field(
        default=None, metadata={"help": "Data file, for worlds that read one (e2e: train.csv)."}
    )
    seed: int = field(default=42, metadata={"help": "Seed of data and base model."})
    sft_rows: int = field(default=4000, metadata={"help": "Prompt/completion rows for SFT."})
    preference_rows: int = field(default=5000, metadata={"help": "Preference pairs for training."})
    preference_heldout_rows: int = field(default=500, metadata={"help": "Preference pairs held out."})
    prompt_rows: int = field(default=2000, metadata={"help": "Prompts for PPO."})
    heldout_rows: int = field(default=200, metadata={"help": "Prompts held out from all training."})
    pretraining_texts: int = field(default=24000, metadata={"help": "Documents for the base model's pre-training."})
    synthetic_prompts: int = field(
        default=0, metadata={"help": "Extra PPO prompts without references, where the world can make them."}
    )

    def __post_init__(self):
        for key in (
            "sft_rows",
            "preference_rows",
            "prompt_rows",
            "preference_heldout_rows",
            "heldout_rows",
            "pretraining_texts",
        ):
            if getattr(self, key) < 1:
                raise UserError(f"{key} is {getattr(self, key)}: give a number of rows of at least 1.")
        if self.synthetic_prompts < 0:
            raise UserError(f"synthetic_prompts is {self.synthetic_prompts}: give 0 or more.")

    def rows(self) -> dict[str, int]:
        """File name -> number of rows asked for; held-out files first, so that training rows keep away from them."""
        return {
            "prompts_heldout": self.heldout_rows,
            "preferences_heldout": self.preference_heldout_rows,
            "sft_train": self.sft_rows,
            "preferences_train": self.preference_rows,
            "prompts_train": self.prompt_rows,
        }


@dataclass
class BaseModelSettings:
    """Size and pre-training of the base model."""

    vocab_size: int = field(default=768, metadata={"help": "Tokens of the byte-level BPE, special ones among them."})
    hidden_size: int = field(default=128, metadata={"help": "Width; a multiple of 64 so that 4-bit works."})
    intermediate_size: int = field(default=512, metadata={"help": "Width of the MLP; a multiple of 64."})
    num_layers: int = field(default=4, metadata={"help": "Transformer layers."})
    num_heads: int = field(default=4, metadata={"help": "Attention heads."})
    context_length: int = field(default=256, metadata={"help": "Longest sequence in tokens."})
    pretraining_epochs: float = field(default=1.0, metadata={"help": "Passes over the documents."})
    pretraining_batch_size: int = field(default=32, metadata={"help": "Documents per optimizer step."})
    pretraining_learning_rate: float = field(
        default=7e-3, metadata={"help": "Peak rate (warm-up, then cosine to 5%)."}
    )
    pretraining_bf16: bool | None = field(
        default=None, metadata={"help": "bfloat16 autocast while pre-training; by default where the CPU has it."}
    )

    def __post_init__(self):
        if self.vocab_size < 300:
            raise UserError(f"vocab_size is {self.vocab_size}: 256 bytes and 3 special tokens need at least 300.")
        for key in ("hidden_size", "intermediate_size"):
            if getattr(self, key) % 64 or getattr(self, key) < 64:
                raise UserError(f"{key} is {getattr(self, key)}: give a multiple of 64 (4-bit blocks divide it).")
        if self.hidden_size % self.num_heads or (self.hidden_size // self.num_heads) % 2:
            raise UserError(
                f"hidden_size {self.hidden_size} over num_heads {self.num_heads} must be an even whole number."
            )
        for key in (
            "num_layers",
            "context_length",
            "pretraining_epochs",
            "pretraining_batch_size",
            "pretraining_learning_rate",
        ):
            if getattr(self, key) <= 0:
                raise UserError(f"{key} is {getattr(self, key)}: give a number above 0.")


def draw_new(draw: Callable[[], Any], count: int, taken: set) -> list:
    """`count` results of `draw` that are not in `taken`, each another; they are added to it."""
    found = []
    while len(found) < count:
        item = draw()
        if item not in taken:
            taken.add(item)
            found.append(item)
    return found


def progress(items: Iterable, what: str, **kwargs) -> tqdm:
    """A progress bar with an ETA that leaves no line behind."""
    return tqdm(items, desc=what, leave=False, dynamic_ncols=True, **kwargs)


def write_data(data: WorldData, folder: Path) -> None:
    """Write each file of `data` as JSONL into the existing `folder`; every file is written aside and renamed."""
    for name, rows in data.items():
        aside = folder / f".{name}.jsonl.part"
        with open(aside, "w", encoding="utf-8") as file:
            for row in rows:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
        os.replace(aside, folder / f"{name}.jsonl")
