"""No request leaves the machine: the commands of a short run behind a wall, as a person has them, not offline.

The wall is `netguard/sitecustomize.py` in each process: a look-up of a name, or a connection to anything but
this machine, is refused and written down with the code that asked for it.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from rows import write_rows

ROOT = Path(__file__).resolve().parents[2]
# Whatever would keep the libraries from asking, but is not what a person has set.
OFFLINE = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HUB_DISABLE_TELEMETRY")
OFFLINE += ("DISABLE_TELEMETRY", "DO_NOT_TRACK", "CI", "WANDB_MODE", "HF_TOKEN")
COMMON = {"use_cpu": True, "max_steps": 1, "per_device_train_batch_size": 2}
REWARDS = [{"name": "keyword", "column": "facts"}, {"name": "learned", "path": "out/reward", "weight": 0.5}]
COMMANDS = {
    "sft": {"dataset": "sft.jsonl", "max_length": 64, "save_strategy": "steps", "save_steps": 1},
    "reward": {"adapter_path": "out/sft", "dataset": "pairs.jsonl", "eval_fraction": 0.25, "max_length": 64},
    "ppo": {
        **{"adapter_path": "out/sft", "critic_path": "out/reward", "dataset": "prompts.jsonl", "eval_fraction": 0.25},
        **{"eval_samples": 2, "max_completion_length": 4, "num_iterations": 1, "rewards": REWARDS},
    },
}


def behind_the_wall(command: list[str], folder: Path, **env: str) -> tuple[subprocess.CompletedProcess, list[str]]:
    """What a Python command does, and what it tried to reach outside."""
    log = folder / "asked.log"
    log.unlink(missing_ok=True)
    given = {key: value for key, value in os.environ.items() if key not in OFFLINE}
    given |= {"PYTHONPATH": f"{ROOT / 'tests/support/netguard'}{os.pathsep}{ROOT}", "NETGUARD_LOG": str(log)}
    given |= {"OMP_NUM_THREADS": "1", "HF_HOME": str(folder / "home")} | env
    done = subprocess.run(
        [sys.executable, *command], cwd=folder, env=given, capture_output=True, text=True, timeout=400
    )
    said = log.read_text("utf-8") if log.exists() else ""
    return done, [line for line in said.splitlines() if line.startswith("socket.")]


UDP = "socket.socket(socket.AF_INET, socket.SOCK_DGRAM)"


@pytest.mark.parametrize(
    ("code", "asked"),
    [
        ("socket.create_connection(('example.org', 80))", ["socket.getaddrinfo 'example.org'"]),
        ("socket.socket().connect(('192.0.2.1', 80))", ["socket.connect '192.0.2.1'"]),
        (f"{UDP}.sendto(b'x', ('192.0.2.1', 53))", ["socket.sendto '192.0.2.1'"]),
        ("s = socket.create_server(('127.0.0.1', 0)); socket.create_connection(s.getsockname())", []),
    ],
)
def test_the_wall_holds_and_remembers(tmp_path, code, asked):
    done, found = behind_the_wall(["-c", f"import socket\n{code}"], tmp_path)
    assert found == asked and (done.returncode == 0) == (not asked)


def test_telemetry_is_off_unless_it_is_switched_on(tmp_path):
    code = "import pipeline; from huggingface_hub import constants as c; print(c.HF_HUB_DISABLE_TELEMETRY)"
    assert behind_the_wall(["-c", code], tmp_path)[0].stdout == "True\n"
    assert behind_the_wall(["-c", code], tmp_path, HF_HUB_DISABLE_TELEMETRY="0")[0].stdout == "False\n"
    # TRL sends at the start of each trainer, by this function, which asks that constant
    source = "import inspect; from huggingface_hub.utils import send_telemetry as s; print(inspect.getsource(s))"
    assert "constants.HF_HUB_DISABLE_TELEMETRY" in behind_the_wall(["-c", source], tmp_path)[0].stdout


@pytest.fixture(scope="module")
def project(tmp_path_factory, tiny_model_folder) -> Path:
    folder = tmp_path_factory.mktemp("network")
    words = [f"w{i}" for i in range(8)]
    write_rows(folder / "sft.jsonl", [{"prompt": f"say {w} =>\n", "completion": f"It is {w}."} for w in words])
    write_rows(
        folder / "pairs.jsonl",
        [{"prompt": f"say {w} =>\n", "chosen": f"It is {w}.", "rejected": "No."} for w in words],
    )
    write_rows(folder / "prompts.jsonl", [{"prompt": f"say {w} =>\n", "facts": [w]} for w in words])
    for stage, settings in COMMANDS.items():
        settings = COMMON | {"model_name_or_path": str(tiny_model_folder), "output_dir": f"out/{stage}"} | settings
        (folder / f"{stage}.yaml").write_text(yaml.safe_dump(settings))
    return folder


@pytest.fixture(scope="module")
def ran(project) -> tuple[subprocess.CompletedProcess, list[str]]:
    """Three stages and the report, in one process, whose imports take longer than all that it does."""
    argv = [[str(ROOT / f"recipes/{stage}.py"), "--config", f"{stage}.yaml"] for stage in COMMANDS]
    code = f"import runpy, sys\nfor sys.argv in {argv!r}:\n    runpy.run_path(sys.argv[0], run_name='__main__')\n"
    code += "from pipeline.report.__main__ import main\nassert main(['out/ppo']) == 0\n"
    code += "from huggingface_hub import constants\nprint('telemetry off:', constants.HF_HUB_DISABLE_TELEMETRY)\n"
    return behind_the_wall(["-c", code], project)


def test_three_stages_and_the_report_ask_nobody(project, ran):
    done, asked = ran
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert asked == [], (project / "asked.log").read_text("utf-8")
    assert json.loads((project / "out/ppo/summary.json").read_text())["algorithm"] == "ppo"


def test_telemetry_is_off_before_a_recipe_reads_the_hub_client(ran):
    assert "\ntelemetry off: True\n" in ran[0].stdout
