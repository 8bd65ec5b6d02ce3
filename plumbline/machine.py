"""What machine this is, and what of Plumbline's packages is on it."""

import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import psutil
import torch
from packaging.requirements import Requirement

from pipeline import __version__
from pipeline.memory.report import human
from rewards.processor import has_units

# Extra -> what it is for. `dev` is for work on Plumbline itself, `cuda` another name of quant.
EXTRAS = {
    "quant": "4-bit and 8-bit bases (load_in_4bit, optim: paged_adamw_8bit)",
    "ja": "BLEU of Japanese",
    "embeddings": "the reward relevance",
    "math": "the reward math, and TRL's that compare mathematics",
    "instructions": "the language of a text, in the reward instructions",
    "reasoning": "tasks of reasoning_gym (recipe reasoning)",
    "deepspeed": "--hardware zero2 and zero3",
    "sweep": "plumbline sweep",
    "docs": "the site of the documents (make docs, in a clone)",
}
TRACKERS = ("tensorboard", "trackio", "wandb", "mlflow")
SHOWN = ("torch", "transformers", "trl", "peft", "accelerate", "datasets")
UNITS = {torch.bfloat16: "bfloat16", torch.float16: "float16"}


def about() -> Iterator[tuple[str, str]]:
    """(what, value): system, processor, memory, disk, cards."""
    yield "Plumbline", f"{__version__}, Python {platform.python_version()} ({sys.prefix})"
    yield "system", platform.platform()
    yield "processor", processor_name()
    there = [name for dtype, name in UNITS.items() if has_units(dtype)]
    missing = [name for name in UNITS.values() if name not in there]
    units = [f"{' and '.join(there)} in units of its own" if there else ""]
    units.append(f"no units for {' and '.join(missing)}" if missing else "")
    units.append("dtype: fast takes " + ("float32" if "bfloat16" in missing else "bfloat16"))
    yield "  computes", f"{torch.backends.cpu.get_cpu_capability()}; {'; '.join(filter(None, units))}"
    cores, busy = usable_cores(), psutil.cpu_percent(0.2) / 100 * (psutil.cpu_count() or 1)
    yield "  cores", f"{cores:g} that this process may use, {busy:.1f} of {psutil.cpu_count()} busy now"
    limit, free = memory_limit(), psutil.virtual_memory().available
    yield "memory", f"{human(limit)}, {human(min(free, limit))} of it free"
    yield "disk", f"{human(shutil.disk_usage('.').free)} free in this folder"
    yield from cards()


def processor_name() -> str:
    """As the system calls it, or the kind of instructions that it has."""
    try:
        for line in Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() in ("model name", "Model"):
                return value.strip()
    except OSError:
        pass
    if sys.platform == "darwin":
        asked = subprocess.run(["sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, text=True)
        if asked.stdout.strip():
            return asked.stdout.strip()
    return platform.processor() or platform.machine()


def usable_cores() -> float:
    """Cores that this process may use: fewer than there are under taskset, or in a container with a quota."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota, _, period = _cgroup("cpu.max").partition(" ")
    return min(allowed, int(quota) / int(period)) if quota.isdecimal() and period.isdecimal() else allowed


def memory_limit() -> int:
    """Bytes of the machine, or of its container where that has fewer."""
    limit, whole = _cgroup("memory.max"), int(psutil.virtual_memory().total)
    return min(int(limit), whole) if limit.isdecimal() else whole


def _cgroup(file: str) -> str:
    """What version 2 of Linux's control groups says of this container; empty where nothing."""
    try:
        return Path("/sys/fs/cgroup", file).read_text("utf-8").strip()
    except OSError:
        return ""


def cards() -> Iterator[tuple[str, str]]:
    """GPUs that torch sees, or why it sees none."""
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            free, total = torch.cuda.mem_get_info(index)
            bf16 = "bfloat16" if torch.cuda.is_bf16_supported() else "no bfloat16"
            name = torch.cuda.get_device_name(index)
            yield f"card {index}", f"{name}, {human(total)}, {human(free)} of it free, {bf16}"
    elif torch.backends.mps.is_available():
        yield "card", "Apple's GPU; the stages train on it in float32 where PyTorch can"
    elif shutil.which("nvidia-smi"):
        build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "for CPUs alone"
        yield "card", f"none that torch {torch.__version__} (a build {build}) can use, though NVIDIA's driver is here"
    else:
        yield "card", "none: all runs on the processor"


def packages() -> Iterator[tuple[str, str]]:
    """(what, value): versions of what is needed, what does not fit, and what is missing for which feature."""
    try:
        wanted = [Requirement(line) for line in requires("plumbline") or ()]
    except PackageNotFoundError:
        yield "packages", "plumbline runs from its folder and is not installed: what it needs was not looked up"
        return
    needed = [each for each in wanted if each.marker is None or each.marker.evaluate({"extra": ""})]
    yield "packages", ", ".join(f"{name} {installed(name)}" for name in SHOWN)
    for each in needed:
        if wrong := misfit(each):
            yield "  wrong", wrong
    for extra, purpose in EXTRAS.items():
        parts = [each for each in wanted if _belongs(each, extra)]
        wrong_parts = list(filter(None, map(misfit, parts)))
        state = f"missing ({'; '.join(wrong_parts)}): pip install 'plumbline[{extra}]'" if wrong_parts else "there"
        yield f"  {extra}", f"{purpose}: {state}"
    there = [name for name in TRACKERS if importlib.util.find_spec(name)]
    absent = [name for name in TRACKERS if name not in there]
    rest = f" (not here: {', '.join(absent)})" if absent else ""
    yield "  trackers", f"report_to: {', '.join(there) or 'none'}{rest}"


def _belongs(requirement: Requirement, extra: str) -> bool:
    marker = requirement.marker
    return marker is not None and marker.evaluate({"extra": extra}) and not marker.evaluate({"extra": ""})


def installed(name: str) -> str:
    """The version of a package, or `missing`."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "missing"


def misfit(requirement: Requirement) -> str | None:
    """What is wrong with the installed package; None where it fits."""
    found = installed(requirement.name)
    if found != "missing" and requirement.specifier.contains(found, prereleases=True):
        return None
    return f"{requirement.name} {found}" + (f", wanted {requirement.specifier}" if found != "missing" else "")
