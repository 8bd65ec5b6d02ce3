"""Asking the reward functions about one rollout: a score for each completion, or a reward for each token."""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property, partial

import torch
from torch import Tensor, nn

from pipeline.errors import UserError
from rewards import pays_tokens, token_ends, token_rewards_of
from rewards.asking import ask, ask_async, is_async
from rewards.base import bound
from rewards.turns import TURNS, Turn


class Scoring:
    """Stands between TRL's loop over reward functions and the functions, for one rollout of one process.

    Args:
        rewards, names: the reward functions and how they are logged.
        tokenizer: of the policy; rewards that pay per token learn from it which token completes which character.
        completions, completion_ids: texts (or messages) and sampled ids, B of each.
        turns: the turns of each completion, for rewards that are paid by turns; None: one turn each.
        around: context in which each function is asked.
    """

    def __init__(
        self,
        rewards: Sequence[Callable],
        names: Sequence[str],
        tokenizer,
        completions,
        completion_ids,
        turns: Sequence[Sequence[Turn]] | None = None,
        around: Callable[[], AbstractContextManager] = nullcontext,
    ):
        self._turns, self._around = turns, around
        self._tokenizer, self._completions, self._completion_ids = tokenizer, completions, completion_ids
        self._names = names
        self._paid: dict[int, list[list[float] | None]] = {}  # by each reward that pays per token
        self.functions = [
            reward if isinstance(reward, nn.Module) else self._wrapped(i, bound(reward), name)
            for i, (reward, name) in enumerate(zip(rewards, names, strict=True))
        ]

    def ask(self, question: dict) -> Tensor:
        """Scores of every completion by every reward, (B, F), NaN where one has none; outside of TRL's loop.

        Args: question: `prompts`, `completions` and the columns, lists of B each.

        Raises:
            UserError: a score is infinite.
        """
        columns = []
        for function in self.functions:
            scores = function(completion_ids=self._completion_ids, **question)
            scores = asyncio.run(scores) if is_async(function) else scores
            columns.append(torch.tensor([float("nan") if s is None else float(s) for s in scores]))
        return check_finite(torch.stack(columns, dim=1), self._names)

    def instant(self, factors: Tensor, width: int) -> Tensor | None:
        """Sum of what was paid at each token, (B, width), score units; None when no reward pays per token.

        Args: factors: by which the payments of each reward are multiplied, (F,); its weight, mostly.
        """
        each = self.instant_of_each(factors, width)
        return torch.stack(list(each.values())).sum(dim=0) if each else None

    def instant_of_each(self, factors: Tensor, width: int) -> dict[int, Tensor]:
        """The same for each reward that pays per token, by its place in the list."""
        found = {}
        for i, rows in self._paid.items():
            found[i] = torch.zeros(len(self._completion_ids), width, device=factors.device)
            for row, tokens in enumerate(rows):
                if tokens:
                    found[i][row, : len(tokens)] = torch.tensor(tokens, device=factors.device)
            found[i] *= factors[i]
        return found

    @cached_property
    def _ends(self) -> list[list[int] | None]:
        return token_ends(self._completion_ids, self._completions, self._tokenizer)

    def _wrapped(self, i: int, reward: Callable, name: str) -> Callable:
        """`reward` as TRL calls it. One that pays per token is then asked for that too, and it is kept."""

        def pay(prompts, completions, columns):
            if pays_tokens(reward):
                columns = columns | {"token_ends": self._ends} | ({TURNS: self._turns} if self._turns else {})
                paying = partial(token_rewards_of, reward)
                self._paid[i] = ask(paying, prompts, completions, columns, name, tokens=True)

        if is_async(reward):

            async def scored(prompts, completions, **columns):
                with self._around():
                    scores = await ask_async(reward, prompts, completions, columns, name)
                    pay(prompts, completions, columns)
                return scores
        else:

            def scored(prompts, completions, **columns):
                with self._around():
                    scores = ask(reward, prompts, completions, columns, name)
                    pay(prompts, completions, columns)
                return scores

        return scored


def check_finite(scores_per_reward: Tensor, names: Sequence[str]) -> Tensor:
    """The scores (B, F) as they are; raises `UserError` when one is infinite. NaN stands for a missing one."""
    for name, column in zip(names, scores_per_reward.T, strict=True):
        if torch.isinf(column).any():
            raise UserError(f"The reward {name} returned an infinite score; clip it, or the weights are lost.")
    return scores_per_reward


def check_scored(scores_per_reward: Tensor) -> None:
    """Raises `UserError` when no reward scored any completion: scores (B, F), NaN for a missing one."""
    if torch.isnan(scores_per_reward).all():
        raise UserError(
            "No reward scored any completion of this rollout: every reward returned None or NaN for every row. "
            "Check that the columns that the rewards read are filled."
        )


def weigh(scores_per_reward: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted sum of what the reward functions returned. A reward that has no score (NaN) is left out.

    Args: scores_per_reward (B, F), weights (F,). Returns: scores (B,), scorable (B,) = some reward has a score.
    """
    scores = (scores_per_reward * weights).nansum(dim=1)
    return scores, ~torch.isnan(scores_per_reward).all(dim=1)
