"""What the documents say and what the code does cannot drift apart."""

import importlib.util
import re
from pathlib import Path

from pipeline.ppo.metrics import METRICS

ROOT = Path(__file__).resolve().parents[1]


def test_the_table_of_metrics_is_the_one_in_the_code():
    text = (ROOT / "docs/metrics.md").read_text(encoding="utf-8")
    assert dict(re.findall(r"^\| `(.+?)` \| (.+) \|$", text, re.MULTILINE)) == METRICS


def test_links_between_documents_lead_somewhere():
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/*.md"), *ROOT.glob("recipes/*/*.md")]:
        for target in re.findall(r"\]\((?!https?://|#)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_seeds_move_every_path_to_the_folder_of_the_seed():
    spec = importlib.util.spec_from_file_location("seeds", ROOT / "recipes/seeds.py")
    seeds = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(seeds)
    command = seeds.command(ROOT / "recipes/tiny", "runs/tiny", "ppo", 3)
    text = " ".join(command)
    assert "--seed=3" in command and "runs/tiny/seed3/sft" in text and "runs/tiny/seed3/ppo" in text
    assert text.count("runs/tiny/seed3/reward") == 2  # the learned reward and the critic
    assert "runs/tiny/reward" not in text and "runs/tiny/base" not in text  # base and data are shared
