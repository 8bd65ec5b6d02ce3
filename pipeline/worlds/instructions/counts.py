"""Kinds that count: words, sentences, keywords, letters. A text has its counts; the parameters are read off it."""

import random
import re

from rewards.instructions.reading import sentences, words

from .kinds import COUNTED, Kind, Kwargs, Written, content_words, either
from .requests import Request

KEYWORDS = (
    "people water history simple light summer important morning family world nature energy garden music story future "
    "health market winter colour travel beautiful together quiet careful strong modern village reason question answer "
    "moment number place friend house river"
).split()
AVOIDED = (
    "very good great nice really thing things always never best however because also many important amazing people "
    "wonderful world special beautiful perfect"
).split()


def _bound(count: int, rng: random.Random) -> tuple[int, str] | None:
    """A bound that `count` keeps, and its relation."""
    if rng.random() < 0.55:
        return (rng.randint(max(1, count // 2), count), "at least") if count else None
    return count + rng.randint(1, max(2, count // 2)), "less than"


def _rounded(value: int, relation: str) -> int:
    """People say 60, not 58: `value` to the next ten on the safe side, where it is large."""
    if value < 25:
        return value
    return value // 10 * 10 if relation == "at least" else -(-value // 10) * 10


def _words(text: str, request: Request, rng: random.Random) -> Written:
    bound = _bound(len(words(text)), rng)
    return bound and (text, {"relation": bound[1], "num_words": _rounded(*bound)})


def _draw_words(request: Request, rng: random.Random) -> Kwargs:
    relation = either("at least", "less than", rng, 0.55)
    return {"relation": relation, "num_words": rng.choice((20, 30, 40, 50, 60, 70, 80, 100))}


def _range(text: str, request: Request, rng: random.Random) -> Written:
    count = len(words(text))
    if count < 12:
        return None
    return text, {"min_words": count - rng.randint(5, 10), "max_words": count + rng.randint(5, 20)}


def _draw_range(request: Request, rng: random.Random) -> Kwargs:
    lowest = rng.choice((15, 20, 30, 40, 50, 60))
    return {"min_words": lowest, "max_words": lowest + rng.choice((15, 20, 30))}


def _sentences(text: str, request: Request, rng: random.Random) -> Written:
    bound = _bound(len(sentences(text)), rng)
    return bound and (text, {"relation": bound[1], "num_sentences": bound[0]})


def _draw_sentences(request: Request, rng: random.Random) -> Kwargs:
    return {"relation": either("at least", "less than", rng, 0.55), "num_sentences": rng.randint(2, 8)}


def _existence(text: str, request: Request, rng: random.Random) -> Written:
    found = content_words(text)
    return (text, {"keywords": rng.sample(found, min(len(found), rng.randint(1, 3)))}) if found else None


def _frequency(text: str, request: Request, rng: random.Random) -> Written:
    counts = {word: len(re.findall(re.escape(word), text, flags=re.IGNORECASE)) for word in content_words(text)}
    often = [word for word, count in counts.items() if count > 1]
    if often and rng.random() < 0.7:
        word = rng.choice(often)
        return text, {"keyword": word, "relation": "at least", "frequency": rng.randint(2, counts[word])}
    if not counts:
        return None
    word = rng.choice(list(counts))
    return text, {"keyword": word, "relation": "less than", "frequency": counts[word] + rng.randint(1, 3)}


def _draw_frequency(request: Request, rng: random.Random) -> Kwargs:
    word = rng.choice((request.topic.split()[-1], rng.choice(KEYWORDS)))
    relation = either("at least", "less than", rng, 0.75)
    return {"keyword": word, "relation": relation, "frequency": rng.randint(2, 4)}


def _avoid(text: str, request: Request, rng: random.Random) -> Written:
    absent = [word for word in AVOIDED if not re.search(rf"\b{word}\b", text, flags=re.IGNORECASE)]
    return (text, {"forbidden_words": rng.sample(absent, min(len(absent), rng.randint(1, 3)))}) if absent else None


def _letter(text: str, request: Request, rng: random.Random) -> Written:
    letter = rng.choice("abcdefghijklmnopqrstuvwy")
    bound = _bound(text.lower().count(letter), rng)
    return bound and (text, {"letter": letter, "let_relation": bound[1], "let_frequency": bound[0]})


def _draw_letter(request: Request, rng: random.Random) -> Kwargs:
    if rng.random() < 0.6:
        return {
            "letter": rng.choice("abcdefhilnorstuw"),
            "let_relation": "at least",
            "let_frequency": rng.randint(2, 12),
        }
    return {"letter": rng.choice("bcfgjkmpqvwxyz"), "let_relation": "less than", "let_frequency": rng.randint(2, 6)}


LENGTH = frozenset({"length"})
KINDS = (
    Kind(
        "length_constraints:number_words",
        (
            "Answer with {relation} {num_words} words.",
            "Your answer should have {relation} {num_words} words.",
            "Write {relation} {num_words} words.",
        ),
        _draw_words,
        _words,
        COUNTED,
        LENGTH,
    ),
    Kind(
        "count:word_count_range",
        (
            "Write between {min_words} and {max_words} words.",
            "The answer must have from {min_words} to {max_words} words.",
        ),
        _draw_range,
        _range,
        COUNTED,
        LENGTH,
    ),
    Kind(
        "length_constraints:number_sentences",
        (
            "Your answer should contain {relation} {num_sentences} sentences.",
            "Write {relation} {num_sentences} sentences.",
            "Use {relation} {num_sentences} sentences in the answer.",
        ),
        _draw_sentences,
        _sentences,
        COUNTED,
        LENGTH,
    ),
    Kind(
        "keywords:existence",
        (
            "Include the keywords {keywords} in your answer.",
            "Make sure to use these words: {keywords}.",
            "The following words must appear: {keywords}.",
        ),
        lambda request, rng: {"keywords": rng.sample(KEYWORDS, rng.randint(1, 3))},
        _existence,
        COUNTED,
        frozenset({"wanted"}),
    ),
    Kind(
        "keywords:frequency",
        (
            "The word {keyword} should appear {relation} {frequency} times.",
            'Use the word "{keyword}" {relation} {frequency} times.',
            "In your answer, {keyword} must occur {relation} {frequency} times.",
        ),
        _draw_frequency,
        _frequency,
        COUNTED,
        frozenset({"wanted"}),
    ),
    Kind(
        "keywords:forbidden_words",
        (
            "Do not use the words {forbidden_words}.",
            "Avoid these words: {forbidden_words}.",
            "The following words must not appear in the answer: {forbidden_words}.",
        ),
        lambda request, rng: {"forbidden_words": rng.sample(AVOIDED, rng.randint(1, 3))},
        _avoid,
        COUNTED,
    ),
    Kind(
        "keywords:letter_frequency",
        (
            "The letter {letter} should appear {let_relation} {let_frequency} times.",
            "Use the letter {letter} {let_relation} {let_frequency} times.",
        ),
        _draw_letter,
        _letter,
        COUNTED,
    ),
)
