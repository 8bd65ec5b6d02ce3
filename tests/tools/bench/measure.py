"""Clocks and memory of one process. Imported by both sides, so it needs torch and Python alone."""

import argparse
import gc
import json
import time
from collections.abc import Callable
from pathlib import Path

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")
MARK = "RESULT "  # begins the line of a run's output that carries its figures


def arguments(description: str, **modes) -> argparse.Namespace:
    """What both sides are told; `modes` are further options, each with its choices, the first the default."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--models", default="runs/bench/models", help="folder of the models")
    parser.add_argument("--size", default="S")
    parser.add_argument("--form", default="fixed", choices=("fixed", "natural"))
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--updates", type=int, default=3, help="updates in all; the first is not counted")
    parser.add_argument("--batch", type=int, default=16, help="completions in a micro-batch")
    parser.add_argument("--accumulate", type=int, default=2, help="micro-batches in an optimizer step")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--threads", type=int, default=0, help="of torch; 0: as many as it takes by itself")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--critic-layers", type=int, default=1, help="upper layers on which ours is trained")
    for name, choices in modes.items():
        parser.add_argument(f"--{name}", default=choices[0], choices=choices)
    return parser.parse_args()


def use_threads(count: int) -> None:
    """Gives torch `count` threads; 0 leaves it alone."""
    import torch

    if count:
        torch.set_num_threads(count)


def tell(result: dict) -> None:
    """Prints the figures of a run as its last line."""
    print(MARK + json.dumps(result), flush=True)


def heard(output: str) -> dict:
    """The figures in what a run printed."""
    return json.loads(next(line for line in reversed(output.splitlines()) if line.startswith(MARK))[len(MARK) :])


class Clock:
    """Adds up seconds by name."""

    def __init__(self, device: str = "cpu"):
        self.seconds: dict[str, float] = {}
        self._device = device

    def now(self) -> float:
        if self._device == "cuda":  # else only the launch of the work would be timed
            import torch

            torch.cuda.synchronize()
        return time.perf_counter()

    def timed(self, name: str | Callable[..., str | None], function: Callable) -> Callable:
        """`function` with a clock around it; `name` may be a function of its arguments (None: not timed)."""

        def call(*args, **kwargs):
            key = name if isinstance(name, str) else name(*args, **kwargs)
            if key is None:
                return function(*args, **kwargs)
            start = self.now()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds[key] = self.seconds.get(key, 0.0) + self.now() - start

        return call

    def read(self) -> dict[str, float]:
        """Seconds since the last call."""
        found, self.seconds = self.seconds, {}
        return found


class Memory:
    """Peak memory in MiB above the level at which it was made: resident memory, or the allocator's on CUDA."""

    def __init__(self, device: str = "cpu"):
        self._device = device
        if device == "cuda":
            import torch

            torch.cuda.init()
            torch.cuda.reset_peak_memory_stats()
            self._level = torch.cuda.memory_allocated()
            return
        gc.collect()
        _CLEAR.write_text("5")  # resets VmHWM
        self._level = _status("VmRSS")

    def peak(self) -> float:
        if self._device == "cuda":
            import torch

            return (torch.cuda.max_memory_allocated() - self._level) / 2**20
        return (_status("VmHWM") - self._level) / 2**20


def _status(key: str) -> int:
    """A figure of /proc/self/status in bytes."""
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(key + ":"))
    return int(line.split()[1]) * 1024


def distinct_parameters() -> int:
    """Parameters in memory, whoever holds them; those that share storage count once."""
    import torch

    sizes = {}
    for thing in gc.get_objects():
        if issubclass(type(thing), torch.nn.Parameter) and not thing.is_meta:
            storage = thing.untyped_storage()
            sizes[storage.data_ptr()] = storage.nbytes() // thing.element_size()
    return sum(sizes.values())


def versions(own: str = "trl") -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("torch", "transformers", own, "peft", "accelerate")}
