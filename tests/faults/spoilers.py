"""Makers of bad models, tokenizers and adapters for the tables of cases."""

import shutil
from pathlib import Path

import torch
from catalogue import Case, save_adapter
from conftest import build_model, build_tokenizer
from safetensors.torch import load_file, save_file


def model(name: str, *says: str, make=None, recipe: str = "sft", **settings) -> Case:
    return Case(name, says, recipe, settings, make)


def gone(path: str):
    return lambda place: shutil.rmtree(place / path) if (place / path).is_dir() else (place / path).unlink()


def pickled(folder: str, weights: str, pickle: str):
    """The weights as a pickle that would leave a file if anybody read it."""

    class Trap:
        def __reduce__(self):
            return (Path.touch, (Path("pickle_was_run"),))

    def make(place: Path) -> None:
        (place / folder / weights).unlink()
        torch.save({"weight": Trap()}, place / folder / pickle)

    return make


def saved(folder: str, **changes):
    """The base with `changes`."""
    return lambda place: build_model(seed=1, **changes).save_pretrained(place / folder)


def tokenizer(folder: str = "base", tokens: tuple = (), **special):
    """The tokenizer with special tokens changed and tokens added."""

    def make(place: Path) -> None:
        changed = build_tokenizer()
        for name, value in special.items():
            setattr(changed, name, value)
        changed.add_tokens(list(tokens))
        changed.save_pretrained(place / folder)

    return make


def adapter(folder: str, base: str = "base", task: str = "CAUSAL_LM", **changes):
    def make(place: Path) -> None:
        shutil.rmtree(place / folder)
        save_adapter(place / folder, base, task, **changes)

    return make


def without(path: str, part: str):
    """A safetensors file without the tensors whose name has `part`."""

    def make(place: Path) -> None:
        left = {key: value for key, value in load_file(place / path).items() if part not in key}
        save_file(left, place / path, {"format": "pt"})

    return make
