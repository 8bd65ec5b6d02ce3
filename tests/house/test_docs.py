"""What the documents say and what the code does cannot drift apart."""

import ast
import dataclasses
import importlib
import importlib.util
import inspect
import json
import re
import sys
from pathlib import Path

import pytest
import yaml
from documents import INLINE, anchors, blocks, links, pages, save_titled
from house import ROOT
from recipe_files import settings_for

from pipeline.cli import parse
from pipeline.config import SFTStage
from pipeline.eval.sampling import SampleArguments
from pipeline.eval.settings import EvalArguments
from pipeline.ppo.config import ALGORITHMS, BASELINES
from pipeline.sweep import SweepSettings
from pipeline.watching.metrics import PPO as METRICS
from rewards import build_rewards
from rewards.build import REGISTRY

STAGES = ("sft", "reward", "ppo", "grpo", "rloo", "ilql", "dpo")
KINDS = {kind for stage in STAGES for kind in settings_for(stage)} | {EvalArguments, SampleArguments}
SETTINGS = {field.name for kind in KINDS for field in dataclasses.fields(kind)}
SWEEP = {field.name for field in dataclasses.fields(SweepSettings)}
# Options of any reward, those of the rewards themselves, and what is no setting but is named like one.
OPTIONS = {*REGISTRY, "name", "weight", "instant", "clip", "normalize", "at_least", "log_name"}
OPTIONS |= {
    name
    for module, kind, _ in REGISTRY.values()
    for name in inspect.signature(getattr(importlib.import_module(f"rewards.{module}"), kind)).parameters
}
SPECIAL = {"prompt", "messages", "role", "content", "token_rewards", "processes", "function", "reward"}
SPECIAL |= {*ALGORITHMS, *BASELINES}
LIBRARIES = ("pipeline", "rewards", "peft", "datasets")
FILLED_IN = {"num_iterations"}  # none, which the algorithm makes a number of


def test_the_table_of_metrics_is_the_one_in_the_code():
    text = (ROOT / "docs/metrics.md").read_text(encoding="utf-8")
    assert dict(re.findall(r"^\| `(.+?)` \| (.+) \|$", text, re.MULTILINE)) == METRICS


def test_links_lead_to_a_page_and_a_heading_in_it():
    for page in pages():
        for target in links(page):
            if target.startswith(("https://", "http://")):
                continue
            path, _, anchor = target.partition("#")
            there = (page.parent / path).resolve() if path else page
            assert there.exists(), f"{page.relative_to(ROOT)}: {target}"
            if anchor:
                assert anchor in anchors(there), f"{page.relative_to(ROOT)}: {target}: no such heading"


def test_the_table_of_rewards_has_every_reward_and_its_lines_can_be_built():
    text = (ROOT / "docs/rewards.md").read_text(encoding="utf-8")
    table = text.split("| reward | range |")[1].split("\n\n")[0]
    named = {name for row in table.splitlines()[2:] for name in re.findall(r"`(\w+)`", row.split("|")[1])}
    assert named == set(REGISTRY) - {"rouge"}  # rouge1, rouge2 and rougeL stand for it
    lines = re.search(r"Lines to copy\n\n```yaml\n(.*?)```", text, re.DOTALL).group(1)
    assert len(build_rewards(yaml.safe_load(lines)["rewards"])) == lines.count("{name:")


WITH_BLOCKS = [page for page in pages() if blocks(page)]


