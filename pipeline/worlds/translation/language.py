"""Ondri, the invented language: its words, its inflection, and an exact reader of its sentences.

    tamuri ortari kesten dorak.
    woman-PL old-A-PL knife-OBJECT see-A-PL        "the old women see a knife."

- The verb comes last. Subject, object, place and time stand before it in any order: cases say who does what to whom.
- Nouns have a class: A living, E things, O places. Number and case are suffixes: `-ri` plural, then `-n` object,
  `-s` in, `-l` near, nothing for the subject.
- An adjective follows its noun and agrees in class, number and case: stem, class vowel, `-ri`, case.
- The verb agrees with its subject in class and number: stem, tense (`-et` past, `-un` future), class vowel, `-k` for
  many.
- There are no articles, no passive and no capitals. Some words have a synonym.
"""

from typing import NamedTuple

TENSES = {"past": "et", "present": "", "future": "un"}
CASES = {"subject": "", "object": "n", "in": "s", "near": "l"}

# lemma -> (class, words in Ondri)
NOUNS: dict[str, tuple[str, tuple[str, ...]]] = {
    "woman": ("a", ("tamu",)),
    "fisher": ("a", ("ledo",)),
    "child": ("a", ("miko", "pita")),
    "king": ("a", ("sarko",)),
    "goat": ("a", ("nelu",)),
    "dog": ("a", ("hapi",)),
    "owl": ("a", ("juwe",)),
    "horse": ("a", ("kando",)),
    "basket": ("e", ("reki",)),
    "boat": ("e", ("valo", "nufa")),
    "lamp": ("e", ("siru",)),
    "rope": ("e", ("doma",)),
    "apple": ("e", ("pelu",)),
    "knife": ("e", ("keste",)),
    "letter": ("e", ("fano",)),
    "drum": ("e", ("bumbo",)),
    "river": ("o", ("laru",)),
    "hill": ("o", ("kono",)),
    "village": ("o", ("mesto",)),
    "mill": ("o", ("ruda",)),
    "forest": ("o", ("gelo",)),
    "harbour": ("o", ("pitso",)),
}
ADJECTIVES: dict[str, tuple[str, ...]] = {
    "old": ("ort",),
    "small": ("min", "pik"),
    "red": ("rov",),
    "hungry": ("zam",),
    "quiet": ("hul",),
    "heavy": ("dort",),
}
TRANSITIVE: dict[str, tuple[str, ...]] = {
    "see": ("dor", "nev"),
    "carry": ("lam", "yust"),
    "find": ("gir",),
    "buy": ("sev",),
    "break": ("trak",),
    "paint": ("mul",),
    "hide": ("fosk",),
    "sell": ("bask",),
}
INTRANSITIVE: dict[str, tuple[str, ...]] = {
    "sleep": ("nuv",),
    "wait": ("pel",),
    "sing": ("lir",),
    "arrive": ("gop", "ald"),
}
VERBS = TRANSITIVE | INTRANSITIVE
TIMES: dict[str, tuple[str, ...]] = {
    "yesterday": ("elka",),
    "today": ("osta",),
    "tomorrow": ("imra",),
    "at night": ("utsa",),
    "in winter": ("hibra", "kalma"),
}


class Phrase(NamedTuple):
    """A noun with its number and perhaps an adjective."""

    noun: str
    plural: bool
    adjective: str | None = None


class Meaning(NamedTuple):
    """What a sentence says, in lemmas; the same for all its wordings in both languages."""

    verb: str
    tense: str
    subject: Phrase
    object: Phrase | None = None
    relation: str | None = None  # of the place: "in" or "near"
    place: Phrase | None = None
    time: str | None = None


def inflect_noun(word: str, plural: bool, case: str) -> str:
    """("tamu", True, "object") -> "tamurin"."""
    return word + ("ri" if plural else "") + CASES[case]


def inflect_adjective(stem: str, kind: str, plural: bool, case: str) -> str:
    """("ort", "a", True, "object") -> "ortarin"; `kind` is the noun's class."""
    return stem + kind + ("ri" if plural else "") + CASES[case]


def inflect_verb(stem: str, tense: str, kind: str, plural: bool) -> str:
    """("dor", "past", "a", True) -> "doretak"; `kind` and `plural` are the subject's."""
    return stem + TENSES[tense] + kind + ("k" if plural else "")


def _forms() -> dict[str, tuple]:
    """Every word form of the language -> what it is. No two readings share a form (a test counts them)."""
    found: dict[str, tuple] = {}
    for plural in (False, True):
        for case in CASES:
            for lemma, (_, words) in NOUNS.items():
                found |= {inflect_noun(word, plural, case): ("noun", lemma, plural, case) for word in words}
            for lemma, stems in ADJECTIVES.items():
                for kind in "aeo":
                    reading = ("adjective", lemma, kind, plural, case)
                    found |= {inflect_adjective(stem, kind, plural, case): reading for stem in stems}
        for lemma, stems in VERBS.items():
            for tense in TENSES:
                for kind in "aeo":
                    reading = ("verb", lemma, tense, kind, plural)
                    found |= {inflect_verb(stem, tense, kind, plural): reading for stem in stems}
    for lemma, words in TIMES.items():
        found |= {word: ("time", lemma) for word in words}
    return found


FORMS = _forms()


def read(text: str) -> Meaning | None:
    """What a sentence of Ondri means; None if any word is unknown, or any rule of the grammar broken."""
    text = text.strip()
    words = [FORMS.get(word) for word in text.removesuffix(".").split()]
    if not text.endswith(".") or not words or None in words or words[-1][0] != "verb":
        return None
    _, verb, tense, kind, plural = words.pop()
    said: dict[str, Phrase] = {}
    time = None
    while words:
        word = words.pop(0)
        if word[0] == "time" and time is None:
            time = word[1]
        elif word[0] == "noun" and word[3] not in said:
            _, noun, many, case = word
            adjective = None
            if words and words[0][0] == "adjective":
                _, adjective, *agreement = words.pop(0)
                if agreement != [NOUNS[noun][0], many, case]:
                    return None
            said[case] = Phrase(noun, many, adjective)
        else:
            return None
    subject, places = said.pop("subject", None), [case for case in ("in", "near") if case in said]
    if subject is None or (NOUNS[subject.noun][0], subject.plural) != (kind, plural) or len(places) > 1:
        return None
    if (verb in TRANSITIVE) != ("object" in said):
        return None
    relation = places[0] if places else None
    return Meaning(verb, tense, subject, said.get("object"), relation, said.get(relation), time)
