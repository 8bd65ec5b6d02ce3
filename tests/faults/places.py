"""Fixtures of the catalogue of bad inputs: a front door to knock at, and a place with all that a stage needs."""

import shutil
from pathlib import Path

import pytest
from catalogue import ROWS, save_adapter, write_rows
from conftest import build_model, build_tokenizer
from front_door import FrontDoor


@pytest.fixture(scope="session")
def door(warm) -> FrontDoor:
    return FrontDoor(warm)


@pytest.fixture(scope="session")
def prepared(tmp_path_factory) -> Path:
    """Base, SFT adapter, reward model and data that all three stages run on. Do not write into it."""
    folder = tmp_path_factory.mktemp("prepared") / "place"
    build_model().save_pretrained(folder / "base")
    build_tokenizer().save_pretrained(folder / "base")
    save_adapter(folder / "sft", "base")
    save_adapter(folder / "reward", "base", "SEQ_CLS")
    for name, rows in ROWS.items():
        write_rows(folder / f"{name}.jsonl", rows)
    return folder


@pytest.fixture
def place(prepared, tmp_path) -> Path:
    """A copy of it, free to spoil."""
    shutil.copytree(prepared, tmp_path / "place")
    return tmp_path / "place"
