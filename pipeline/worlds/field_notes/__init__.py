"""Field notes: facts about an animal that somebody saw, written down as one or two sentences of a nature diary.

Prompt:     ``animal: otter | place: old mill | time: dusk =>`` and a newline
Completion: ``At dusk, I saw an otter by the old mill.``

Three to six facts each; about 2.9 million different sets of facts. Training texts are written with human slips (see
`noise.Noise`), references are clean, and the hidden referee is `gold`.

Preference pairs: two texts about one set of facts, one clean or human, the other at varied noise, ordered by `gold`.
Pairs closer than `MIN_GAP` are not asked. Then 5% of the labels are flipped, in both parts, so no judge can be
expected to be right on more than 95% of the held-out pairs.
"""

import random

from ..base import Document, WorldData, WorldSettings, progress
from .gold import gold, gold_parts
from .grammar import SLOTS, WORDS, realize, usable_patterns
from .noise import CLEAN, HUMAN, MESSY, varied, write

__all__ = ["HIGHER_IS_BETTER", "gold", "gold_parts", "make_data", "pretraining_texts", "prompt_of", "referee"]

HIGHER_IS_BETTER = {"gold": True}
FLIP = 0.05
MIN_GAP = 0.20
REFERENCES = 4


def prompt_of(facts: dict[str, str]) -> str:
    """The prompt for `facts` (slot -> value), in the order of the dict."""
    return " | ".join(f"{slot}: {value}" for slot, value in facts.items()) + " =>\n"


def referee(completion: str, row: dict) -> dict[str, float]:
    """``{"gold": …}``, 0 to 1, higher is better."""
    return {"gold": gold(completion, row)}


def draw_facts(rng: random.Random) -> dict[str, str]:
    """A random set of facts: the animal and two to five more, in the order of SLOTS."""
    others = rng.sample(SLOTS[1:], rng.choice((2, 3, 3, 4, 4, 5)))
    return {slot: rng.choice(list(WORDS[slot])) for slot in SLOTS if slot == "animal" or slot in others}


def _draw_many(count: int, rng: random.Random, taken: set) -> list[dict[str, str]]:
    """`count` sets of facts that are not in `taken`; they are added to it."""
    found = []
    while len(found) < count:
        facts = draw_facts(rng)
        key = tuple(facts.items())
        if key not in taken:
            taken.add(key)
            found.append(facts)
    return found


def prompt_row(facts: dict[str, str], rng: random.Random) -> dict:
    """A row of a prompts file: prompt, clean references (each a plan of its own where there are enough), facts, slot
    columns.
    """
    patterns = usable_patterns(set(facts))
    patterns = rng.sample(patterns, len(patterns))
    references: list[str] = []
    while len(references) < REFERENCES:
        text = realize(facts, rng, patterns[len(references) % len(patterns)])
        if text not in references:
            references.append(text)
    return {
        "prompt": prompt_of(facts),
        "references": references,
        "facts": ["|".join(WORDS[slot][value]) for slot, value in facts.items()],
        **{slot: facts.get(slot, "") for slot in SLOTS},
    }


def preference_row(facts: dict[str, str], rng: random.Random) -> dict:
    """Two texts about `facts`, the better one chosen but for a flip of FLIP."""
    while True:
        first, second = (write(facts, noise, rng) for noise in (rng.choice((CLEAN, HUMAN)), varied(rng)))
        gap = gold(first, facts) - gold(second, facts)
        if abs(gap) >= MIN_GAP:
            break
    if (gap < 0) != (rng.random() < FLIP):
        first, second = second, first
    return {"prompt": prompt_of(facts), "chosen": first, "rejected": second}


def make_data(settings: WorldSettings) -> WorldData:
    """Rows of every data file (see `pipeline.worlds`). Held-out prompts and pairs use facts that no training row
    has.
    """
    rng = random.Random(f"field_notes {settings.seed}")
    taken: set = set()
    draw = {name: _draw_many(count, rng, taken) for name, count in settings.rows().items()}
    return {
        "prompts_heldout": [prompt_row(facts, rng) for facts in draw["prompts_heldout"]],
        "prompts_train": [prompt_row(facts, rng) for facts in draw["prompts_train"]],
        "sft_train": [{"prompt": prompt_of(f), "completion": write(f, HUMAN, rng)} for f in draw["sft_train"]],
        "preferences_heldout": [preference_row(facts, rng) for facts in draw["preferences_heldout"]],
        "preferences_train": [
            preference_row(facts, rng) for facts in progress(draw["preferences_train"], "preference pairs")
        ],
    }


def pretraining_texts(settings: WorldSettings, data: WorldData) -> list[Document]:
    """Messy documents of the world: facts then text, text then facts, facts in any order, bare text; many
    slips.

    Facts of held-out prompts do not occur.
    """
    rng = random.Random(f"field_notes pretraining {settings.seed}")
    held_out = {row["prompt"] for name in ("prompts_heldout", "preferences_heldout") for row in data[name]}
    texts: list[Document] = []
    while len(texts) < settings.pretraining_texts:
        facts = draw_facts(rng)
        if prompt_of(facts) not in held_out:
            texts.append(_document(facts, rng))
    return texts


def _document(facts: dict[str, str], rng: random.Random) -> Document:
    text = write(facts, MESSY, rng)
    order = list(facts)
    if rng.random() < 0.2:
        rng.shuffle(order)
    prompt = prompt_of({slot: facts[slot] for slot in order})
    kind = rng.random()
    if kind < 0.05:
        return "", text
    return ("", f"{text}\n= {prompt[:-4]}") if kind < 0.15 else (prompt, text)
