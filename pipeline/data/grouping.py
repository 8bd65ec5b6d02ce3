"""Rows of like length in one batch: padding costs as much as tokens do, and of rows in random order about half of what
is computed is padding.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from datasets import Dataset
from torch.utils.data import Sampler, SequentialSampler
from transformers import Trainer
from transformers.trainer_pt_utils import get_length_grouped_indices

# It stands before a Trainer's class, whose attributes and methods it uses
if TYPE_CHECKING:
    _Trainer = Trainer
else:
    _Trainer = object


class GroupsByLength(_Trainer):
    """Mixed into a Trainer, before its class: what `train_sampling_strategy: group_by_length` does.

    Trainer's own looks for `input_ids`, which rows of pairs do not have, and draws from the global generator, so that
    a resumed run would go on with other batches. It shuffles held-out rows as well; here they stay in their order.
    """

    _order: "GroupedByLength | None" = None

    def lengths(self, rows: Dataset) -> list[int]:
        """Tokens of each row of the training data; of the longest of its parts, where these are padded together."""
        raise NotImplementedError

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler[int] | None:
        if self.args.train_sampling_strategy != "group_by_length":
            usual: Sampler[int] | None = super()._get_train_sampler(train_dataset)
            return usual
        size = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        seed = self.args.data_seed or self.args.seed
        self._order = GroupedByLength(self.lengths(self.train_dataset), size, seed)
        return self._order

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        # In the epoch of a resumed run the sampler of several processes lies a wrapper too deep for Accelerate's
        # `set_epoch`, and would give the order of the first epoch.
        if self._order is not None:
            self._order.set_epoch(kwargs["epoch"])
        super()._run_epoch(*args, **kwargs)  # type: ignore[no-untyped-call]  # transformers' has no types

    def _get_eval_sampler(self, eval_dataset: Dataset) -> Sampler[int] | None:
        if self.args.train_sampling_strategy != "group_by_length":
            usual: Sampler[int] | None = super()._get_eval_sampler(eval_dataset)
            return usual
        return SequentialSampler(eval_dataset)


class GroupedByLength(Sampler[int]):
    """Rows of like length together, in another order in each epoch, and in the same one when the run is resumed.

    Args:
        lengths: tokens of each row.
        batch_size: rows of an optimizer step, over all processes.
        seed: of the order.
    """

    def __init__(self, lengths: list[int], batch_size: int, seed: int):
        self.lengths, self.batch_size, self.seed, self.epoch = lengths, batch_size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Called by the Trainer at the start of each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + 1_000_003 * self.epoch)
        indices = get_length_grouped_indices(self.lengths, self.batch_size, generator=generator)
        first, *others = (indices[i : i + self.batch_size] for i in range(0, len(indices), self.batch_size))
        # They come sorted, longest first, a few times over. The first has the longest row of all and stays there, so
        # that too little memory shows at once; a last one that is not full stays at the end; the others are mixed.
        last = [others.pop()] if len(indices) % self.batch_size and others else []
        mixed = [others[i] for i in torch.randperm(len(others), generator=generator)]
        return iter([row for batch in (first, *mixed, *last) for row in batch])
