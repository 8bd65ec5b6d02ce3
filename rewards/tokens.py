"""What sampled tokens say where they stand, which of them completes which character, and payments at that token."""

import functools
import math
import os
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol, TypeGuard

from .text import Texts, text_of

__all__ = ["pay", "pays_tokens", "texts_after", "token_ends"]

TokenIds = Sequence[Sequence[int]]  # what was sampled: B rows of any lengths, without padding
TokenEnds = Sequence[Sequence[int] | None]  # what `token_ends` gives

WINDOW = 16  # tokens decoded again with each new one
INCOMPLETE = "\ufffd"  # what decoders show for a character that is not complete, or bytes that are none


def texts_after(prompt_ids: TokenIds, completion_ids: TokenIds, tokenizer: Any) -> list[str]:
    """The texts of completions where they stand, behind their prompts; special tokens are left out.

        ids of "the cat =>" and of " yes"  ->  " yes", where the tokenizer of Llama 2 alone decodes them to "yes"

    Decoders of SentencePiece's kind take the space off the first word of whatever they are given. So a completion is
    decoded behind another token. Only where the tokenizer itself writes that space, at the beginning of a text
    and, with some, behind a token such as <|assistant|>, is it none of the completion's.

    Args:
        prompt_ids, completion_ids: B lists each, without padding.
        tokenizer: of transformers, slow or fast.
    """
    decode = functools.partial(tokenizer.decode, skip_special_tokens=True)
    writes_a_space = functools.cache(functools.partial(_writes_a_space_behind, tokenizer))
    special, texts = set(tokenizer.all_special_ids), []
    for prompt, completion in zip(prompt_ids, completion_ids, strict=True):
        before, ids = ([int(i) for i in row] for row in (prompt, completion))
        opens = special.issuperset(before) or writes_a_space(before[-1])
        texts.append((decode if opens else _behind_itself(ids, decode))(ids))
    return texts


def token_ends(completion_ids: TokenIds, completions: Texts, tokenizer: Any) -> list[list[int] | None]:
    """For each sampled token, how many characters of the completion's text are complete with it.

        ids of "the c", "at", "</s>"  ->  [5, 7, 7]

    The ids are those that were sampled; nothing is tokenized again. A character counts with the token that brings its
    last byte. Special tokens, which the text leaves out, add nothing. Bytes that are no character (U+FFFD in the text)
    count with the first whole character after them.

    Args:
        completion_ids: B lists of sampled ids, without padding.
        completions: B texts, or lists of messages: what the ids decode to with `skip_special_tokens=True`, alone or
            behind a prompt (`texts_after`), with the last token or, if that is an end token, without.
        tokenizer: what decoded the ids: of transformers, slow or fast, or tokenizers.

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
    for said in (ids, ids[:-1]):  # a text may lack its end token
        for say in (decode, _behind_itself(said, decode)):
            if say(said) == text:
                ends = _align(said, text, say, WINDOW) or _align(said, text, say, len(said))
                return ends and ends + [len(text)] * (len(ids) - len(said))
    return None


def _behind_itself(ids: list[int], decode: Callable[[list[int]], str]) -> Callable[[list[int]], str]:
    """`decode` for ids that stand behind others: behind which is all the same, so it is one of `ids`, twice."""
    before = next((i for i in ids if decode([i, i]) and INCOMPLETE not in decode([i, i])), None)
    if before is None:
        return decode
    head = decode([before])

    def say(these: list[int]) -> str:
        whole = decode([before, *these])
        # otherwise the two have grown together: bytes of one character, or signs that a decoder moves up to a word
        return whole[len(head) :] if whole.startswith(head) else decode(these)

    return say


def _writes_a_space_behind(tokenizer: Any, token: int) -> bool:
    """Whether `tokenizer` reads "<token>a" as if there were a space between the two."""
    if token not in tokenizer.added_tokens_decoder:
        return False
    text = tokenizer.convert_ids_to_tokens(token)
    read_back: str = tokenizer.decode(tokenizer(f"{text}a", add_special_tokens=False)["input_ids"])
    return read_back.startswith(f"{text} ")


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
