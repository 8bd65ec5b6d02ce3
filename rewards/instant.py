"""Any sequence score, paid out at the tokens that earn it."""

import copy
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from .asking import is_async
from .base import RewardFunction, WeightedReward, choice
from .mixture import Shaped, WeightedSum, Wrapper, silent, token_rewards_of
from .text import Text, Texts, text_of, word_ends
from .tokens import PaysTokens, TokenEnds, TokenIds, knows_tokens, settle
from .turns import Environment, turn_rewards
from .values import read

FORMS = ("auto", "words", "tokens", "turns")
PREFIXES_A_CALL = 1024  # bounds the memory that the repeated columns take


class Prefix(NamedTuple):
    """The beginning of a completion, with everything that its tokens up to `token` complete."""

    row: int
    token: int
    text: str


class Instant(Wrapper):
    """A reward at every token ("instant"), where the plain reward pays its whole score at the last one.

        r_t = potential(y_1..t) - potential(y_1..t-1),   potential of nothing = 0
        r_T = score(y) - potential(y_1..T-1)             at the last token T

    so the sum over the tokens is the score. The potential of an unfinished completion is its score, unless the reward
    knows better (`Reward.potential`; BLEU does). Where a prefix has no score, nothing changes at it.

        {name: bleu, instant: true}    {name: "myrewards:polite", instant: words}

    Args:
        reward: any reward or function with the common signature; not an async one.
        at: "words": at the tokens that complete a word (`rewards.text.word_ends`) the text up to the end of that word
            is scored. A token that completes several words is paid for all of them, and the beginning of a further
            word in it counts with the token that completes that one. "tokens": at every token that adds text.
            "turns": at the last token of each turn of a game (`rewards.turns`).
            "auto": the reward's own `token_rewards` where it has them (a keyword pays at the token that completes it),
            else "words". Wrapped mixtures and normalized or clipped rewards hand `at` on to what they hold.
        log_name: name in the logs (default: the reward's own).

    Called as a plain reward it gives the plain score.

    It costs one scoring of the text for each word, or token, of each completion: nothing for a keyword, for a learned
    reward as many passes of its model as there are words, over texts half as long on average. A function gets up to
    1024 prefixes in one call, with the row's columns repeated and `completion_ids` cut like the text.

    With gamma = 1 this is potential-based shaping: every completion's return is its score as before, so the best
    policy stays the same. With gamma < 1 it does not. Whether a word is complete shows in the character after it, one
    token later; the payment goes to the token that wrote it.

    Source: Ng, Harada, Russell 1999, "Policy Invariance Under Reward Transformations", theorem 1; for text, with
    differences of BLEU: Bahdanau et al. 2017, "An Actor-Critic Algorithm for Sequence Prediction".
    """

    instant = True

    def __init__(self, reward: RewardFunction, at: str = "auto", log_name: str | None = None):
        super().__init__(reward, log_name)
        self.at = choice(at, "at", FORMS, self.__name__)
        if is_async(reward):
            raise self.error("instant is not for async functions; give a plain function.")
        _pass_on(reward, at)  # finds such a function in a mixture now, not in the middle of a run

    def __call__(self, prompts: Texts, completions: Texts, **columns: Any) -> list[float | None]:
        return self.raw(prompts=prompts, completions=completions, **columns)

    def token_rewards(
        self, prompts: Texts, completions: Texts, completion_ids: TokenIds, token_ends: TokenEnds, **columns: Any
    ) -> list[list[float] | None]:
        """One number for each sampled token, (B, T) ragged; None for a row without a score. See `Instant`."""
        rows: dict[str, Any] = {"prompts": prompts, "completions": completions, "completion_ids": completion_ids}
        rows["token_ends"] = token_ends
        payer = _pass_on(self.raw, self.at)
        if payer is not None:
            return token_rewards_of(payer, **rows, **columns)
        if (self.at == "auto" or isinstance(self.raw, Environment)) and knows_tokens(self.raw):
            return self.raw.token_rewards(**rows, **columns)
        if self.at == "turns":
            del rows["token_ends"]
            return turn_rewards(self.raw, **rows, **silent(columns))
        return self._differences(**rows, columns=silent(columns))

    def _differences(
        self,
        prompts: Texts,
        completions: Texts,
        completion_ids: TokenIds,
        token_ends: TokenEnds,
        columns: dict[str, Any],
    ) -> list[list[float] | None]:
        scores = self.raw(prompts=prompts, completions=completions, completion_ids=completion_ids, **columns)
        scores = self._read(scores, len(completions))
        known = zip(completion_ids, scores, strict=True)
        paid = {row: [0.0] * len(ids) for row, (ids, score) in enumerate(known) if score is not None}
        prefixes = [
            Prefix(row, token, text_of(completions[row])[:characters])
            for row, ends in enumerate(token_ends)
            if ends and row in paid
            for token, characters in self._cuts(text_of(completions[row]), ends)
        ]
        before = dict.fromkeys(paid, 0.0)
        potentials = self._potentials(prefixes, prompts, completions, completion_ids, columns)
        for (row, token, _), potential in zip(prefixes, potentials, strict=True):
            if potential is not None:
                paid[row][token] = potential - before[row]
                before[row] = potential
        return [None if score is None else settle(paid[row], score) for row, score in enumerate(scores)]

    def _read(self, answers: Any, count: int) -> list[float | None]:
        return read(answers, count, f"Reward '{self.__name__}': it returned")

    def _cuts(self, text: str, ends: Sequence[int]) -> list[tuple[int, int]]:
        """(token, characters) of the prefixes to score, the whole text not among them."""
        last = len(ends) - 1
        if self.at == "tokens":
            return [(t, end) for t, end in enumerate(ends[:-1]) if end > (ends[t - 1] if t else 0)]
        cuts = {bisect_left(ends, end): end for end in word_ends(text)}  # of several words in a token the last one
        return [(token, end) for token, end in cuts.items() if token < last]

    def _potentials(
        self,
        prefixes: Sequence[Prefix],
        prompts: Texts,
        completions: Texts,
        completion_ids: TokenIds,
        columns: dict[str, Any],
    ) -> Iterator[float | None]:
        potential: RewardFunction = getattr(self.raw, "potential", self.raw)
        for start in range(0, len(prefixes), PREFIXES_A_CALL):
            batch = prefixes[start : start + PREFIXES_A_CALL]
            answers = potential(
                prompts=[prompts[row] for row, _, _ in batch],
                completions=[_like(completions[row], text) for row, _, text in batch],
                completion_ids=[list(completion_ids[row][: token + 1]) for row, token, _ in batch],
                **{
                    key: [value[row] for row, _, _ in batch] if _is_column(value, len(prompts)) else value
                    for key, value in columns.items()
                },
            )
            yield from self._read(answers, len(batch))


def _pass_on(reward: RewardFunction, at: str) -> PaysTokens | None:
    """What pays in place of `reward`: a wrapper or mixture whose insides are instant; None for any other reward."""
    if isinstance(reward, Instant):
        return reward  # with a form of its own
    if not isinstance(reward, Shaped | WeightedSum):
        return None
    payer = copy.copy(reward)
    if isinstance(payer, Shaped):
        payer.raw = Instant(payer.raw, at)
    else:
        payer.parts = [WeightedReward(Instant(part, at), weight) for part, weight in payer.parts]
    return payer


def _like(completion: Text, text: str) -> Text:
    """`text` in the form of `completion`: a text, or one message of the same role."""
    return text if isinstance(completion, str) else [{**completion[0], "content": text}]


def _is_column(value: Any, rows: int) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str) and len(value) == rows
