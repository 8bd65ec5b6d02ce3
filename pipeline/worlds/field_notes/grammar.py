"""Vocabulary and clean grammar of the field notes: facts in, one or two diary sentences out.

A pattern is a sentence plan in a small notation:

- ``{slot}`` is the slot's phrase (``{weather}`` is a phrase such as "in light rain", ``{weather_clause}`` a clause
  such as "light rain was falling");
- ``[...]`` is kept when its slot is to be said and dropped otherwise (it holds exactly one slot);
- ``(a|b)`` is a free choice of words;
- ``@`` is the indefinite article, "a" or "an" by the word that follows.

A pattern can say a set of facts when every slot outside its brackets is in the set and the set is in the pattern.
"""

import itertools
import random
import re

SLOTS = ("animal", "mood", "doing", "place", "time", "weather")

# value -> the words that say it. The first is the value itself; any of them counts as saying the fact.
WORDS: dict[str, dict[str, tuple[str, ...]]] = {
    "animal": {
        name: (name,)
        for name in (
            "otter heron fox hare badger kingfisher hedgehog stoat raven robin toad magpie adder weasel".split()
            + ["barn owl", "roe deer"]
        )
    },
    "mood": {
        "wary": ("wary", "cautious"),
        "sleepy": ("sleepy", "drowsy"),
        "bold": ("bold", "fearless"),
        "cheerful": ("cheerful", "merry"),
        "grumpy": ("grumpy", "ill-tempered"),
        "curious": ("curious", "inquisitive"),
        "hungry": ("hungry", "famished"),
        "calm": ("calm", "unhurried"),
        "elegant": ("elegant", "graceful"),
        "muddy": ("muddy", "mud-splashed"),
    },
    "doing": {
        "fishing": ("fishing", "trying to fish"),
        "dozing": ("dozing", "taking a nap"),
        "drinking": ("drinking", "having a drink"),
        "digging": ("digging", "scratching a hole"),
        "sunbathing": ("sunbathing", "basking"),
        "calling": ("calling", "crying"),
        "listening": ("listening", "pricking its ears"),
        "washing its face": ("washing its face", "cleaning its face"),
        "chasing a leaf": ("chasing a leaf", "playing with a leaf"),
        "carrying a twig": ("carrying a twig", "dragging a twig"),
        "eating a berry": ("eating a berry", "nibbling a berry"),
        "looking for worms": ("looking for worms", "searching for worms"),
    },
    "place": {
        name: (name,)
        for name in (
            "old mill,duck pond,canal lock,garden gate,sea wall,compost heap,reed bed,beech wood,hay meadow,orchard,"
            "churchyard,stone bridge,quarry,salt marsh"
        ).split(",")
    },
    "time": {
        "dawn": ("dawn", "daybreak", "first light"),
        "breakfast time": ("breakfast time", "breakfast"),
        "noon": ("noon", "midday"),
        "teatime": ("teatime", "tea time"),
        "late afternoon": ("late afternoon", "late in the afternoon"),
        "sunset": ("sunset", "sundown"),
        "dusk": ("dusk", "twilight"),
        "moonrise": ("moonrise", "as the moon rose"),
        "midnight": ("midnight",),
    },
    "weather": {
        "light rain": ("light rain", "gentle rain"),
        "thick fog": ("thick fog", "dense fog"),
        "bright sunshine": ("bright sunshine", "brilliant sunshine"),
        "hard frost": ("hard frost", "sharp frost"),
        "fresh snow": ("fresh snow", "new snow"),
        "strong wind": ("strong wind", "stiff wind"),
        "low cloud": ("low cloud", "heavy cloud"),
        "fine drizzle": ("fine drizzle", "soft drizzle"),
        "distant thunder": ("distant thunder", "far-off thunder"),
        "summer heat": ("summer heat", "fierce heat"),
    },
}

_NEXT_TO = ("by the {}", "beside the {}", "near the {}")
_INSIDE = ("in the {}", "out in the {}")
_INSIDE_PLACES = {"reed bed", "beech wood", "hay meadow", "orchard", "churchyard", "quarry", "salt marsh"}
_WEATHER_PHRASE = {
    "hard frost": "in a {}",
    "strong wind": "in a {}",
    "low cloud": "under {}",
    "distant thunder": "to {}",
    "summer heat": "in the {}",
}
_WEATHER_CLAUSE = {
    "light rain": "{} was falling",
    "thick fog": "{} lay everywhere",
    "bright sunshine": "there was {}",
    "hard frost": "there was a {}",
    "fresh snow": "{} lay everywhere",
    "strong wind": "a {} was blowing",
    "low cloud": "there was {}",
    "fine drizzle": "{} was falling",
    "distant thunder": "there was {}",
    "summer heat": "the {} lay everywhere",
}
_TIME_PHRASES = {
    "late afternoon": ("in the late afternoon", "late in the afternoon"),
    "moonrise": ("at moonrise", "as the moon rose"),
    "midnight": ("at midnight", "around midnight"),
}

