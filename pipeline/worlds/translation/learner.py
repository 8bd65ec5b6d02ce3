"""How a learner gets Ondri wrong: what the training texts of SFT are full of, and what is left for PPO to mend.

Two slips are habits, made more often than not, so that the likeliest translation has them as well: the verb where
English has it, and adjectives as the dictionary gives them. The others are chance.
"""

import random
from dataclasses import dataclass

from .language import (
    ADJECTIVES,
    CASES,
    FORMS,
    INTRANSITIVE,
    NOUNS,
    TENSES,
    TRANSITIVE,
    VERBS,
    Meaning,
    inflect_adjective,
    inflect_verb,
)
from .sentences import in_ondri


@dataclass(frozen=True)
class Slips:
    """How often each slip is made where it can be made."""

    drop: float = 0.0  # an adjective, the time or the place is left out, each by itself
    wrong: float = 0.0  # another noun of the same class, or another verb, each by itself
    tense: float = 0.0  # another tense
    case: float = 0.0  # the object without its suffix: who does it to whom?
    adjective: float = 0.0  # an adjective as in the dictionary, `orta`, whatever its noun is; each by itself
    verb: float = 0.0  # a verb that does not agree with its subject
    order: float = 0.0  # the verb after the first part of the sentence


LEARNER = Slips(drop=0.05, wrong=0.02, tense=0.04, case=0.15, adjective=0.6, verb=0.15, order=0.6)
BEGINNER = Slips(drop=0.1, wrong=0.05, tense=0.08, case=0.25, adjective=0.6, verb=0.25, order=0.6)


def write(meaning: Meaning, slips: Slips, rng: random.Random) -> str:
    """A translation of `meaning` into Ondri with the slips of `slips`."""
    words = in_ondri(misunderstand(meaning, slips, rng), rng).removesuffix(".").split()
    words = [stumble(word, slips, rng) for word in words]
    if rng.random() < slips.order:
        first = next(i for i, word in enumerate(words, start=1) if FORMS[words[i]][0] != "adjective")
        words.insert(first, words.pop())
    return " ".join(words) + "."


def misunderstand(meaning: Meaning, slips: Slips, rng: random.Random) -> Meaning:
    """`meaning` with parts left out or mistaken."""
    if rng.random() < slips.tense:
        meaning = meaning._replace(tense=rng.choice([tense for tense in TENSES if tense != meaning.tense]))
    if rng.random() < slips.wrong:
        alike = TRANSITIVE if meaning.verb in TRANSITIVE else INTRANSITIVE
        meaning = meaning._replace(verb=rng.choice([verb for verb in alike if verb != meaning.verb]))
    for part in ("subject", "object", "place"):
        phrase = getattr(meaning, part)
        if phrase is None:
            continue
        if rng.random() < slips.wrong:
            kind = NOUNS[phrase.noun][0]
            others = [noun for noun, (other, _) in NOUNS.items() if other == kind and noun != phrase.noun]
            phrase = phrase._replace(noun=rng.choice(others))
        if rng.random() < slips.drop:
            phrase = phrase._replace(adjective=None)
        meaning = meaning._replace(**{part: phrase})
    if rng.random() < slips.drop:
        meaning = meaning._replace(time=None)
    if rng.random() < slips.drop:
        meaning = meaning._replace(relation=None, place=None)
    return meaning


def stumble(word: str, slips: Slips, rng: random.Random) -> str:
    """A right word, or one with a wrong ending."""
    kind, lemma, *features = FORMS[word]
    if kind == "noun" and features[1] == "object" and rng.random() < slips.case:
        return word.removesuffix(CASES["object"])
    if kind == "adjective" and rng.random() < slips.adjective:
        stem = next(stem for stem in ADJECTIVES[lemma] if word.startswith(stem))
        return inflect_adjective(stem, "a", False, "subject")
    if kind == "verb" and rng.random() < slips.verb:
        stem = next(stem for stem in VERBS[lemma] if word.startswith(stem))
        return inflect_verb(stem, features[0], *_other_agreement(features[1], features[2], rng))
    return word


def _other_agreement(kind: str, plural: bool, rng: random.Random) -> tuple[str, bool]:
    """Class and number, one of them wrong."""
    if rng.random() < 0.5:
        return kind, not plural
    return rng.choice([other for other in "aeo" if other != kind]), plural
