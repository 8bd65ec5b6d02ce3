"""Dialogue: the desk of a ferry, where a customer books a trip over several turns. Rows are messages.

    user: Hello, I would like two seats.
    assistant: Gladly. I have noted two seats. May I ask for the island?
    user: To Fara, please.
    assistant: Thank you. This is for a trip to Fara. Which day would you like?
    user: What number of seats was it again?
    assistant: Of course. I put down two seats. Could you tell me the day?

A booking has a number of seats, an island, a day and a boat. The customer gives one or two at a time, may have a
change of mind and may ask what was said; with all four known the desk sums up the booking. The desk is to say what the
conversation asks for, be polite, and not say a sentence twice.

Training texts are written with human slips (`desk.HUMAN`). Preference pairs: two answers to one conversation, the
rejected one written with one to three slips more than the chosen one. The referee, `measures.measure`, reads the
finished answer and knows nothing of how it was written.
"""

import random

from ..base import Document, WorldData, WorldSettings
from ..chat_format import EOS, TURNS, write_out
from .desk import Turn, answer, draw_slips, draw_visit, possible_slips
from .measures import measure
from .words import COURTESIES, SLOTS, VALUES

__all__ = ["CHAT_FORMAT", "HIGHER_IS_BETTER", "make_data", "pretraining_texts", "referee"]

CHAT_FORMAT = TURNS
HIGHER_IS_BETTER = dict.fromkeys(("good", "coherent", "polite", "fresh", "fluent"), True)
REFERENCES = 4
NONE: frozenset[str] = frozenset()

referee = measure


def message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def talk(visit: list[Turn], rng: random.Random, slips: bool) -> list[dict[str, str]]:
    """The messages of a visit, the desk's answers clean or with human slips."""
    messages: list[dict[str, str]] = []
    for turn in visit:
        earlier = [m["content"] for m in messages if m["role"] == "assistant"]
        said = answer(turn, earlier, draw_slips(turn, rng) if slips else NONE, rng)
        messages += [message("user", turn.user), message("assistant", said)]
    return messages


def key_of(visit: list[Turn]) -> tuple[str, ...]:
    """What makes a conversation another one: the customer's words, however the desk answered."""
    return tuple(turn.user for turn in visit)


def _draw_many(count: int, rng: random.Random, held_out: set[tuple[str, ...]]) -> list[list[Turn]]:
    """`count` visits of which no beginning is a conversation that is held out."""
    found: list[list[Turn]] = []
    while len(found) < count:
        visit = draw_visit(rng)
        if not any(key_of(visit[:length]) in held_out for length in range(1, len(visit) + 1)):
            found.append(visit)
    return found


def _hold_out(count: int, rng: random.Random, held_out: set[tuple[str, ...]]) -> list[list[Turn]]:
    """`count` visits cut at a random turn, no two the same; their keys are added to `held_out`."""
    found: list[list[Turn]] = []
    while len(found) < count:
        visit = _cut(draw_visit(rng), rng)
        if key_of(visit) not in held_out:
            held_out.add(key_of(visit))
            found.append(visit)
    return found


def _cut(visit: list[Turn], rng: random.Random) -> list[Turn]:
    return visit[: rng.randint(1, len(visit))]


def _prompt(visit: list[Turn], rng: random.Random) -> tuple[list[dict[str, str]], list[str]]:
    """The conversation up to the last turn of the customer, and the desk's answers in it, which are clean."""
    prompt = talk(visit, rng, slips=False)[:-1]
    return prompt, [m["content"] for m in prompt if m["role"] == "assistant"]


def prompt_row(visit: list[Turn], rng: random.Random) -> dict:
    """A row of a prompts file: prompt, clean references, facts (values that the answer is to say), unwanted (values
    that the customer does not want), courtesy, and a column for each slot.
    """
    prompt, earlier = _prompt(visit, rng)
    last = visit[-1]
    references: list[str] = []
    while len(references) < REFERENCES:
        text = answer(last, earlier, NONE, rng)
        if text not in references:
            references.append(text)
    return {
        "prompt": prompt,
        "references": references,
        "facts": list(last.facts.values()),
        "unwanted": [value for slot in SLOTS for value in VALUES[slot] if value != last.known.get(slot)],
        "courtesy": ["|".join(courtesy.rstrip(".") for courtesy in COURTESIES)],
        **{slot: last.known.get(slot, "") for slot in SLOTS},
    }


def preference_row(visit: list[Turn], rng: random.Random) -> dict:
    """Two answers to one conversation. The chosen one has no slip, or one; the rejected one has more."""
    prompt, earlier = _prompt(visit, rng)
    last = visit[-1]
    possible = possible_slips(last)
    few = rng.choice((0, 0, 0, 1))
    many = few + rng.choice((1, 1, 2, 3))
    slips = rng.sample(possible, many)
    chosen = answer(last, earlier, frozenset(slips[:few]), rng)
    rejected = answer(last, earlier, frozenset(slips), rng)
    return {
        "prompt": prompt,
        "chosen": [message("assistant", chosen)],
        "rejected": [message("assistant", rejected)],
    }


def make_data(settings: WorldSettings) -> WorldData:
    """Rows of every data file (see `pipeline.worlds`), as messages. A held-out conversation is the beginning of no
    training row.
    """
    rng = random.Random(f"dialogue {settings.seed}")
    held_out: set[tuple[str, ...]] = set()
    rows = settings.rows()
    visits = {name: _hold_out(rows[name], rng, held_out) for name in ("prompts_heldout", "preferences_heldout")}
    visits |= {n: _draw_many(rows[n], rng, held_out) for n in ("sft_train", "preferences_train", "prompts_train")}
    return {
        "prompts_heldout": [prompt_row(visit, rng) for visit in visits["prompts_heldout"]],
        "prompts_train": [prompt_row(_cut(visit, rng), rng) for visit in visits["prompts_train"]],
        "sft_train": [{"messages": talk(visit, rng, slips=True)} for visit in visits["sft_train"]],
        "preferences_heldout": [preference_row(visit, rng) for visit in visits["preferences_heldout"]],
        "preferences_train": [preference_row(_cut(visit, rng), rng) for visit in visits["preferences_train"]],
    }


def pretraining_texts(settings: WorldSettings, data: WorldData) -> list[Document]:
    """Conversations with slips in the chat format; none begins as a held-out one."""
    rng = random.Random(f"dialogue pretraining {settings.seed}")
    held_out = {
        tuple(m["content"] for m in row["prompt"] if m["role"] == "user")
        for name in ("prompts_heldout", "preferences_heldout")
        for row in data[name]
    }
    visits = _draw_many(settings.pretraining_texts, rng, held_out)
    # The base model's training puts the last end of text itself
    return [("", write_out(talk(visit, rng, slips=True)).removesuffix(EOS)) for visit in visits]