PATTERNS = (
    "[{time}, ]I (saw|watched|spotted) @ [{mood} ]{animal}[ {doing}][ {place}][ {weather}].",
    "@ [{mood} ]{animal} was {doing}[ {place}][ {time}][ {weather}].",
    "{weather_clause}[ {time}] when I (found|met|came across) @ [{mood} ]{animal}[ {doing}][ {place}].",
    "{place}[ {time}] there was @ {animal}[ {doing}][ {weather}].[ It (looked|seemed) {mood}.]",
    "I (found|met) @ {animal}[ {doing}][ {place}][ {time}]. {weather_clause}[, and my visitor (looked|seemed) {mood}].",  # noqa: E501
    "(My|Today's) visitor[ {time}] was @ [{mood} ]{animal}[, {doing}][ {place}][ {weather}].",
    "The {animal}[ {place}] (looked|seemed) {mood}[ {time}]. It was {doing}[ {weather}].",
    "{time}[ {place}], @ [{mood} ]{animal} was {doing}.[ {weather_clause}.]",
    "[{place}, ]@ [{mood} ]{animal} (appeared|turned up)[ {time}][ {weather}].[ It was {doing}.]",
    "There was @ [{mood} ]{animal}[ {place}][ {time}], {doing}[ {weather}].",
)

# What a chatty writer adds. Good English, but it says no fact: it costs length, not fluency.
REMARKS = (
    "I stood there for a good long while and simply enjoyed it.",
    "I must bring the better binoculars next week.",
    "Moments like this make a walk worth the trouble.",
    "My boots were wet through, but I did not mind at all.",
    "I have been coming this way for years and years.",
    "I wrote it all down when I got home.",
    "There is nothing quite like it, I always say.",
    "My sister will never believe me when I tell her.",
)

_HOLE = re.compile(r"\{(\w+)\}")
_GROUP = re.compile(r"\[([^\]]*)\]")
_CHOICE = re.compile(r"\(([^)]*)\)")


def _slot_of(hole: str) -> str:
    return "weather" if hole == "weather_clause" else hole


def phrases(hole: str, value: str) -> tuple[str, ...]:
    """All surface phrases that fill `hole` with `value`, e.g. ("time", "noon") -> ("at noon", "at midday")."""
    slot = _slot_of(hole)
    words = WORDS[slot][value]
    if hole == "place":
        return tuple(form.format(value) for form in (_INSIDE if value in _INSIDE_PLACES else _NEXT_TO))
    if hole == "time":
        return _TIME_PHRASES.get(value) or tuple(f"at {word}" for word in words)
    if hole == "weather":
        return tuple(_WEATHER_PHRASE.get(value, "in {}").format(word) for word in words)
    if hole == "weather_clause":
        return tuple(_WEATHER_CLAUSE[value].format(word) for word in words)
    return words


def _slots_in(text: str) -> set[str]:
    return {_slot_of(hole) for hole in _HOLE.findall(text)}


def required_slots(pattern: str) -> set[str]:
    """Slots that the pattern always says: those outside its brackets."""
    return _slots_in(_GROUP.sub("", pattern))


def usable_patterns(slots: set[str]) -> list[str]:
    """Patterns that can say exactly `slots`. Never empty when "animal" is among them."""
    return [p for p in PATTERNS if required_slots(p) <= slots <= _slots_in(p)]


def _keep_groups(pattern: str, slots: set[str]) -> str:
    return _GROUP.sub(lambda match: match[1] if _slots_in(match[1]) <= slots else "", pattern)


def fix_articles(text: str) -> str:
    """Replace each "@" with "a" or "an" by the letter that follows."""
    return re.sub(r"@ (\w)", lambda match: ("an " if match[1].lower() in "aeiou" else "a ") + match[1], text)


def capitalize(text: str) -> str:
    """Give every sentence a capital at its start."""
    return re.sub(r"(^|[.] )(\w)", lambda match: match[1] + match[2].upper(), text)


def realize(facts: dict[str, str], rng: random.Random, pattern: str | None = None) -> str:
    """Say `facts` (slot -> value, "animal" among them) with a random clean sentence plan, or with `pattern`."""
    slots = set(facts)
    pattern = pattern or rng.choice(usable_patterns(slots))
    text = _CHOICE.sub(lambda match: rng.choice(match[1].split("|")), _keep_groups(pattern, slots))
    text = _HOLE.sub(lambda match: rng.choice(phrases(match[1], facts[_slot_of(match[1])])), text)
    return capitalize(fix_articles(text))


def skeletons() -> set[str]:
    """Every text of the clean grammar with the phrases left as ``{hole}`` and the articles as "@".

    The grammar is finite, so this is exact: all patterns, all sets of slots, all choices of words.
    """
    found = set()
    for pattern in PATTERNS:
        optional = sorted(_slots_in(pattern) - required_slots(pattern))
        for size in range(len(optional) + 1):
            for extra in itertools.combinations(optional, size):
                kept = _keep_groups(pattern, required_slots(pattern) | set(extra))
                choices = [match.split("|") for match in _CHOICE.findall(kept)]
                for picks in itertools.product(*choices):
                    words = iter(picks)
                    found.add(_CHOICE.sub(lambda match, words=words: next(words), kept))
    return found
