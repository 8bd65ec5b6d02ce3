"""Which of the sampled tokens completes which character, and payments at that token."""

import functools
import math
import os
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol, TypeGuard

from .text import Texts, text_of

__all__ = ["pay", "pays_tokens", "token_ends"]

TokenIds = Sequence[Sequence[int]]  # what was sampled: B rows of any lengths, without padding
TokenEnds = Sequence[Sequence[int] | None]  # what `token_ends` gives

WINDOW = 16  # tokens decoded again with each new one
INCOMPLETE = "\ufffd"  # what decoders show for a character that is not complete, or bytes that are none


def token_ends(completion_ids: TokenIds, completions: Texts, tokenizer: Any) -> list[list[int] | None]:
    """For each sampled token, how many characters of the completion's text are complete with it.

        ids of "the c", "at", "</s>"  ->  [5, 7, 7]

    The ids are those that were sampled; nothing is tokenized again. A character counts with the token that brings its
    last byte. Special tokens, which the text leaves out, add nothing. Bytes that are no character (U+FFFD in the text)
    count with the first whole character after them.

    Args:
        completion_ids: B lists of sampled ids, without padding.
        completions: B texts, or lists of messages.
        tokenizer: what decoded the ids, with `skip_special_tokens=True`: of transformers, slow or fast, or tokenizers.

    Returns:
        B lists as long as the ids, never falling, the last number being the length of the text. None for a row whose
        text is not what the ids decode to (a parsed answer, tool results in between).
    """
    # Not tokenizers' DecodeStream: where a token ends inside a character, it holds back the whole ones before that.
    decode = functools.partial(tokenizer.decode, skip_special_tokens=True)
    rows = zip(completion_ids, completions, strict=True)
    return [_row_ends([int(i) for i in ids], text_of(completion), decode) for ids, completion in rows]


class PaysTokens(Protocol):
    """A reward that knows which token earned what (see `rewards.Reward`)."""

    def __call__(self, prompts: Texts, completions: Texts, **columns: Any) -> list[float | None]: ...

    def token_rewards(
        self, prompts: Texts, completions: Texts, completion_ids: TokenIds, token_ends: TokenEnds, **columns: Any
    ) -> list[list[float] | None]: ...


def knows_tokens(reward: object) -> TypeGuard[PaysTokens]:
    """Whether `reward` can say what each token earned."""
    return callable(getattr(reward, "token_rewards", None))


def pays_tokens(reward: object) -> TypeGuard[PaysTokens]:
    """Whether `reward` pays token by token: it has `token_rewards`, and `instant`, where it has that, is true."""
    return knows_tokens(reward) and bool(getattr(reward, "instant", True))


def pay(
    score: float | None, payments: Iterable[tuple[int, float]], num_tokens: int, ends: Sequence[int] | None
) -> list[float] | None:
    """`score` spread over `num_tokens` tokens.

    Each payment (characters, amount) goes to the token that completes so many characters; what they leave of the
    score, all of it where `ends` is None, to the last token. The sum is the score. None where there is no score.
    """
    if score is None:
        return None
    rewards = [0.0] * num_tokens
    if ends and num_tokens:
        for characters, amount in payments:
            rewards[bisect_left(ends, characters)] += amount
    return settle(rewards, score)


def settle(rewards: list[float], score: float) -> list[float]:
    """`rewards` with what is missing to the sum `score` paid at the last token; in place."""
    rest = score - math.fsum(rewards)
    if rewards and abs(rest) > 1e-12:  # below that it is the rounding of the sum
        rewards[-1] += rest
    return rewards


def _row_ends(ids: list[int], text: str, decode: Callable[[list[int]], str]) -> list[int] | None:
    if decode(ids) != text:
        return None
    return _align(ids, text, decode, WINDOW) or _align(ids, text, decode, len(ids))


def _align(ids: list[int], text: str, decode: Callable[[list[int]], str], window: int) -> list[int] | None:
    """`token_ends` of one row. None if the window lost its place, which it cannot where it holds all ids.

    The tokens from `start` on decode to the text from `base` on. A prefix may decode to something that the text does
    not begin with ("do n" of "don't"); then the longest common prefix counts.
    """
    ends: list[int] = []
    start = base = done = 0
    piece = ""
    for t in range(len(ids)):
        piece = decode(ids[start : t + 1])
        done = max(done, base + _common(piece.rstrip(INCOMPLETE), text, base))
        ends.append(done)
        if t + 1 - start > window:
            later = t + 1 - window // 2
            tail = decode(ids[later : t + 1])
            if tail and piece.endswith(tail):  # not so where a word piece or half a character would come first
                start, base, piece = later, base + len(piece) - len(tail), tail
    if text[base:] != piece:
        return None
    return ends[:-1] + [len(text)] if ends else ends


def _common(piece: str, text: str, base: int) -> int:
    """How many first characters `piece` has in common with text[base:]."""
    if text.startswith(piece, base):
        return len(piece)
    return len(os.path.commonprefix([piece, text[base : base + len(piece)]]))
