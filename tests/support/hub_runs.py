"""Runs to push to the Hub, and how they are pushed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import yaml
from conftest import build_model, build_tokenizer
from peft import LoraConfig, get_peft_model
from transformers import LlamaForSequenceClassification, LlamaForTokenClassification

from pipeline import hub
from pipeline.runs.folder import SUMMARY

ROOT = Path(__file__).resolve().parents[2]
PUSHED = {
    *("README.md", "adapter_config.json", "adapter_model.safetensors", "config.yaml", "metrics.jsonl"),
    *("summary.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"),
}


def make_runs(root: Path) -> Path:
    """`runs/t/{sft,reward,ppo}` with real small adapters, and with all that must never be pushed."""
    base = build_model()
    lora = {"r": 2, "target_modules": ["q_proj"]}
    runs = root / "runs" / "t"
    (runs / "base").mkdir(parents=True)
    get_peft_model(build_model(), LoraConfig(task_type="CAUSAL_LM", **lora)).save_pretrained(runs / "ppo")
    for folder, task, kind in (
        (runs / "reward", "SEQ_CLS", LlamaForSequenceClassification),
        (runs / "ppo" / "critic", "TOKEN_CLS", LlamaForTokenClassification),
    ):
        base.config.num_labels = 1
        model = get_peft_model(kind(base.config), LoraConfig(task_type=task, modules_to_save=["score"], **lora))
        model.save_pretrained(folder)
    for name in ("ppo", "reward", "ppo/critic"):
        config = json.loads((runs / name / "adapter_config.json").read_text())
        (runs / name / "adapter_config.json").write_text(
            json.dumps(config | {"base_model_name_or_path": "runs/t/base"}, indent=2)
        )
    for name in ("ppo", "reward"):
        folder = runs / name
        build_tokenizer().save_pretrained(folder)
        (folder / "README.md").write_text("---\nlibrary_name: peft\nbase_model: runs/t/base\ntags: [lora]\n---\n# t\n")
        rewards = [{"name": "keyword"}, {"name": "mixture", "rewards": [{"name": "learned", "path": "runs/t/reward"}]}]
        config = {"dataset": "/home/" + "me/data/rows.jsonl", "output_dir": f"runs/t/{name}", "rewards": rewards}
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
        (folder / SUMMARY).write_text(json.dumps({"stage": name, "base": "/home/" + "me/base", "seed": 0}))
        (folder / "metrics.jsonl").write_text('{"step": 1, "loss": 0.5}\n')
    never = ["training_args.bin", "optimizer.pt", "samples.jsonl", "heldout.jsonl", "rollout_0.safetensors", "a.py"]
    for name in [*never, "report.html", "checkpoint-2/adapter_model.safetensors", ".env"]:
        path = runs / "ppo" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("not for others")
    return root


def push(repo: str, run="runs/t/ppo", **settings) -> list[str]:
    return hub.run(hub.PushArguments(run=str(run), repo=repo, **{"yes": True, "what": ["policy"]} | settings))


def recipe(*flags: str) -> list[str]:
    return [sys.executable, str(ROOT / "recipes/push.py"), *flags]


def launch(*flags: str, **env) -> subprocess.CompletedProcess:
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | env
    return subprocess.run(recipe(*flags), env=env, capture_output=True, text=True, timeout=200)