@pytest.mark.parametrize("page", WITH_BLOCKS, ids=lambda page: str(page.relative_to(ROOT)))
def test_each_block_is_what_it_says_it_is(page, tmp_path, monkeypatch):
    """YAML is read as a recipe would be, JSON and Python are read, and Python that asserts something is run."""
    save_titled(page, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for block in blocks(page):
        if block.language == "yaml":
            check_yaml(block)
        elif block.language == "json":
            assert all(isinstance(json.loads(line), dict) for line in block.text.splitlines()), str(block)
        elif block.language == "python":
            code = compile(block.text, str(block), "exec")
            check_imports(block)
            if "assert " in block.text:
                exec(code, {"__name__": "document"})
        else:
            assert block.language in ("", "bash"), f"{block}: {block.language!r} is no language that is read here"
    for name in [path.stem for path in tmp_path.glob("*.py")]:
        sys.modules.pop(name, None)  # another page may have one of the same name


def check_yaml(block) -> None:
    """A block that is saved as a YAML of a recipe is read to the last value; of others the names are looked at."""
    found = yaml.safe_load(block.text)
    if block.title and block.title.startswith("recipes/"):
        stage = Path(block.title).stem
        settings = (EvalArguments,) if stage == "eval" else settings_for(stage)
        parse(*settings, argv=["--config", block.title])
    assert isinstance(found, dict), str(block)
    known = SETTINGS | OPTIONS | ({"stage", *SWEEP} if "space" in found else set())
    assert set(found) <= known, f"{block}: {', '.join(set(found) - known)}"
    here = [reward for reward in found.get("rewards", []) if ":" not in reward["name"] or is_saved(reward["name"])]
    build_rewards(here)
    judges = [dict(judge) for judge in found.get("judges", [])]
    assert {judge.pop("name") for judge in judges} <= {"judge"}
    build_rewards([{"name": "judge", **judge} for judge in judges])


def is_saved(reward: str) -> bool:
    """Whether the page lets its reader save the module of `module:function`; else it is another page's."""
    return Path(reward.split(":")[0] + ".py").exists()


def check_imports(block) -> None:
    """What is taken from a module is there."""
    for node in ast.walk(ast.parse(block.text)):
        if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] in LIBRARIES:
            module = importlib.import_module(node.module)
            assert all(hasattr(module, name.name) for name in node.names), f"{block}: {ast.unparse(node)}"


def test_settings_that_other_libraries_are_translated_to_exist():
    text = (ROOT / "docs/coming-from.md").read_text(encoding="utf-8")
    for row in re.findall(r"^\|.+\| (.+) \|$", text, re.MULTILINE):
        for code in INLINE.findall(row):
            for name in re.findall(r"^([a-z]\w+)(?=$|:| x )|(?<= x )([a-z]\w+)", code):
                name = name[0] or name[1]
                assert name in SETTINGS | OPTIONS | SPECIAL, f"{name} in {code}"


def test_the_table_of_settings_names_settings_and_their_defaults():
    text = (ROOT / "docs/settings.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (.*?) ?\| (`.+?) \| (.*?) ?\| .+ \|$", text, re.MULTILINE)
    assert len(rows) > 25
    stage, defaults = "", {"SFT, reward": (SFTStage,), "PPO": settings_for("ppo")}
    defaults |= {"reward": settings_for("reward"), "DPO": settings_for("dpo"), "ILQL": settings_for("ilql")}
    for named, names, values in rows:
        stage = named or stage
        kinds = defaults.get(stage, settings_for("ppo"))
        fields = {field.name: field.default for kind in kinds for field in dataclasses.fields(kind)}
        names, values = re.findall(r"`(\w+)`", names), values.split(", ") if values else []
        assert set(names) <= set(fields), (stage, names)
        for name, value in zip(names, values, strict=False):
            default = fields[name]
            said = {"none": None, "false": False}.get(value, value)
            if isinstance(default, int | float | str) or default is None:
                same = (
                    default in (said, value)
                    or str(said) == str(default)
                    or (isinstance(default, float) and float(said) == default)
                )
                assert same or name in FILLED_IN, f"{name}: {value}, but it is {default!r}"


def test_seeds_move_every_path_to_the_folder_of_the_seed():
    spec = importlib.util.spec_from_file_location("seeds", ROOT / "recipes/seeds.py")
    seeds = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(seeds)
    command = seeds.command(ROOT / "recipes/tiny", "runs/tiny", "ppo", 3)
    text = " ".join(command)
    assert "--seed=3" in command and "runs/tiny/seed3/sft" in text and "runs/tiny/seed3/ppo" in text
    assert text.count("runs/tiny/seed3/reward") == 2  # the learned reward and the critic
    assert "runs/tiny/reward" not in text and "runs/tiny/base" not in text  # base and data are shared
