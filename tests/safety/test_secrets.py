"""Access tokens through real runs: into no file, no line and no trace, also when a push fails."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hub_server import TOKEN
from rows import write_rows

pytest_plugins = ["hub_server"]  # the fixture server

ROOT = Path(__file__).resolve().parents[2]
KEY = "canary-of-a-tracker-0123456789"
PASSWORD = "canary-of-an-option-0123456789"


@pytest.fixture
def launch(server, tmp_path, tiny_model_folder):
    """Runs the SFT stage with tokens in every place that may have one; the process."""
    write_rows(tmp_path / "sft.jsonl", [{"prompt": f"say w{i} =>\n", "completion": f"w{i}."} for i in range(8)])
    settings = {
        **{"model_name_or_path": str(tiny_model_folder), "dataset": "sft.jsonl", "eval_fraction": 0.25},
        **{"output_dir": "out", "use_cpu": True, "max_steps": 1, "max_length": 64, "save_strategy": "steps"},
        **{"save_steps": 1, "push_to_hub": True, "hub_model_id": "me/canary"},
        "chat_template_kwargs": {"token": PASSWORD},
    }
    (tmp_path / "sft.yaml").write_text(yaml.safe_dump(settings))

    def run(*flags: str) -> subprocess.CompletedProcess:
        env = {key: value for key, value in os.environ.items() if key != "HF_TOKEN"}
        env |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "WANDB_API_KEY": KEY}
        command = [sys.executable, str(ROOT / "recipes/sft.py"), "--config", "sft.yaml", "--hub_token", TOKEN, *flags]
        return subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300)

    return run


def leaks(folder: Path, *texts: str) -> list[str]:
    """Where one of the secrets stands; the recipe that the person wrote is not asked."""
    found = [f"said: {secret[:9]}" for secret in (TOKEN, KEY, PASSWORD) for text in texts if secret in text]
    for path in (folder / "out").rglob("*"):
        if path.is_file() and any(secret.encode() in path.read_bytes() for secret in (TOKEN, KEY, PASSWORD)):
            found.append(str(path.relative_to(folder)))
    return found


@pytest.mark.slow
def test_a_run_that_pushes_keeps_its_tokens_to_itself(launch, server, tmp_path):
    done = launch()
    assert done.returncode == 0, done.stderr[-3000:]
    files = server.files("me/canary")
    assert {"README.md", "config.yaml", "summary.json"} <= set(files) and (tmp_path / "out/checkpoint-1").is_dir()
    assert leaks(tmp_path, done.stdout, done.stderr) == []
    assert not any(secret.encode() in blob for blob in files.values() for secret in (TOKEN, KEY, PASSWORD))


def test_a_push_that_fails_under_debug_shows_a_trace_without_the_token(launch, server, tmp_path):
    server.fail("POST", "/commit/", 403, times=99, echo=True)  # the answer repeats the request's headers
    done = launch("--debug")
    assert done.returncode == 1 and "Traceback" in done.stderr and "may not write to me/canary" in done.stderr
    assert leaks(tmp_path, done.stdout, done.stderr) == []
    assert (tmp_path / "out/adapter_model.safetensors").is_file()  # what was trained is there all the same
