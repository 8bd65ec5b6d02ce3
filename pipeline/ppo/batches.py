"""Which rows go through the model together. Padding costs as much as tokens do, so rows of like length keep company.

A rollout has its prompts padded on the left to P columns and its completions on the right to T columns. A `Part` is
some of its rows without the columns that are padding for all of them.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

# TRL's names -> tensors with one row a completion, numbers, and lists where there are images
Batch = dict[str, Any]
CRITIC_STATES = "critic_states"  # (B, P+T, H): what enters the critic's first trained layer (pipeline/ppo/critic.py)
# Shapes that were seen before are cheap: libraries prepare their matrix products anew for each new shape (oneDNN in
# bfloat16 above all). So parts have a multiple of this many rows and columns where they can.
_ROWS, _COLUMNS = 4, 8
# Multiplications that a device could make in the time in which the calls of one layer are made: half a millisecond or
# two of Python and launches, at some hundred billion a second on a CPU and some hundred thousand billion on a GPU
_A_LAYERS_CALLS = {"cpu": 5e8}
_A_LAYERS_CALLS_ELSEWHERE = 1.5e10


def tokens_a_pass(trunk: nn.Module, layers: int) -> float:
    """How many tokens cost as much as a pass over the model does before its first token: few in a large model."""
    looked_up = {id(p) for module in trunk.modules() if isinstance(module, nn.Embedding) for p in module.parameters()}
    multiplied = (p for n, p in trunk.named_parameters() if "lora_" not in n and p.ndim > 1 and id(p) not in looked_up)
    weights = sum(p.numel() for p in multiplied)
    device = next(trunk.parameters()).device.type
    return layers * _A_LAYERS_CALLS.get(device, _A_LAYERS_CALLS_ELSEWHERE) / max(weights, 1)


class Part(NamedTuple):
    """Rows of a batch, and how many columns of prompt (the last ones) and completion (the first ones) they need."""

    rows: Tensor  # (b,) indices
    prompt: int
    tokens: int

    def cut(self, batch: Batch) -> Batch:
        """The rows and columns out of a batch; what is not one row a completion is taken as it is."""
        size, width = batch["completion_mask"].shape
        found = {}
        for key, x in batch.items():
            if not torch.is_tensor(x) or x.ndim == 0 or len(x) != size:
                found[key] = x
            elif key in ("prompt_ids", "prompt_mask"):
                found[key] = x[self.rows, x.shape[1] - self.prompt :]
            elif key == CRITIC_STATES:
                found[key] = x[self.rows, x.shape[1] - width - self.prompt : x.shape[1] - width + self.tokens]
            else:
                found[key] = x[self.rows, : self.tokens] if x.ndim == 2 and x.shape[1] == width else x[self.rows]
        return found


def parts(prompt_mask: Tensor, completion_mask: Tensor, size: int, a_pass: float) -> Iterator[Part]:
    """Cuts a batch, masks (B, P) and (B, T), into parts of at most `size` rows so that passes over them cost least.

    Rows are sorted by length; a part costs its rows x columns and `a_pass` tokens (`tokens_a_pass`). The best cuts are
    found by dynamic programming over the sorted rows.
    """
    prompts, completions = prompt_mask.sum(dim=1), completion_mask.sum(dim=1)
    order = completions.argsort(stable=True)
    prompt = [_round_up(n, prompt_mask.shape[1]) for n in prompts[order].tolist()]
    tokens = [_round_up(n, completion_mask.shape[1]) for n in completions[order].tolist()]
    rows = _ROWS if size % _ROWS == 0 else 1
    least, start = [0.0], [0]  # of the first n rows: what they cost at least, and where their last part starts
    for end in range(1, len(tokens) + 1):
        best, widest = (torch.inf, 0), 0
        for first in range(end - 1, max(end - size, 0) - 1, -1):
            widest = max(widest, prompt[first])
            if first % rows == 0 and (end % rows == 0 or end == len(tokens)):
                cost = least[first] + (end - first) * (widest + tokens[end - 1]) + a_pass
                best = min(best, (cost, first))
        least.append(best[0])
        start.append(best[1])
    ends, end = [], len(tokens)
    while end:
        ends.append((start[end], end))
        end = start[end]
    for first, end in reversed(ends):
        yield Part(order[first:end], max(prompt[first:end]), tokens[end - 1])


def in_parts(batch: Batch, a_pass: float) -> list[Batch]:
    """A micro-batch in parts of like length, whose losses add up to its own."""
    size = len(batch["completion_mask"])
    if not has_rows_alone(batch, size):
        return [batch]
    return [part.cut(batch) for part in parts(batch["prompt_mask"], batch["completion_mask"], size, a_pass)]


def _round_up(count: int, most: int) -> int:
    """To a whole number of `_COLUMNS`, but no more columns than there are, and at least one."""
    return min(max(_COLUMNS, -(-count // _COLUMNS) * _COLUMNS), max(most, 1))


def pack(mini_batch: list[Batch]) -> list[Batch]:
    """The micro-batches of one mini-batch, with rows of like length together and without columns of padding only.

    One optimizer step sees all of them and its loss is a sum over tokens, so neither changes the gradient. Batches
    with anything but tensors of one row a completion (images) are left as they are.
    """
    size = len(mini_batch[0]["completion_ids"])
    if not all(has_rows_alone(micro_batch, size) for micro_batch in mini_batch):
        return mini_batch
    names = [key for key, x in mini_batch[0].items() if torch.is_tensor(x) and x.ndim]
    merged = {key: torch.cat([m[key] for m in mini_batch]) for key in names}
    order = merged["completion_mask"].sum(dim=1).argsort(stable=True)
    packed = []
    for micro_batch, rows in zip(mini_batch, order.split(size), strict=True):
        prompt, tokens = (int(merged[f"{x}_mask"][rows].sum(dim=1).max()) for x in ("prompt", "completion"))
        widths = (merged[f"{name}_mask"].shape[1] for name in ("prompt", "completion"))
        packed.append(micro_batch | Part(rows, *map(_round_up, (prompt, tokens), widths)).cut(merged))
    return packed


def has_rows_alone(batch: Batch, size: int) -> bool:
    """Whether everything in a batch is a tensor with one row a completion, or one number."""
    return all(
        not isinstance(x, list) and (not torch.is_tensor(x) or x.ndim == 0 or len(x) == size) for x in batch.values()
    )
