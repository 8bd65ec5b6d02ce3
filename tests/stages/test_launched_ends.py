"""How a run on two processes ends before its time: Ctrl-C, SIGTERM, an error of one process alone.

By the launchers themselves. torchrun sends a signal that it gets on to the processes, beside that of the terminal.
"""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from rows import write_rows

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.slow  # each starts a launcher and two processes, 20 s
REWARDS = '''
import os
from rewards import RewardError

asked = 0


def ready(prompts, completions, **columns):
    """Says when training has begun: rewards are asked twice by the exam before it, on the first process."""
    global asked
    asked += 1
    if asked == 4:
        print("READY", flush=True)
    return [float(len(x)) for x in completions]


def fails(prompts, completions, **columns):
    global asked
    asked += 1
    if os.environ["RANK"] == "1" and asked == 2:
        raise RewardError("the second process has had enough")
    return [float(len(x)) for x in completions]
'''


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_model_folder):
    folder = tmp_path_factory.mktemp("ends")
    write_rows(folder / "prompts.jsonl", [{"prompt": f"say w{i} =>\n"} for i in range(12)])
    (folder / "ourrewards.py").write_text(REWARDS)
    settings = {
        **{"model_name_or_path": str(tiny_model_folder), "dataset": "prompts.jsonl", "eval_fraction": 0.3333},
        **{"eval_samples": 2, "per_device_train_batch_size": 2, "total_episodes": 40_000, "num_iterations": 1},
        **{"max_completion_length": 4, "use_cpu": True, "bf16": False, "report_to": "none"},
    }
    (folder / "ppo.yaml").write_text(yaml.safe_dump(settings))
    return folder


def launched(folder: Path, by: str, reward: str, out: str, hardware: str = "cpu2") -> subprocess.Popen:
    """A run by `launch` (recipes/launch.py), `accelerate` or `torchrun`, with a process group of its own."""
    accelerate = ["--config_file", str(ROOT / f"recipes/accelerate/{hardware}.yaml"), "--mixed_precision", "no"]
    command = {
        "launch": [str(ROOT / "recipes/launch.py"), *accelerate],
        "accelerate": ["-m", "accelerate.commands.launch", *accelerate],
        "torchrun": ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(free_port())],
    }[by]
    command = [sys.executable, *command, str(ROOT / "recipes/ppo.py"), "--config", "ppo.yaml", "--output_dir", out]
    own = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "MAKELEVEL")
    env = {key: value for key, value in os.environ.items() if key not in own}
    env |= {"PYTHONPATH": f"{ROOT}{os.pathsep}.", "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(
        [*command, "--rewards", f"ourrewards:{reward}"], cwd=folder, env=env, start_new_session=True, **pipes
    )


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


SIGNALS = [(how, by, "cpu2") for how in ("Ctrl-C", "SIGTERM") for by in ("launch", "accelerate", "torchrun")]


@pytest.mark.parametrize(("how", "by", "hardware"), [*SIGNALS, ("Ctrl-C", "launch", "fsdp")])
def test_a_signal_leaves_a_checkpoint_and_the_way_to_go_on(folder, how, by, hardware):
    out = f"{how}_{by}_{hardware}"
    process = launched(folder, by, "ready", out, hardware)
    said = []
    for line in process.stdout:
        said.append(line)
        if "READY" in line:
            break
    if how == "Ctrl-C":
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    else:
        process.terminate()
    said = "".join(said) + process.communicate(timeout=120)[0]
    assert "Stopping after this step, with a checkpoint" in said, said[-3000:]
    assert said.count("To go on: the same launch of ") == 1 and f"--output_dir {out}" in said
    [checkpoint] = (folder / out).glob("checkpoint-*")
    assert (checkpoint / "critic").is_dir()
    # torchrun and Accelerate have a code of their own for every signal
    code = 128 + (signal.SIGINT if how == "Ctrl-C" else signal.SIGTERM)
    assert process.returncode == (code if by == "launch" else 1), said[-3000:]


@pytest.mark.parametrize(("by", "hardware"), [("launch", "cpu2"), ("launch", "fsdp"), ("torchrun", "cpu2")])
def test_an_error_of_the_second_process_alone_is_said_and_ends_the_run(folder, by, hardware):
    process = launched(folder, by, "fails", f"fails_{by}_{hardware}", hardware)
    said, _ = process.communicate(timeout=120)
    assert said.count("error: ") == 1 and "the second process has had enough" in said, said[-3000:]
    assert process.returncode == (2 if by == "launch" else 1)
    if by == "launch":
        assert "Traceback" not in said
