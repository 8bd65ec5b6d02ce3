"""Every YAML in recipes/ is parsed as strictly as a real run would, so that none can rot."""

import importlib.util
from pathlib import Path

import pytest
import yaml

from pipeline.cli import parse
from pipeline.config import DataArguments, ModelArguments, RewardStage, SFTStage
from pipeline.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
RECIPES = sorted(path for path in (ROOT / "recipes").glob("*/*.yaml") if path.parent.name != "accelerate")


def settings_for(stage: str) -> tuple[type, ...]:
    """The dataclasses that recipes/<stage>.py parses."""
    if stage == "sft":
        return ModelArguments, DataArguments, SFTStage
    if stage == "reward":
        return ModelArguments, DataArguments, RewardStage
    if stage == "ppo":
        from pipeline.ppo.stage import PPOStage, RewardArguments

        return ModelArguments, DataArguments, RewardArguments, PPOStage
    from pipeline.worlds.base import WorldSettings  # recipes/base.py

    return (WorldSettings,)


def stage_of(path: Path) -> str:
    stage = path.stem.split("_")[0]
    return "ppo" if stage in ("a2c", "reinforce") else stage  # algorithms of the PPO stage


STAGES = [path for path in RECIPES if stage_of(path) in ("sft", "reward", "ppo")]


def name(path: Path) -> str:
    return f"{path.parent.name}/{path.name}"


def test_recipes_are_found():
    assert {"tiny/sft.yaml", "tiny/reward.yaml", "hh/reward_4bit.yaml", "tldr/sft.yaml"} <= {name(p) for p in RECIPES}


@pytest.mark.parametrize("path", STAGES, ids=name)
def test_recipe_parses_strictly(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    parsed = parse(*settings_for(stage_of(path)), argv=["--config", str(path)])
    found = yaml.safe_load(path.read_text("utf-8"))
    merged = {}
    for item in parsed:
        merged |= vars(item)
    for key in ("model_name_or_path", "dataset", "output_dir", "learning_rate", "seed"):
        if key in found:
            assert merged[key] == found[key], key


@pytest.mark.parametrize("path", STAGES, ids=name)
def test_results_lie_where_the_readme_says(path):
    found = yaml.safe_load(path.read_text("utf-8"))
    assert found["output_dir"] == f"runs/{path.parent.name}/{path.stem}"
    assert "trust_remote_code" not in found


@pytest.mark.parametrize("path", STAGES, ids=name)
def test_a_misspelt_key_in_any_recipe_is_named(path, tmp_path):
    broken = tmp_path / path.name
    broken.write_text(path.read_text("utf-8").replace("learning_rate:", "learning_rat:"))
    with pytest.raises(UserError, match="learning_rat, did you mean learning_rate"):
        parse(*settings_for(stage_of(path)), argv=["--config", str(broken)])


@pytest.mark.parametrize("stage", ["sft", "reward", "ppo"])
def test_recipe_scripts_are_thin_and_import_without_running(stage):
    path = ROOT / "recipes" / f"{stage}.py"
    assert len(path.read_text("utf-8").splitlines()) <= 80
    spec = importlib.util.spec_from_file_location(f"recipe_{stage}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert callable(module.main)
