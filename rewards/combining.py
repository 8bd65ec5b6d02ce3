"""Rewards that depend on each other: some that count only where another one is met, and products.

`build.py` makes them from YAML, as `gate` and `product`; sums are in `mixture.py`, a threshold in `threshold.py`.
"""

from collections.abc import Iterable
from typing import Any

from .asking import ask, is_async, some_rows
from .base import RewardError, RewardFunction, WeightedReward, log_name_of, number
from .mixture import Combination, Shaped, WeightedSum, every_in
from .text import Texts
from .tokens import TokenEnds, TokenIds, pay, pays_tokens


class Gated(WeightedSum):
    """The weighted sum of `parts` where a condition is met, elsewhere `otherwise`; see `rewards.build.Gate`.

    A gate is met or not by the whole completion, and so are the tokens before it shows.
    """

    def __init__(self, condition: WeightedReward, parts: Iterable[WeightedReward], otherwise: float, log_name: str):
        super().__init__(_checked(parts, log_name), log_name)
        [(self.condition, weight)] = _checked([condition], log_name)
        self.otherwise = number(otherwise, "otherwise", log_name)
        if weight != 1:
            raise self.error("a condition has no weight: it is met or not.")

    @property
    def inside(self) -> list[RewardFunction]:
        """Condition and rewards."""
        return [self.condition, *super().inside]

    def __call__(self, prompts: Texts, completions: Texts, **columns: Any) -> list[float | None]:
        met = self._met(prompts, completions, columns)
        self._log(columns.get("log_metric"), "met", met)
        scores = [None if each is None else self.otherwise for each in met]
        if rows := [row for row, each in enumerate(met) if each]:
            found = super().__call__(**some_rows(rows, prompts, completions, columns))
            for row, score in zip(rows, found, strict=True):
                scores[row] = score
        return scores

    def token_rewards(
        self, prompts: Texts, completions: Texts, completion_ids: TokenIds, token_ends: TokenEnds, **columns: Any
    ) -> list[list[float] | None]:
        """(B, T) ragged: where the condition is met, what the parts pay at each token."""
        columns["completion_ids"] = completion_ids
        met = self._met(prompts, completions, columns)
        paid = [
            pay(None if each is None else self.otherwise, (), len(ids), None)
            for each, ids in zip(met, completion_ids, strict=True)
        ]
        if rows := [row for row, each in enumerate(met) if each]:
            question = some_rows(rows, prompts, completions, columns | {"token_ends": token_ends})
            for row, tokens in zip(rows, super().token_rewards(**question), strict=True):
                paid[row] = tokens
        return paid

    def _met(self, prompts: Texts, completions: Texts, columns: dict[str, Any]) -> list[bool | None]:
        scores = ask(self.condition, prompts, completions, columns)
        return [None if score is None else score >= 1 for score in scores]


class Multiplied(Combination):
    """The product of the scores of `parts`; see `rewards.build.Product`."""

    def __init__(self, parts: Iterable[WeightedReward], log_name: str):
        super().__init__(_checked(parts, log_name), log_name)
        for reward, weight in self.parts:
            if weight != 1:
                raise self.error(f"'{log_name_of(reward)}' has the weight {weight:g}; set weight on the product.")
            if pays_tokens(reward):
                raise self.error(f"'{log_name_of(reward)}' is instant; set instant on the product.")

    def __call__(self, prompts: Texts, completions: Texts, **columns: Any) -> list[float | None]:
        totals: list[float | None] = [1.0] * len(completions)
        for reward, _ in self.parts:
            scores = ask(reward, prompts, completions, columns)
            self._log(columns.get("log_metric"), log_name_of(reward), scores)
            for row, score in enumerate(scores):
                total = totals[row]
                totals[row] = None if score is None or total is None else total * self._factor(score, reward)
        return totals

    def _factor(self, score: float, reward: RewardFunction) -> float:
        if score < 0:
            raise self.error(
                f"'{log_name_of(reward)}' scored {score:g}, and with a negative factor a worse text would be worth "
                "more; give it a clip from 0 up, or use a mixture."
            )
        return score


def _checked(parts: Iterable[WeightedReward], log_name: str) -> list[WeightedReward]:
    """`parts`, none of which is async or normalized."""
    parts = list(parts)
    for reward, _ in parts:
        who = f"Reward '{log_name}': '{log_name_of(reward)}'"
        if is_async(reward):
            raise RewardError(f"{who} is async; async functions stand in the list of rewards itself.")
        if any(isinstance(part, Shaped) and part.stats for part in every_in(reward)):
            raise RewardError(f"{who} has normalize: running, so 0 and 1 mean nothing; set it on '{log_name}' itself.")
    return parts
