"""What PPO logs. Every mean is exact: sums and counts are added up over micro-batches and processes, then divided."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from accelerate import Accelerator
from torch import Tensor

from pipeline.safety.reading import read_json

_SMALLEST = "-"  # before the name of a figure whose negative is kept: the smallest is the largest negative


def repetition(completion_ids: Tensor, completion_mask: Tensor) -> Tensor:
    """1 - distinct trigrams / trigrams of the tokens of each completion, in [0, 1); 0 below three tokens.

    seq-rep-3 of Welleck et al. 2020, "Neural Text Generation with Unlikelihood Training", eq. 10.

    Args: completion_ids (B, T), completion_mask (B, T) 1 = a real token. Returns: (B,) on the device of the ids.
    """
    shares = []
    for ids, length in zip(completion_ids.tolist(), completion_mask.sum(dim=1).tolist(), strict=True):
        trigrams = [tuple(ids[i : i + 3]) for i in range(length - 2)]
        shares.append(1 - len(set(trigrams)) / len(trigrams) if trigrams else 0.0)
    return torch.tensor(shares, device=completion_ids.device)


class Journal:
    """Collects what happens in an update and gives it out as numbers over all processes.

    Args: accelerator: Accelerate's, for sums over processes. Everything stays on the device until `read`.
    """

    def __init__(self, accelerator: Accelerator):
        self._accelerator = accelerator
        self._sums: dict[str, Tensor] = {}
        self._extremes: dict[str, Tensor] = {}
        self._new_tokens = 0
        self._since: float | None = None  # the first thing that a clock measures
        self.seconds = dict.fromkeys(("generation", "scoring", "forward", "training"), 0.0)
        self.episodes = self.tokens = 0
        self.doing: str | None = None  # what the innermost clock measures just now
        self.before_any_update = False  # in the first optimizer step on a rollout

    def add(self, name: str, x: Tensor, mask: Tensor | None = None) -> None:
        """Adds the elements of `x` (where `mask` is 1) to the mean called `name`."""
        x = x.detach().double()
        mask = torch.ones_like(x) if mask is None else mask
        pair = torch.stack([torch.where(mask.bool(), x, 0).sum(), mask.sum().double()])
        self._sums[name] = self._sums[name] + pair if name in self._sums else pair
        if name == "ratio" and self.before_any_update:
            self.add("ratio/first", (x - 1).abs(), mask)

    def largest(self, name: str, x: Tensor, mask: Tensor | None = None) -> None:
        """Keeps the largest element of `x` (where `mask` is 1)."""
        x = x.detach().double()
        x = x.max() if mask is None else torch.where(mask.bool(), x, -torch.inf).max()
        self._extremes[name] = torch.maximum(self._extremes[name], x) if name in self._extremes else x

    def smallest(self, name: str, x: Tensor) -> None:
        """Keeps the smallest element of `x`."""
        self.largest(f"{_SMALLEST}{name}", -x)

    def count(self, lengths: Tensor) -> int:
        """Counts sampled completions of `lengths` (B,) tokens on every process; returns how many completions."""
        counts = self.sum(torch.stack([lengths.sum(), torch.full_like(lengths[0], len(lengths))]))
        tokens, episodes = counts.tolist()
        self.tokens, self.episodes = self.tokens + tokens, self.episodes + episodes
        self._new_tokens += tokens
        return episodes

    @contextmanager
    def clock(self, name: str) -> Iterator[None]:
        """Adds the seconds of the block to `time/<name>`, less what clocks inside it took."""
        before, start = sum(self.seconds.values()), time.perf_counter()
        self._since = start if self._since is None else self._since
        outside, self.doing = self.doing, name
        try:
            yield
        finally:
            self.doing = outside
            inside = sum(self.seconds.values()) - before
            self.seconds[name] += time.perf_counter() - start - inside

    def leave_out(self, seconds: float) -> None:
        """These last seconds were not training: `tokens_per_second` must not count them."""
        if self._since is not None:
            self._since += seconds

    def state(self) -> dict:
        """What was counted on this process since the last log and in all, for a checkpoint; JSON keeps it exactly."""
        return {
            "sums": {name: pair.tolist() for name, pair in self._sums.items()},
            "extremes": {name: x.item() for name, x in self._extremes.items()},
            "new_tokens": self._new_tokens,
            "seconds": self.seconds,
            "since": None if self._since is None else time.perf_counter() - self._since,
            "episodes": self.episodes,
            "tokens": self.tokens,
        }

    def load_state(self, state: dict) -> None:
        """Takes back what `state` gave."""
        tensor = partial(torch.tensor, dtype=torch.float64, device=self._accelerator.device)
        self._sums = {name: tensor(pair) for name, pair in state["sums"].items()}
        self._extremes = {name: tensor(x) for name, x in state["extremes"].items()}
        self._new_tokens, self.seconds = state["new_tokens"], dict(state["seconds"])
        self._since = None if state["since"] is None else time.perf_counter() - state["since"]
        self.episodes, self.tokens = state["episodes"], state["tokens"]

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum over all processes."""
        return self._accelerator.reduce(tensor, reduction="sum")

    def read(self) -> dict[str, float]:
        """The means and maxima of all processes, then forgets them. Every process must call it."""
        found: dict[str, float] = {}
        if self._sums:
            names = sorted(self._sums)
            sums = self.sum(torch.stack([self._sums[name] for name in names]))
            # no count, no number: a reward that scored no row has no mean
            found |= {n: (s / c).item() for n, (s, c) in zip(names, sums, strict=True) if c > 0}
        if self._extremes:
            names = sorted(self._extremes)
            stacked = self._accelerator.gather(torch.stack([self._extremes[name] for name in names])[None])
            largest = dict(zip(names, stacked.max(dim=0).values.tolist(), strict=True))
            found |= {n: x for n, x in largest.items() if not n.startswith(_SMALLEST)}
            found |= {n.removeprefix(_SMALLEST): -x for n, x in largest.items() if n.startswith(_SMALLEST)}
        self._sums, self._extremes = {}, {}
        return found

    def read_clocks(self) -> dict[str, float]:
        """Counts, speed and the split of time since the last call."""
        now = time.perf_counter()
        found = {"episodes": self.episodes, "tokens": self.tokens}
        found["tokens_per_second"] = self._new_tokens / (now - self._since) if self._since else 0.0
        found |= {f"time/{name}": seconds for name, seconds in self.seconds.items()}
        self.seconds = dict.fromkeys(self.seconds, 0.0)
        self._since, self._new_tokens = now, 0
        return found


class KeepsJournal:
    """Mixed into a `Resumable` trainer: its `journal` goes into each checkpoint, a file a process."""

    journal_name: str  # begins the file's name

    def save_rest(self, folder):
        super().save_rest(folder)
        (folder / self._journal_file).write_text(json.dumps(self.journal.state()), encoding="utf-8")

    def load_rest(self, folder):
        super().load_rest(folder)
        self.journal.load_state(read_json(folder / self._journal_file))

    @property
    def _journal_file(self) -> str:
        return f"{self.journal_name}_{self.args.process_index}.json"
