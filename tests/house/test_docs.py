"""What the documents say and what the code does cannot drift apart."""

import importlib.util
import re
from pathlib import Path

import yaml

from pipeline.watching.metrics import PPO as METRICS
from rewards import build_rewards
from rewards.build import REGISTRY

ROOT = Path(__file__).resolve().parents[2]


def test_the_table_of_metrics_is_the_one_in_the_code():
    text = (ROOT / "docs/metrics.md").read_text(encoding="utf-8")
    assert dict(re.findall(r"^\| `(.+?)` \| (.+) \|$", text, re.MULTILINE)) == METRICS


def test_links_between_documents_lead_somewhere():
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/*.md"), *ROOT.glob("recipes/*/*.md")]:
        for target in re.findall(r"\]\((?!https?://|#)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_table_of_rewards_has_every_reward_and_its_lines_can_be_built():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    table = text.split("| reward | range |")[1].split("\n\n")[0]
    named = {name for row in table.splitlines()[2:] for name in re.findall(r"`(\w+)`", row.split("|")[1])}
    assert named == set(REGISTRY) - {"rouge"}  # rouge1, rouge2 and rougeL stand for it
    lines = re.search(r"Lines to copy:\n\n```yaml\n(.*?)```", text, re.DOTALL).group(1)
    assert len(build_rewards(yaml.safe_load(lines)["rewards"])) == lines.count("{name:")


def test_the_examples_of_answers_that_can_be_checked_run():
    text = (ROOT / "docs/checkable.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == 6
    for block in blocks:
        exec(block, {})  # they assert what comes out


def test_seeds_move_every_path_to_the_folder_of_the_seed():
    spec = importlib.util.spec_from_file_location("seeds", ROOT / "recipes/seeds.py")
    seeds = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(seeds)
    command = seeds.command(ROOT / "recipes/tiny", "runs/tiny", "ppo", 3)
    text = " ".join(command)
    assert "--seed=3" in command and "runs/tiny/seed3/sft" in text and "runs/tiny/seed3/ppo" in text
    assert text.count("runs/tiny/seed3/reward") == 2  # the learned reward and the critic
    assert "runs/tiny/reward" not in text and "runs/tiny/base" not in text  # base and data are shared
