"""Where a completion ends, and what it says: for every place that samples.

A completion ends at any of three kinds of token: the tokenizer's end-of-text token, those that the model's generation
settings name, and the one with which the chat template ends an assistant's turn, which SFT on messages teaches.
"""

import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from pipeline.safety.console import say
from rewards import begun_once, texts_after

_SAID = "said7by7nobody"  # what the assistant says where a chat template is looked at: no template writes that itself
_MARK = re.compile(r"[<\[].+[>\]]")  # what no one says: an answer that could end at a full stop would end at its first


class Turn(NamedTuple):
    """How a chat template writes an assistant's turn."""

    before: str  # white space that it puts before the words, as Llama 2's does
    end: int | None  # the token that ends the turn
    behind: str  # what it writes to end the turn


def turn_of(tokenizer) -> Turn | None:
    """How the tokenizer's chat template writes an assistant's turn; None: there is none, or it takes no such turn."""
    for asked, answer, next_turn in _probes() if getattr(tokenizer, "chat_template", None) else ():
        prompt = _written(tokenizer, asked, add_generation_prompt=True)
        before, said_, behind = (_written(tokenizer, [*asked, answer]) or "").partition(_SAID)
        if prompt is None or not said_ or _SAID in behind:
            continue
        before = before.removeprefix(prompt) if before.startswith(prompt) else ""
        end = _end_token(tokenizer, behind)
        if end is None and not behind.strip():  # GLM's turns end where the next one begins
            inner = _written(tokenizer, [*asked, answer, next_turn]) or ""
            end = next(iter(_added(tokenizer, inner.partition(_SAID)[2])), None)
        return Turn("" if before.strip() else before, end, behind)
    return None


def _probes() -> Iterator[tuple[list[dict[str, Any]], dict[str, Any], dict[str, Any]]]:
    """A question, its answer and a further question: some templates want a system's message, or contents in blocks."""
    for system in ([], ["system"]):
        for form in (str, lambda text: [{"type": "text", "text": text}]):
            turns = [{"role": role, "content": form(role[:2])} for role in [*system, "user", "user"]]
            yield turns[:-1], {"role": "assistant", "content": form(_SAID)}, turns[-1]


def _written(tokenizer, turns: list[dict[str, Any]], **options: Any) -> str | None:
    try:
        return tokenizer.apply_chat_template(turns, tokenize=False, **options)
    except Exception:  # a template is a program: it may fail in any way
        return None


def _end_token(tokenizer, behind: str) -> int | None:
    """The token that ends a turn: of the added tokens behind its words the first, or the last of several in one (as
    Cohere's <|END_RESPONSE|><|END_OF_TURN_TOKEN|>); without any, the mark that is a token of the vocabulary."""
    added = _added(tokenizer, behind)
    if not added:
        shown = [
            i for i in ids_of_text(tokenizer, behind) if tokenizer.decode([i]).strip() and i != tokenizer.unk_token_id
        ]
        return shown[0] if len(shown) == 1 and _MARK.fullmatch(behind.strip()) else None
    names = tokenizer.convert_ids_to_tokens(added)
    last = next((k for k in range(1, len(names)) if names[k - 1] + names[k] not in behind), len(names))
    return added[last - 1]


def _added(tokenizer, text: str) -> list[int]:
    no_ends = {tokenizer.unk_token_id, tokenizer.bos_token_id} - {tokenizer.eos_token_id}
    return [i for i in ids_of_text(tokenizer, text) if i in tokenizer.added_tokens_decoder and i not in no_ends]


def ids_of_text(tokenizer, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def stop_token_ids(model, tokenizer) -> list[int]:
    """The tokens that end a completion: those of the model's generation settings, the tokenizer's, the template's."""
    named = _named_by(model)
    named = named if tokenizer.eos_token_id in named else [tokenizer.eos_token_id, *named]
    return list(dict.fromkeys([*named, end_of_turn(tokenizer)]))


def _named_by(model) -> list[int]:
    named = model.generation_config.eos_token_id
    return [] if named is None else [named] if isinstance(named, int) else list(named)


def end_of_turn(tokenizer) -> int:
    """The token that ends an answer in the form of messages: the chat template's, or else the end-of-text token."""
    turn = turn_of(tokenizer)
    return tokenizer.eos_token_id if turn is None or turn.end is None else turn.end


def say_stops(model, tokenizer) -> None:
    """Logs a note when the chat template ends a turn with a token that neither model nor tokenizer names as an end."""
    end = end_of_turn(tokenizer)
    if end not in (tokenizer.eos_token_id, *_named_by(model)):
        say(
            f"note: the chat template ends a turn with {tokenizer.convert_ids_to_tokens(end)}, and the tokenizer's "
            f"end token is {tokenizer.eos_token}: a completion ends at either"
        )


def without_end(tokenizer) -> str | None:
    """What to tell those whose data are messages, where the chat template ends no turn with a token."""
    turn = turn_of(tokenizer)
    if turn is None or turn.end is not None:
        return None
    written = f"writes {turn.behind!r} there" if turn.behind.strip() else "writes nothing there"
    return (
        f"note: the chat template ends an answer with no token of the tokenizer ({written}), so that no model learns "
        f"from it to stop: take a template that ends answers with {tokenizer.eos_token}"
    )


def said(
    prompt_ids: Sequence[Sequence[int]],
    completion_ids: Sequence[Sequence[int]],
    tokenizer,
    ends: Sequence[int],
    turn: Turn | None = None,
) -> list[str]:
    """The texts of completions where they stand: behind their prompts, and without the token that ends them.

    Args:
        prompt_ids, completion_ids: B lists each, without padding. ends: what ends a completion.
        turn: of the tokenizer's chat template, where prompts are messages; the white space with which it opens an
            answer is none of the answer's.
    """
    completion_ids = [ids[:-1] if len(ids) and ids[-1] in ends else ids for ids in completion_ids]
    texts = texts_after(prompt_ids, completion_ids, tokenizer)
    if turn and turn.before:
        alone = [tokenizer.decode(list(ids), skip_special_tokens=True) for ids in completion_ids]
        texts = [a if text == turn.before + a else text for text, a in zip(texts, alone, strict=True)]
    return texts


def ids_behind(prompt: str | list, prompt_ids: list[int], text: str, tokenizer) -> list[int]:
    """The ids of a completion's text where it stands, behind its prompt; without an end token."""
    if isinstance(prompt, str):
        whole = begun_once(tokenizer(text=prompt + text)["input_ids"], tokenizer)
        if whole[: len(prompt_ids)] == prompt_ids:  # otherwise the two have grown together
            return whole[len(prompt_ids) :]
    line = ids_of_text(tokenizer, "\n")
    alone, inner = ids_of_text(tokenizer, text), ids_of_text(tokenizer, f"\n{text}")[len(line) :]
    return next((ids for ids in (alone, inner) if texts_after([prompt_ids], [ids], tokenizer) == [text]), alone)
