"""Meanings to sentences: every wording of a meaning in Ondri, and random wordings in English."""

import itertools
import random

from .language import (
    ADJECTIVES,
    NOUNS,
    TIMES,
    TRANSITIVE,
    VERBS,
    Meaning,
    Phrase,
    inflect_adjective,
    inflect_noun,
    inflect_verb,
)

# lemma -> (present with -s, past, participle), where they are not made by rule
ENGLISH_VERBS = {
    "see": ("sees", "saw", "seen"),
    "carry": ("carries", "carried", "carried"),
    "find": ("finds", "found", "found"),
    "buy": ("buys", "bought", "bought"),
    "break": ("breaks", "broke", "broken"),
    "paint": ("paints", "painted", "painted"),
    "hide": ("hides", "hid", "hidden"),
    "sell": ("sells", "sold", "sold"),
    "sleep": ("sleeps", "slept", "slept"),
    "wait": ("waits", "waited", "waited"),
    "sing": ("sings", "sang", "sung"),
    "arrive": ("arrives", "arrived", "arrived"),
}
ENGLISH_NOUNS = {"boat": ("boat", "ship"), "harbour": ("harbour", "port")}
ENGLISH_ADJECTIVES = {"small": ("small", "little")}
PLURALS = {"woman": "women", "child": "children", "knife": "knives"}
RELATIONS = {"in": ("in",), "near": ("near", "by")}
# class -> what can be said of its nouns
FITTING = {
    "a": ("old", "small", "hungry", "quiet"),
    "e": ("old", "small", "red", "heavy"),
    "o": ("old", "small", "quiet"),
}
FITTING_TIMES = {
    "past": ("yesterday", "at night", "in winter"),
    "present": ("today", "at night", "in winter"),
    "future": ("tomorrow", "at night", "in winter"),
}
LIVING, THINGS, PLACES = ([noun for noun, (kind, _) in NOUNS.items() if kind == wanted] for wanted in "aeo")
HANDLED = ("carry", "buy", "break", "sell")  # verbs whose object is a thing


def draw_meaning(rng: random.Random) -> Meaning:
    """A random meaning, from some millions."""
    verb, tense = rng.choice(list(VERBS)), rng.choice(list(FITTING_TIMES))
    subject, target = _draw_phrase(LIVING, rng), None
    if verb in TRANSITIVE:
        nouns = THINGS if verb in HANDLED else LIVING + THINGS
        target = _draw_phrase([noun for noun in nouns if noun != subject.noun], rng)
    relation = rng.choice(list(RELATIONS)) if rng.random() < 0.5 else None
    place = _draw_phrase(PLACES, rng) if relation else None
    time = rng.choice(FITTING_TIMES[tense]) if rng.random() < 0.5 else None
    return Meaning(verb, tense, subject, target, relation, place, time)


def _draw_phrase(nouns: list[str], rng: random.Random) -> Phrase:
    noun = rng.choice(nouns)
    adjective = rng.choice(FITTING[NOUNS[noun][0]]) if rng.random() < 0.4 else None
    return Phrase(noun, rng.random() < 0.5, adjective)


# --- Ondri ---


def phrase_wordings(phrase: Phrase, case: str) -> list[str]:
    """Every way to say a noun phrase: one for each pair of synonyms."""
    kind, words = NOUNS[phrase.noun]
    said = [inflect_noun(word, phrase.plural, case) for word in words]
    if phrase.adjective is None:
        return said
    stems = ADJECTIVES[phrase.adjective]
    return [f"{noun} {inflect_adjective(stem, kind, phrase.plural, case)}" for noun in said for stem in stems]


def constituents(meaning: Meaning) -> list[list[str]]:
    """The wordings of each part before the verb: time, subject, place, object, as far as they are there."""
    parts = [list(TIMES[meaning.time])] if meaning.time else []
    parts.append(phrase_wordings(meaning.subject, "subject"))
    if meaning.place:
        parts.append(phrase_wordings(meaning.place, meaning.relation))
    if meaning.object:
        parts.append(phrase_wordings(meaning.object, "object"))
    return parts


def verb_wordings(meaning: Meaning) -> list[str]:
    """Every way to say the verb."""
    kind, plural = NOUNS[meaning.subject.noun][0], meaning.subject.plural
    return [inflect_verb(stem, meaning.tense, kind, plural) for stem in VERBS[meaning.verb]]


def all_wordings(meaning: Meaning) -> list[str]:
    """Every sentence of Ondri that says `meaning`: all orders before the verb, all synonyms."""
    found = []
    for order in itertools.permutations(constituents(meaning)):
        found += [" ".join(words) + "." for words in itertools.product(*order, verb_wordings(meaning))]
    return found


def in_ondri(meaning: Meaning, rng: random.Random) -> str:
    """A random one of `all_wordings`; the order time, subject, place, object comes half the time."""
    parts = constituents(meaning)
    if rng.random() < 0.5:
        rng.shuffle(parts)
    return " ".join(rng.choice(part) for part in [*parts, verb_wordings(meaning)]) + "."


# --- English ---


def in_english(meaning: Meaning, rng: random.Random) -> str:
    """A random wording in English: active or passive, the time first or last, synonyms, `the` or `a`."""
    passive = meaning.object is not None and rng.random() < 0.35
    first = meaning.object if passive else meaning.subject
    words = [_english_phrase(first, rng), _english_verb(meaning, first.plural, passive)]
    if passive:
        words += ["by", _english_phrase(meaning.subject, rng)]
    elif meaning.object:
        words.append(_english_phrase(meaning.object, rng))
    after = []
    if meaning.place:
        after.append(f"{rng.choice(RELATIONS[meaning.relation])} {_english_phrase(meaning.place, rng)}")
    if meaning.time:
        where = rng.random()
        if where < 0.4:
            words.insert(0, meaning.time)
        else:
            after.insert(0 if where < 0.6 else len(after), meaning.time)
    return " ".join([*words, *after]) + "."


def _english_phrase(phrase: Phrase, rng: random.Random) -> str:
    noun = rng.choice(ENGLISH_NOUNS.get(phrase.noun, (phrase.noun,)))
    if phrase.plural:
        noun = PLURALS.get(noun, noun + "s")
    if phrase.adjective:
        noun = f"{rng.choice(ENGLISH_ADJECTIVES.get(phrase.adjective, (phrase.adjective,)))} {noun}"
    article = "some" if phrase.plural else "an" if noun[0] in "aeiou" else "a"
    return f"{rng.choice(('the', article))} {noun}"


def _english_verb(meaning: Meaning, plural: bool, passive: bool) -> str:
    present, past, participle = ENGLISH_VERBS[meaning.verb]
    if meaning.tense == "future":
        return f"will be {participle}" if passive else f"will {meaning.verb}"
    if passive:
        return {"past": ("was", "were"), "present": ("is", "are")}[meaning.tense][plural] + f" {participle}"
    return past if meaning.tense == "past" else meaning.verb if plural else present
