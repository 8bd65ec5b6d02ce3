"""The arithmetic floor: how long the matrix products of one PPO update would take alone, at this machine's own rate.

Counted: decoding with a cache, four passes without gradient (policy, reference, critic, reward), and the epochs'
forward and backward passes of two whole trunks, policy and critic, whose base is frozen: each layer is passed once
forward and once backward for its input. LoRA's own products count in training only, elsewhere they could be merged;
logits count for completion tokens only; padding does not count. A trainer that leaves out a pass can be below the
floor.

    python -m tests.tools.bench.floor --size M --dtype bfloat16
"""

import math
import time
from collections import Counter
from typing import NamedTuple

import torch

from tests.tools.bench.models import ENDS, LORA, Size


class Product(NamedTuple):
    """`batch` products of (rows, inner) with (inner, columns)."""

    batch: int
    rows: int
    inner: int
    columns: int

    @property
    def flop(self) -> int:
        return 2 * self.batch * self.rows * self.inner * self.columns


def completion_lengths(size: Size, form: str, episodes: int) -> list[int]:
    """Tokens of the completions of an update: all of them whole, or the quantiles of the geometric distribution."""
    if form == "fixed":
        return [size.completion] * episodes
    survives = [1 - (i + 0.5) / episodes for i in range(episodes)]
    return [min(size.completion, math.ceil(math.log(s) / math.log(1 - ENDS))) for s in survives]


def products(size: Size, lengths: list[int], accumulate: int = 2, epochs: int = 4) -> Counter[Product]:
    """How often each product is taken in an update of `len(lengths)` episodes of `lengths` completion tokens."""
    count: Counter[Product] = Counter()
    episodes = len(lengths)
    tokens = (episodes * size.prompt + sum(lengths)) // accumulate  # of one micro-batch
    words = sum(lengths) // accumulate  # its tokens with logits
    context = round(size.prompt + sum(lengths) / episodes)
    heads = size.heads * episodes // accumulate

    # 1. Decoding: the prompts at once, then a token of every completion that goes on
    _linears(count, size, episodes * size.prompt)
    _attention(count, size, size.heads * episodes, size.prompt, size.prompt)
    for t in range(max(lengths)):
        alive = sum(length > t for length in lengths)
        count[Product(1, alive, size.hidden, size.vocabulary)] += 1
        if t:  # the first token comes from the prompts' pass
            _linears(count, size, alive)
            _attention(count, size, size.heads * alive, 1, context)

    # 2. Passes without gradient; policy and reference have logits
    _linears(count, size, tokens, 4 * accumulate)
    _attention(count, size, heads, context, context, 4 * accumulate)
    count[Product(1, words, size.hidden, size.vocabulary)] += 2 * accumulate

    # 3. Training: two trunks, and the policy's logits
    steps = epochs * accumulate
    _linears(count, size, tokens, 2 * steps)
    _linears(count, size, tokens, 2 * steps, backward=True)
    _attention(count, size, heads, context, context, 3 * 2 * steps)  # forward, and two gradients for each product
    _lora(count, size, tokens, 2 * steps)
    count[Product(1, words, size.hidden, size.vocabulary)] += steps
    count[Product(1, words, size.vocabulary, size.hidden)] += steps
    return count


def _layers(size: Size) -> list[tuple[int, int, int]]:
    """(inputs, outputs, how many) of the linear layers of one block."""
    narrow = size.hidden * size.kv_heads // size.heads
    return [
        (size.hidden, size.hidden, 2),  # query, output
        (size.hidden, narrow, 2),  # key, value
        (size.hidden, size.intermediate, 2),  # gate, up
        (size.intermediate, size.hidden, 1),  # down
    ]


def _linears(count: Counter, size: Size, rows: int, times: int = 1, backward: bool = False) -> None:
    for inputs, outputs, many in _layers(size):
        shape = (outputs, inputs) if backward else (inputs, outputs)
        count[Product(1, rows, *shape)] += size.layers * many * times


def _attention(count: Counter, size: Size, heads: int, queries: int, keys: int, times: int = 1) -> None:
    width = size.hidden // size.heads
    count[Product(heads, queries, width, keys)] += size.layers * times
    count[Product(heads, queries, keys, width)] += size.layers * times


def _lora(count: Counter, size: Size, rows: int, times: int) -> None:
    """y = x A B: two products forward; backward one for each of x, A, B and xA."""
    rank = LORA["r"]
    for inputs, outputs, many in _layers(size):
        for product in (
            Product(1, rows, inputs, rank),  # xA
            Product(1, rows, rank, outputs),  # (xA)B
            Product(1, rank, rows, outputs),  # gradient of B
            Product(1, rows, outputs, rank),  # gradient of xA
            Product(1, inputs, rows, rank),  # gradient of A
            Product(1, rows, rank, inputs),  # gradient of x
        ):
            count[product] += size.layers * many * times


def seconds(product: Product, dtype: torch.dtype, device: str = "cpu", least: float = 0.03) -> float:
    """Measured time of one such product: the median of at least five, over at least `least` seconds."""
    batch, rows, inner, columns = product
    a = torch.randn(batch, rows, inner, device=device, dtype=dtype)
    b = torch.randn(batch, inner, columns, device=device, dtype=dtype)
    a, b, multiply = (a[0], b[0], torch.mm) if batch == 1 else (a, b, torch.bmm)
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    times, started = [], time.perf_counter()
    while len(times) < 6 or time.perf_counter() - started < least:
        wait()
        start = time.perf_counter()
        multiply(a, b)
        wait()
        times.append(time.perf_counter() - start)
    return sorted(times[1:])[(len(times) - 1) // 2]


def measure(
    size: Size, form: str, dtype: torch.dtype, episodes: int = 32, accumulate: int = 2, epochs: int = 4, device="cpu"
) -> dict[str, float]:
    """Seconds of an update's products, their number of operations, and the rate that follows."""
    count = products(size, completion_lengths(size, form, episodes), accumulate, epochs)
    total = sum(seconds(product, dtype, device) * times for product, times in count.items())
    gflop = sum(product.flop * times for product, times in count.items()) / 1e9
    return {"seconds": total, "gflop": gflop, "gflop_per_second": gflop / total}


def main() -> None:
    from tests.tools.bench import measure as command
    from tests.tools.bench.models import SIZES

    args = command.arguments(__doc__)
    command.use_threads(args.threads)
    episodes = args.batch * args.accumulate
    dtype = getattr(torch, args.dtype)
    found = measure(SIZES[args.size], args.form, dtype, episodes, args.accumulate, args.epochs, args.device)
    command.tell(found | {"args": vars(args)})


if __name__ == "__main__":
    main()
