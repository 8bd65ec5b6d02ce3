"""Asking the reward functions about one rollout: a score for each completion, or a reward for each token."""

import math
from collections.abc import Callable, Sequence
from functools import cached_property

import torch
from torch import Tensor, nn

from rewards import pays_tokens, token_ends
from rewards.asking import ask, ask_async, is_async


class Scoring:
    """Stands between TRL's loop over reward functions and the functions, for one rollout of one process.

    Args:
        rewards, names: the reward functions and how they are logged.
        tokenizer: of the policy; rewards that pay per token learn from it which token completes which character.
        completions, completion_ids: texts (or messages) and sampled ids, B of each.
    """

    def __init__(self, rewards: Sequence[Callable], names: Sequence[str], tokenizer, completions, completion_ids):
        self._tokenizer, self._completions, self._completion_ids = tokenizer, completions, completion_ids
        self._paid: dict[int, list[list[float] | None]] = {}  # by each reward that pays per token
        self.functions = [
            reward if isinstance(reward, nn.Module) else self._asked(i, reward, name)
            for i, (reward, name) in enumerate(zip(rewards, names, strict=True))
        ]

    def instant(self, weights: Tensor, width: int) -> Tensor | None:
        """Weighted sum of what was paid at each token, (B, width), score units; None when no reward pays per token."""
        if not self._paid:
            return None
        total = torch.zeros(len(self._completion_ids), width, device=weights.device)
        for i, rows in self._paid.items():
            for row, tokens in enumerate(rows):
                if tokens:
                    total[row, : len(tokens)] += weights[i] * torch.tensor(tokens, device=weights.device)
        return total

    @cached_property
    def _ends(self) -> list[list[int] | None]:
        return token_ends(self._completion_ids, self._completions, self._tokenizer)

    def _asked(self, i: int, reward: Callable, name: str) -> Callable:
        """`reward` as TRL calls it; one that pays per token is asked for its tokens, and its score is their sum."""
        dense = pays_tokens(reward)
        function = reward.token_rewards if dense else reward

        def more(columns):
            return columns | {"token_ends": self._ends} if dense else columns

        def scores(answers):
            if not dense:
                return answers
            self._paid[i] = answers
            return [None if tokens is None else math.fsum(tokens) for tokens in answers]

        if is_async(function):

            async def asked(prompts, completions, **columns):
                return scores(await ask_async(function, prompts, completions, more(columns), name))
        else:

            def asked(prompts, completions, **columns):
                return scores(ask(function, prompts, completions, more(columns), name))

        return asked
