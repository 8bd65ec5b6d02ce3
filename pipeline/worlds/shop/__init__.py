"""Shop: a game of several turns, in which the model calls tools and an environment answers. Rows are messages.

    user: Order: 2 rope, 1 lamp.
    assistant: [buy item=rope count=2]
    tool: only 1 left
    assistant: [buy item=rope count=1]
    tool: sold 1
    ...

The environment is `game.Shop`; the stock comes from a seed that a held-out row brings and a training row is given by
the trainer, so that an order is never the same game twice. Texts to learn from are the visits of a careless clerk
(`clerk.py`). The referee plays the calls of a finished game again, in a shop of its own.
"""

import random
from collections.abc import Mapping, Sequence
from typing import Any

from ..base import Document, WorldData, WorldSettings
from ..chat_format import EOS, TOOLS, write_out
from .clerk import SLIPS, play
from .game import GOODS, MOST, Shop

__all__ = ["CHAT_FORMAT", "HIGHER_IS_BETTER", "Shop", "make_data", "pretraining_texts", "referee"]

CHAT_FORMAT = TOOLS
HIGHER_IS_BETTER = {"won": True, "filled": True, "unwanted": False, "calls": False}
THINGS = (2, 3)  # different things in an order


def referee(completion: Sequence[Mapping[str, Any]], row: Mapping[str, Any]) -> dict[str, float]:
    """Of a finished game: `won` (all that could be had of the order and nothing else), `filled` (its share that was
    bought), `unwanted` (pieces that nobody ordered), `calls`.

    Args: completion: the messages behind the prompt. row: of ``prompts_heldout``, with `order` and `seed`.
    """
    shop = Shop()
    shop.reset(order=row["order"], seed=row["seed"])
    answered = [message["role"] for message in completion].count("tool")  # a last call may have had no answer
    calls = [call["function"] for message in completion for call in message.get("tool_calls") or ()]
    for call in calls[:answered]:
        tool = {"ask": shop.ask, "buy": shop.buy}.get(call["name"])
        try:
            if tool is not None:
                tool(**call["arguments"])
        except (TypeError, ValueError):
            continue  # not how the tool is called: the environment did nothing either
    return shop._measures()


def draw_order(rng: random.Random) -> tuple[str, ...]:
    return tuple(f"{rng.randint(1, MOST)} {item}" for item in rng.sample(GOODS, rng.randint(*THINGS)))


def prompt_of(order: Sequence[str]) -> list[dict[str, str]]:
    return [{"role": "user", "content": f"Order: {', '.join(order)}."}]


def _draw_orders(count: int, rng: random.Random, held_out: set[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """`count` orders, none of them held out."""
    found: list[tuple[str, ...]] = []
    while len(found) < count:
        order = draw_order(rng)
        if order not in held_out:
            found.append(order)
    return found


def make_data(settings: WorldSettings) -> WorldData:
    """Rows of the data files (see `pipeline.worlds`). A held-out order, things and counts in this sequence, is in no
    training row."""
    rng = random.Random(f"shop {settings.seed}")
    held_out: set[tuple[str, ...]] = set()
    while len(held_out) < settings.heldout_rows:
        held_out.add(draw_order(rng))
    visits = [(prompt_of(order), order) for order in _draw_orders(settings.sft_rows, rng, held_out)]
    return {
        "prompts_heldout": [
            {"prompt": prompt_of(order), "order": list(order), "seed": rng.getrandbits(32)}
            for order in sorted(held_out)
        ],
        "prompts_train": [
            {"prompt": prompt_of(order), "order": list(order)}
            for order in _draw_orders(settings.prompt_rows, rng, held_out)
        ],
        "sft_train": [{"messages": play(prompt, order, rng.getrandbits(32), rng, SLIPS)} for prompt, order in visits],
    }


def pretraining_texts(settings: WorldSettings, data: WorldData) -> list[Document]:
    """Careless visits in the chat format, none with a held-out order."""
    rng = random.Random(f"shop pretraining {settings.seed}")
    held_out = {tuple(row["order"]) for row in data["prompts_heldout"]}
    orders = _draw_orders(settings.pretraining_texts, rng, held_out)
    # The base model's training puts the last end of text itself
    return [
        ("", write_out(play(prompt_of(order), order, rng.getrandbits(32), rng, SLIPS)).removesuffix(EOS))
        for order in orders
    ]
