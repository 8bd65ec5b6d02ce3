"""The shop: an environment in TRL's form (docs/turns.md). A customer's order, a counter, and a stock nobody knows.

    Order: 2 rope, 1 lamp.
    buy(rope, 2) -> only 1 left        buy(rope, 1) -> sold 1        buy(lamp, 1) -> sold 1        That is all.

What can be had of the order is to be bought and nothing else, in as few calls as it takes. A buy of more than there is
sells nothing and says how much there is, so that the next call can do better.
"""

import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

GOODS = ("rope", "lamp", "tea", "salt", "nails", "soap", "flour", "oil", "cloth", "wire", "beans", "paint")
MOST = 4  # pieces of a thing in an order
CALL = 0.02  # what a call costs, as a share of the order


class Shop:
    """One visit. Public methods but `reset` and `get_reward` are the tools of the player."""

    def __init__(self) -> None:
        self._order: dict[str, int] = {}
        self._stock: dict[str, int] = {}
        self._bought: Counter[str] = Counter()
        self._calls = 0

    def reset(self, order: Sequence[str], seed: int = 0, **row: Any) -> None:
        """A new visit.

        Args:
            order: what is wanted, such as ["2 rope", "1 lamp"]. seed: of the stock. row: further columns of the data.
        """
        pairs = [line.split() for line in order]
        self._order = {item: int(count) for count, item in pairs}
        self._stock = draw_stock(self._order, random.Random(f"stock {seed}"))
        self._bought, self._calls = Counter(), 0

    def ask(self, item: str) -> str:
        """Asks how much there is of a thing.

        Args:
            item: The thing.
        """
        self._calls += 1
        return f"{self._stock[item]} left" if item in self._stock else "no such thing"

    def buy(self, item: str, count: int) -> str:
        """Buys some pieces of a thing, if there are that many.

        Args:
            item: The thing.
            count: How many pieces.
        """
        self._calls += 1
        there = self._stock.get(item)
        if there is None or count < 1:
            return "no such thing"
        if there < count:
            return f"only {there} left" if there else "sold out"
        self._stock[item] -= count
        self._bought[item] += count
        return f"sold {count}"

    def get_reward(self) -> float:
        """What the visit has been worth so far: the share of the order that was bought, less what was not ordered
        (each piece as much as one that was) and the price of the calls."""
        wanted, unwanted = self._pieces()
        return (wanted - unwanted) / max(self._can_be_had(), 1) - CALL * self._calls

    def _pieces(self) -> tuple[int, int]:
        """Pieces bought that were ordered, and pieces that were not."""
        wanted = sum(min(count, self._bought[item]) for item, count in self._order.items())
        return wanted, self._bought.total() - wanted

    def _can_be_had(self) -> int:
        return sum(min(count, self._stock[item] + self._bought[item]) for item, count in self._order.items())

    def _measures(self) -> dict[str, float]:
        wanted, unwanted = self._pieces()
        possible = self._can_be_had()
        return {
            "won": float(wanted == possible and not unwanted),
            "filled": wanted / possible if possible else 1.0,
            "unwanted": float(unwanted),
            "calls": float(self._calls),
        }


def draw_stock(order: dict[str, int], rng: random.Random) -> dict[str, int]:
    """How much there is of everything: of a thing that is ordered too little in two of five cases, or nothing."""
    stock = {item: rng.randint(0, 2 * MOST) for item in GOODS}
    for item, count in order.items():
        stock[item] = rng.randint(0, count - 1) if rng.random() < 0.4 else rng.randint(count, 2 * MOST)
    return stock
