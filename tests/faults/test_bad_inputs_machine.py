"""Bad machines, through the front door: no disk, no memory, no GPU, no right to write, somebody else there already.

The failures are real: small or read-only file systems where this process may mount them, else limits of the kernel.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from catalogue import Case, cases, check, file, prepare, write_rows
from conftest import build_model
from front_door import ROOT, FrontDoor, tree

from pipeline.runs import claim, mishaps

pytest_plugins = ["places"]
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="limits and mounts of Linux")


@contextlib.contextmanager
def mounted(folder: Path, options: str) -> Iterator[Path]:
    """A file system of its own at `folder`; the test skips where this process may not mount one."""
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True).returncode:
        pytest.skip("no right to mount a file system")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


GPU = {"use_cpu": None}
SIMPLE = [
    Case("fp16 without a gpu", ("run.yaml: fp16", "needs a GPU"), settings=GPU | {"fp16": True, "bf16": False}),
    Case(
        "judge without samples",
        ("none.jsonl", "no such file"),
        "judge",
        {"samples": "none.jsonl", "output_dir": "out"},
    ),
]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@cases(*SIMPLE)
def test_bad_machines(door, place, case):
    check(door, place, case)


@pytest.mark.skipif(torch.accelerator.is_available(), reason="there is a GPU")
@pytest.mark.parametrize(
    ("env", "says"),
    [
        ({"CUDA_VISIBLE_DEVICES": "0"}, "CUDA_VISIBLE_DEVICES is 0"),  # what accelerate makes of gpu.yaml
        ({"ACCELERATE_MIXED_PRECISION": "bf16"}, "mixed_precision is bf16"),  # and of gpus.yaml
    ],
)
def test_no_gpu_where_one_was_asked_for(door, place, env, says):
    case = Case("no gpu", ("a GPU was asked for", says, "--use_cpu"), settings=GPU)
    check(door, place, case, env=env)


@LINUX
def test_disk_full_at_the_start(door, place):
    with mounted(place / "disk", "size=64k") as disk:
        (disk / "filler").write_bytes(b"." * os.statvfs(disk).f_bavail * os.statvfs(disk).f_bsize)
        says = ("output_dir disk/out cannot be written (No space left on device)", "another --output_dir")
        check(door, place, Case("full", says, settings={"output_dir": "disk/out"}))


@LINUX
@pytest.mark.parametrize("recipe", ["sft", "reward", "ppo"])
def test_disk_full_while_saving(door, place, recipe):
    case = Case("full", (), recipe, {"output_dir": "disk/out", "lora_r": 64, "adapter_path": None})
    prepare(place, case)
    before = tree(place)
    with mounted(place / "disk", "size=256k") as disk:
        message = door(recipe, ["--config", "run.yaml"], place).error
        assert "No space left on device" in message and "make room" in message
        left = {path.name for path in (disk / "out").iterdir()}
        assert "config.yaml" in left and not left & {"adapter_model.safetensors", "adapter_config.json", "critic"}
    (place / "disk").rmdir()
    assert tree(place) == before


@LINUX
def test_file_too_large_while_saving(door, place):
    prepare(place, Case("limit", (), settings={"lora_r": 64}))
    done = door("sft", ["--config", "run.yaml"], place, limits={"RLIMIT_FSIZE": 100_000})
    assert "File too large" in done.error and not (place / "out/adapter_model.safetensors").exists()


@LINUX
def test_output_folder_that_is_read_only(door, place):
    says = ("output_dir disk/out cannot be written (Read-only file system)", "another --output_dir")
    with mounted(place / "disk", "ro"):
        check(door, place, Case("read-only", says, settings={"output_dir": "disk/out"}))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_output_folder_without_the_right_to_write(door, place):
    (place / "locked").mkdir(mode=0o555)
    says = ("output_dir locked/out cannot be written (Permission denied)", "another --output_dir")
    check(door, place, Case("locked", says, settings={"output_dir": "locked/out"}))


@LINUX
def test_out_of_memory_names_the_three_settings_to_lower(door, place):
    """8,000 tokens: 4 heads x 8,000² scores x 4 bytes are 1 GB, where 700 MB are left."""
    build_model(max_position_embeddings=10_000).save_pretrained(place / "base")
    write_rows(place / "long.jsonl", [{"prompt": "a" * 4000, "completion": "b" * 4000}] * 2)
    settings = {"dataset": "long.jsonl", "eval_fraction": None, "attn_implementation": "eager", "max_length": 9000}
    says = ("out of memory", "per_device_train_batch_size", "max_completion_length", "gradient_checkpointing: true")
    check(door, place, Case("memory", says, settings=settings), limits={"RLIMIT_AS": 700 << 20})


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79 GiB"),
        RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:128] err == 0. DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
        OSError(12, "Cannot allocate memory"),
    ],
)
def test_every_form_of_no_memory_is_one_sentence(error):
    sentence = mishaps.in_words(error)
    where = "GPU" if "CUDA" in str(error) else "machine"
    assert sentence.startswith(f"the {where} is out of memory: lower per_device_train_batch_size or")


@pytest.mark.parametrize(
    "error", [ValueError("a bug"), FileNotFoundError(2, "No such file", "x"), RuntimeError("shape")]
)
def test_our_own_bugs_keep_their_trace(error):
    assert mishaps.in_words(error) is None


def test_a_full_disk_that_torch_turned_into_its_own_error():
    try:
        try:
            raise OSError(28, "No space left on device", "out/optimizer.pt")
        except OSError:  # as torch does, without a `from`
            raise RuntimeError("[enforce fail at inline_container.cc:659] . unexpected pos 64 vs 0")  # noqa: B904
    except RuntimeError as error:
        assert "out/optimizer.pt could not be written (No space left on device)" in mishaps.in_words(error)


def test_port_that_is_taken(door, place):
    write_rows(place / "samples.jsonl", [{"prompt": "a", "before": "b", "after": "c"}])
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        says = (f"port {port} cannot be used (Address already in use)", "another --port, or 0 for a free one")
        prepare(place, Case("port", (), "judge", {"samples": "samples.jsonl", "output_dir": "out", "port": port}))
        message = door("judge", ["--config", "run.yaml"], place).error
        assert all(words in message for words in says), message


@contextlib.contextmanager
def waiting(door: FrontDoor, place: Path) -> Iterator[None]:
    """Inside, a run holds `out` and waits in its reward; at the end it is killed."""
    os.mkfifo(place / "gate")
    make = file("mine.py", "def wait(prompts, completions, **columns):\n    open('gate').read()\n")
    prepare(place, Case("waits", (), "ppo", {"rewards": [{"name": "mine:wait"}]}, make))
    process = door.start("ppo", ["--config", "run.yaml"], place)
    gate = os.open(place / "gate", os.O_WRONLY)  # returns when the reward has opened the other end
    try:
        yield
    finally:
        os.kill(process, signal.SIGKILL)
        door.wait(process)
        os.close(gate)


def test_two_runs_in_one_folder(door, place):
    with waiting(door, place):
        before = sorted(path.name for path in (place / "out").iterdir())
        message = door("ppo", ["--config", "run.yaml"], place).error
        assert "output_dir out is in use" in message and "another --output_dir" in message
        assert sorted(path.name for path in (place / "out").iterdir()) == before
    # the lock of a killed run is nobody's
    assert "output_dir out already holds results" in door("ppo", ["--config", "run.yaml"], place).error


@pytest.mark.slow
def test_a_real_process_says_the_same_as_a_forked_one(place):
    prepare(place, Case("key", (), settings={"lerning_rate": 1.0}))
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "recipes/sft.py"), "--config", "run.yaml"]
    done = subprocess.run(command, cwd=place, env=env, capture_output=True, text=True)
    words = "error: run.yaml: no such setting lerning_rate, did you mean learning_rate?\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", words)
    debug = subprocess.run([*command, "--debug"], cwd=place, env=env, capture_output=True, text=True)
    assert debug.returncode == 1 and "Traceback" in debug.stderr and "no such setting lerning_rate" in debug.stderr


def test_a_save_that_fails_half_way_takes_away_what_it_wrote_and_nothing_else(tmp_path):
    (tmp_path / "config.yaml").write_text("before")
    with pytest.raises(OSError), claim.all_or_nothing(tmp_path):
        (tmp_path / "critic").mkdir()
        (tmp_path / "critic" / "adapter_config.json").write_text("{}")
        (tmp_path / "adapter_model.safetensors").write_bytes(b"half")
        raise OSError(28, "No space left on device")
    assert tree(tmp_path) == {"config.yaml": b"before"}
