"""Forward passes over a base whose layers are shared out over processes (shared_base.py).

No process has a whole layer of its own: each brings its part when a layer is called, so all processes have to call the
same layers at the same time. Some make more passes than others all the same: a completion that is longer, a reward
model that one process asks more often, held-out prompts that the main process answers alone. Inside `in_lockstep` each
process says before a pass that it makes one, and who has none left goes along with two tokens, until nobody has one.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import nn
from transformers import PreTrainedModel

from pipeline.models import structure

Item = TypeVar("Item")


class Lockstep:
    """What the processes that share a base say to each other.

    Args:
        trunk: the decoder whose layers are shared out. seconds: that a process waits for the others at most.
    """

    def __init__(self, trunk: PreTrainedModel, seconds: float):
        # on the processor, so that a word about a pass does not wait for the passes that a GPU has still to make
        self._group = dist.new_group(backend="gloo", timeout=timedelta(seconds=seconds))
        self._trunk, self._depth, self._goes_along = trunk, 0, False
        trunk.register_forward_pre_hook(self._before_a_pass)

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Inside, each process makes as many passes without gradient as it likes, but nothing else that takes all of
        them; it ends when all have made theirs. In one another it is as if there were the outer one alone."""
        self._depth += 1
        try:
            yield
            if self._depth == 1:
                self.settle()
        finally:
            self._depth -= 1

    def settle(self) -> None:
        """Goes along with the others until none makes a pass. Outside of a block: nothing."""
        if not self._depth or not self._count(0):
            return
        ids = torch.ones(1, 2, dtype=torch.long, device=self._trunk.device)
        self._goes_along = True
        try:
            with torch.no_grad(), structure.eval_mode(self._trunk):
                while True:
                    self._trunk(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
                    if not self._count(0):
                        return
        finally:
            self._goes_along = False

    def most(self, number: int) -> int:
        """The largest of the numbers that the processes give."""
        return int(self._reduced(number, dist.ReduceOp.MAX))

    def all(self, here: bool) -> bool:
        """Whether it holds on every process."""
        return bool(self._reduced(here, dist.ReduceOp.MIN))

    def _before_a_pass(self, *call) -> None:
        if self._depth and not self._goes_along:
            self._count(1)

    def _count(self, passes: int) -> int:
        return int(self._reduced(passes, dist.ReduceOp.SUM))

    def _reduced(self, number: int | bool, how: dist.ReduceOp) -> int:
        found = torch.tensor([int(number)])
        dist.all_reduce(found, how, group=self._group)
        return int(found.item())


def lockstep_of(model: nn.Module) -> Lockstep | None:
    """That of a model whose base is shared out; else None."""
    if not hasattr(model, "base_model"):
        return None
    return getattr(structure.trunk_of(model), "lockstep", None)


@contextmanager
def in_lockstep(model: nn.Module) -> Iterator[None]:
    """See `Lockstep`; with a base that is whole nothing happens."""
    if (lockstep := lockstep_of(model)) is None:
        yield
        return
    with lockstep():
        yield


def as_many(items: Sequence[Item], model: nn.Module) -> list[tuple[Item, float]]:
    """The items with weight 1. Where processes share a base, the last one again with weight 0 until each has as many
    as any: for passes with a gradient, which `in_lockstep` is not for."""
    found, lockstep = [(item, 1.0) for item in items], lockstep_of(model)
    more = 0 if lockstep is None else lockstep.most(len(items)) - len(items)
    return found + [(items[-1], 0.0)] * more
