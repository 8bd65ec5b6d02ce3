"""A clerk who knows the shop and is careless: the games that the base model and SFT learn from.

With no slips the visit is won. Each slip is drawn for itself: asking for what a buy would tell, a wrong count, a thing
that nobody ordered, forgetting a thing, and giving up or insisting where there is too little.
"""

import random
from collections.abc import Sequence
from typing import Any

from .game import GOODS, MOST, Shop

Messages = list[dict[str, Any]]
DONE = "That is all."
SLIPS = {"ask": 0.2, "miscount": 0.1, "stray": 0.1, "forget": 0.1, "give_up": 0.65, "insist": 0.15}
NONE = dict.fromkeys(SLIPS, 0.0)


def play(prompt: Messages, order: Sequence[str], seed: int, rng: random.Random, slips: dict[str, float]) -> Messages:
    """A whole visit as messages. `slips`: how likely each is, where it is possible."""
    shop, messages = Shop(), list(prompt)
    shop.reset(order=order, seed=seed)

    def call(name: str, **arguments: Any) -> str:
        said = getattr(shop, name)(**arguments)
        function = {"name": name, "arguments": arguments}
        messages.append(
            {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": function}]}
        )
        messages.append({"role": "tool", "name": name, "content": said})
        return said

    def slip(kind: str) -> bool:
        return rng.random() < slips[kind]

    for line in order:
        count, item = int(line.split()[0]), line.split()[1]
        if slip("forget"):
            continue
        if slip("stray"):
            call("buy", item=rng.choice(GOODS), count=rng.randint(1, MOST))
        if slip("ask"):
            call("ask", item=item)
        if slip("miscount"):
            count = rng.randint(1, MOST)
        said = call("buy", item=item, count=count)
        while said.startswith("only"):
            if slip("give_up"):
                break
            said = call("buy", item=item, count=count if slip("insist") else int(said.split()[1]))
    messages.append({"role": "assistant", "content": DONE})
    return messages
