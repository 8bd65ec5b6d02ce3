"""Every YAML in recipes/ is parsed as strictly as a real run would, so that none can rot."""

import importlib.util
from pathlib import Path

import pytest
import yaml
from recipe_files import ROOT, settings_for

from pipeline.cli import parse
from pipeline.errors import UserError

RECIPES = sorted(path for path in (ROOT / "recipes").glob("*/*.yaml") if path.parent.name != "accelerate")


def stage_of(path: Path) -> str:
    stage = path.stem.split("_")[0]
    return "ppo" if stage in ("a2c", "reinforce") else stage  # algorithms of the PPO stage


STAGES = [path for path in RECIPES if stage_of(path) in ("sft", "reward", "ppo", "grpo", "rloo", "ilql", "dpo")]


def name(path: Path) -> str:
    return f"{path.parent.name}/{path.name}"


def test_recipes_are_found():
    assert {"tiny/grpo.yaml", "tiny/rloo.yaml", "e2e/grpo.yaml"} <= {name(p) for p in STAGES}
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


@pytest.mark.parametrize("stage", ["sft", "reward", "ppo", "grpo", "rloo", "ilql", "dpo"])
def test_recipe_scripts_are_thin_and_import_without_running(stage):
    path = ROOT / "recipes" / f"{stage}.py"
    assert len(path.read_text("utf-8").splitlines()) <= 80
    spec = importlib.util.spec_from_file_location(f"recipe_{stage}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert callable(module.main)


@pytest.mark.parametrize("path", [p for p in STAGES if p.stem in ("grpo", "rloo")], ids=name)
def test_trls_trainers_get_what_ppo_gets(path):
    """Same data, rewards, completions in all and in an update; only the algorithm differs."""
    theirs, ours = (yaml.safe_load(p.read_text("utf-8")) for p in (path, path.with_name("ppo.yaml")))
    same = "model_name_or_path adapter_path dtype dataset eval_dataset rewards referee missing_eos_penalty "
    same += "total_episodes per_device_train_batch_size max_completion_length seed"
    for spec in ours["rewards"]:
        spec.pop("instant", None)  # TRL's take one score a completion
    assert {key: theirs[key] for key in same.split()} == {key: ours[key] for key in same.split()}
    # micro-batches in an update: PPO's mini-batches may be several optimizer steps
    assert theirs["gradient_accumulation_steps"] == ours["gradient_accumulation_steps"] * ours["num_mini_batches"]
    assert not {"top_k", "top_p", "min_p", "temperature", "repetition_penalty"} & set(theirs)
