"""The tutorials are followed to the letter: files are saved as they say, commands typed as they stand there, by make.

Only the base is another one: a random Llama in the place of what `make base` makes, so that it takes minutes.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from documents import blocks, save_titled
from house import ROOT
from rows import write_rows
from test_docs_commands import logical_lines

from pipeline.worlds import WorldSettings, load_world

TUTORIALS = ROOT / "docs/tutorials"
SKIPPED = ("make base", "plumbline base")  # the base and the data are there already


@pytest.fixture
def clone(tmp_path, tiny_model_folder):
    """A folder like a fresh clone, with an environment that is made already and a tiny base in runs/tiny."""
    folder = tmp_path / "plumbline"
    shutil.copytree(ROOT / "recipes", folder / "recipes", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("Makefile", "pyproject.toml", "constraints.txt", "pipeline", "rewards"):
        (folder / name).symlink_to(ROOT / name)
    python = folder / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n', "utf-8")
    python.chmod(0o755)
    command = python.with_name("plumbline")
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m plumbline "$@"\n', "utf-8")
    command.chmod(0o755)
    (folder / ".venv/.plumbline").write_text(f"{folder} [dev,quant,ja]", "utf-8")
    shutil.copytree(tiny_model_folder, folder / "runs/tiny/base")
    (folder / "runs/tiny/data").mkdir()
    for name in ("train", "heldout"):
        rows = [
            {"prompt": f"{name}: heron {n} =>\n", "facts": ["heron"], "references": [f"A heron, {n}."]}
            for n in range(200)
        ]
        write_rows(folder / f"runs/tiny/data/prompts_{name}.jsonl", rows)
    return folder


def in_the_clone(line: str) -> bool:
    return not line.startswith("plumbline ")


def outside_it(line: str) -> bool:
    return line.startswith(("plumbline ", "python make_orders.py"))


def follow(
    page: Path, folder: Path, typed: Callable[[str], bool] = in_the_clone
) -> dict[str, subprocess.CompletedProcess]:
    """Saves what is to be saved and runs what is to be run and `typed`, in the order of the page."""
    save_titled(page, folder)
    path = f"{folder / '.venv/bin'}{os.pathsep}{os.environ['PATH']}"
    env = os.environ | {"PATH": path, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = {}
    for block in blocks(page):
        for line in logical_lines(block.text) if block.language == "bash" else ():
            if typed(line) and not line.startswith(SKIPPED):
                done[line.split("  #")[0]] = subprocess.run(
                    ["bash", "-c", line], cwd=folder, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True
                )
    return done


def test_what_a_page_says_to_save_and_to_type_is_found(tmp_path):
    page = tmp_path / "page.md"
    saved, typed = (
        '```json title="a/b.json"\n{}\n```\n',
        "   ```bash\n   make base\n   echo a \\\n     b  # c\n   ```\n",
    )
    page.write_text(f"# T\n\n{saved}\n1. x\n\n{typed}", "utf-8")
    done = follow(page, tmp_path)
    assert (tmp_path / "a/b.json").read_text() == "{}\n"
    assert [(line.split(), each.stdout) for line, each in done.items()] == [(["echo", "a", "b"], "a b\n")]


@pytest.mark.slow
def test_your_own_data_leads_to_an_adapter_that_could_be_pushed(clone):
    save_titled(TUTORIALS / "own-reward.md", clone)  # whose reward it takes
    done = follow(TUTORIALS / "own-data.md", clone)
    for line, each in done.items():
        good = (0, 1) if "rewards.check" in line else (0,)  # 1: there is something to warn of
        assert each.returncode in good, f"{line}\n{each.stdout[-2000:]}\n{each.stderr[-2000:]}"
    assert {"sft", "ppo", "ppo-kl0.1", "eval"} <= {path.name for path in (clone / "runs/orders").iterdir()}
    pushed = next(each.stdout for line, each in done.items() if line.startswith("make push"))
    assert "adapter_model.safetensors" in pushed and "account/orders" in pushed


@pytest.mark.slow
def test_your_own_data_leads_there_without_a_clone_too(clone):
    for name in ("Makefile", "pyproject.toml", "constraints.txt", "pipeline", "rewards"):
        (clone / name).unlink()
    shutil.rmtree(clone / "recipes")
    save_titled(TUTORIALS / "own-reward.md", clone)
    done = follow(TUTORIALS / "own-data.md", clone, outside_it)
    assert len(done) == 8
    for line, each in done.items():
        good = (0, 1) if line.startswith("plumbline check") else (0,)
        assert each.returncode in good, f"{line}\n{each.stdout[-2000:]}\n{each.stderr[-2000:]}"
    assert (clone / "runs/orders/eval").is_dir() and (clone / "tiny/base.yaml").is_file()
    pushed = next(each.stdout for line, each in done.items() if line.startswith("plumbline push"))
    assert "adapter_model.safetensors" in pushed and "account/orders" in pushed


@pytest.mark.slow
def test_what_the_page_says_of_its_reward_is_what_the_check_says(clone):
    made = yaml.safe_load((ROOT / "recipes/tiny/base.yaml").read_text("utf-8"))
    settings = WorldSettings(**{key: made[key] for key in made if key in WorldSettings.__dataclass_fields__})
    rows = load_world(settings.world).make_data(settings)["prompts_train"]
    write_rows(clone / "runs/tiny/data/prompts_train.jsonl", rows)
    page = TUTORIALS / "own-reward.md"
    done = follow(page, clone, lambda line: "rewards.check" in line)
    [said] = [each.stdout for each in done.values()]
    [warnings] = [block.text for block in blocks(page) if block.text.startswith("warning: ")]
    assert said.endswith(f"\n\n{warnings}")


@pytest.mark.slow
def test_your_own_reward_is_checked_trained_against_and_used_from_python(clone):
    clone_sft(clone)
    done = follow(TUTORIALS / "own-reward.md", clone)
    for line, each in done.items():
        good = (0, 1) if "rewards.check" in line else (0,)
        assert each.returncode in good, f"{line}\n{each.stdout[-2000:]}\n{each.stderr[-2000:]}"
    assert (clone / "runs/polite/ppo/adapter_model.safetensors").is_file()
    assert (clone / "runs/polite/python/adapter_model.safetensors").is_file()


def clone_sft(clone: Path) -> None:
    """An SFT adapter as the first run leaves it; untrained, which changes nothing about the commands."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(clone / "runs/tiny/base")
    model = get_peft_model(base, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    model.peft_config["default"].base_model_name_or_path = "runs/tiny/base"
    model.save_pretrained(clone / "runs/tiny/sft")
