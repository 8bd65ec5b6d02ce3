"""recipes/accelerate: Accelerate's own launcher reads every file, each holds hardware only, cpu2 truly starts two."""

import re
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / "recipes" / "accelerate").glob("*.yaml"))
# What each file is for, written down apart from the files: kind of start, number of processes, of machines.
EXPECTED = {
    "cpu": ("NO", 1, 1),
    "cpu2": ("MULTI_GPU", 2, 1),
    "gpu": ("NO", 1, 1),
    "gpus": ("MULTI_GPU", 2, 1),
    "fsdp": ("FSDP", 2, 1),
    "zero2": ("DEEPSPEED", 2, 1),
    "zero3": ("DEEPSPEED", 2, 1),
    "machines": ("MULTI_GPU", 16, 2),
}


def launch_args(path: Path):
    arguments = launch_command_parser().parse_args(["--config_file", str(path), "script.py"])
    return _validate_launch_command(arguments)[0]


def test_all_kinds_of_hardware_are_there():
    assert {path.stem for path in FILES} == set(EXPECTED)


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_accelerate_reads_it(path):
    config = load_config_from_file(str(path))  # refuses keys that it does not know
    assert (config.distributed_type, config.num_processes, config.num_machines) == EXPECTED[path.stem]
    assert config.use_cpu == path.stem.startswith("cpu")
    assert config.mixed_precision == ("no" if config.use_cpu else "bf16")


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_the_launcher_takes_every_key(path, monkeypatch):
    """The nested keys of FSDP and DeepSpeed are not checked when the file is read: a typo would simply do nothing."""
    monkeypatch.setattr("accelerate.commands.launch.is_bf16_available", lambda ignore_tpu=False: True)
    known = vars(launch_command_parser().parse_args(["script.py"]))
    args = vars(launch_args(path))
    for section, prefix in (("fsdp_config", ""), ("deepspeed_config", "")):
        for key, value in (yaml.safe_load(path.read_text("utf-8")).get(section) or {}).items():
            assert prefix + key in known, f"{path.name}: accelerate launch has no setting {key}"
            assert args[key] == value
    assert args["num_processes"] == EXPECTED[path.stem][1]


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_it_holds_hardware_only(path):
    keys = " ".join(yaml.safe_load(path.read_text("utf-8")))
    assert not re.search("learning|batch|accumulation|epoch|steps|model_name|dataset|seed", keys)


SCRIPT = """
import torch.distributed as dist
from accelerate import Accelerator
state = Accelerator().state
total = __import__("torch").tensor([state.process_index + 1.0])
if dist.is_initialized():
    dist.all_reduce(total)
seen = f"rank {state.process_index} of {state.num_processes}, device {state.device.type}, sum {total.item():g}"
print(f"<{seen}>", flush=True)
if dist.is_initialized():  # none may go while another still listens to it
    dist.barrier()
    dist.destroy_process_group()
"""


@pytest.mark.parametrize(
    ("name", "ranks"),
    [
        ("cpu", {"rank 0 of 1, device cpu, sum 1"}),
        ("cpu2", {"rank 0 of 2, device cpu, sum 3", "rank 1 of 2, device cpu, sum 3"}),
    ],
)
def test_cpu_processes_see_each_other(warm, tmp_path, name, ranks):
    script = tmp_path / "show_rank.py"
    script.write_text(SCRIPT, "utf-8")
    config = ROOT / "recipes" / "accelerate" / f"{name}.yaml"
    command = ["-m", "accelerate.commands.launch", "--config_file", config, script]
    done = warm.run(command, tmp_path, env={"ACCELERATE_USE_CPU": "true"})
    assert done.returncode == 0, done.stderr[-6000:]
    assert sorted(re.findall("<(.*?)>", done.stdout)) == sorted(ranks)
