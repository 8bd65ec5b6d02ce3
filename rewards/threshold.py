"""A score as met or not met."""

from itertools import accumulate, pairwise
from typing import Any

from .asking import ask, is_async
from .base import RewardFunction, number
from .mixture import Shaped, Wrapper, every_in, token_rewards_of
from .text import Texts
from .tokens import TokenEnds, TokenIds, pays_tokens


class Threshold(Wrapper):
    """1 where a reward gives `at_least` so much, else 0.

    `build_rewards` makes it from the option `at_least`. It pays per token where `reward` does: 1 at the token that
    brings the score to the threshold, -1 at one that takes it below again. Payments at tokens add up with rounding,
    so in them the last nine digits do not count.

    Args:
        reward: any reward or function; not an async one.
        at_least: in units of its score.
        log_name: name in the logs.
    """

    for_training = False  # 1 and 0 are units of their own

    def __init__(self, reward: RewardFunction, at_least: float, log_name: str | None = None):
        super().__init__(reward, log_name)
        if is_async(reward):
            raise self.error("at_least is not for async functions; do it inside the function.")
        if any(isinstance(part, Shaped) and part.stats for part in every_in(reward)):
            raise self.error("at_least is in units of the score, and normalize leaves none: leave one of them out.")
        self.at_least = number(at_least, "at_least", self.__name__)

    def __call__(self, prompts: Texts, completions: Texts, **columns: Any) -> list[float | None]:
        scores = ask(self.raw, prompts, completions, columns)
        return [None if score is None else float(score >= self.at_least) for score in scores]

    @property
    def instant(self) -> bool:  # type: ignore[override]  # not to be set: it follows what is inside
        return pays_tokens(self.raw)

    def token_rewards(
        self, prompts: Texts, completions: Texts, completion_ids: TokenIds, token_ends: TokenEnds, **columns: Any
    ) -> list[list[float] | None]:
        """See `Threshold`; (B, T) ragged. Before its first token a completion is worth 0."""
        paid = token_rewards_of(self.raw, prompts, completions, completion_ids, token_ends, **columns)
        return [row and [now - before for before, now in pairwise(self._met_along(row))] for row in paid]

    def _met_along(self, row: list[float]) -> list[float]:
        """1 or 0 before the first token and behind each one."""
        return [0.0, *(float(score > self.at_least - 1e-9) for score in accumulate(row))]
