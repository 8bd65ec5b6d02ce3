"""Five kinds of instruction that training never shows, to see whether what was learned carries over."""

import random
from collections.abc import Callable

from .kinds import Kwargs
from .requests import Request

LANGUAGES = {"es": "Spanish", "fr": "French", "de": "German", "it": "Italian"}
STARTS = ("To begin with", "In short", "Well", "Let me explain", "First of all", "The truth is")


def _language(request: Request, rng: random.Random) -> tuple[str, Kwargs]:
    code, name = rng.choice(list(LANGUAGES.items()))
    return f"Your entire answer must be in {name}, no other language is allowed.", {"language": code}


def _title_case(request: Request, rng: random.Random) -> tuple[str, Kwargs]:
    return "Write The Whole Answer In Title Case: every word begins with a capital and goes on in small letters.", {}


def _different_words(request: Request, rng: random.Random) -> tuple[str, Kwargs]:
    count = rng.choice((25, 30, 40, 50, 60))
    return f"Use at least {count} different words.", {"N": count}


def _numbers(request: Request, rng: random.Random) -> tuple[str, Kwargs]:
    count = rng.randint(1, 4)
    return f"The answer must contain exactly {count} number{'s' * (count > 1)} in digits.", {"N": count}


def _start(request: Request, rng: random.Random) -> tuple[str, Kwargs]:
    phrase = rng.choice(STARTS)
    return f'Begin your answer with the words "{phrase}".', {"start_phrase": phrase}


UNSEEN: dict[str, Callable[[Request, random.Random], tuple[str, Kwargs]]] = {
    "language:response_language": _language,
    "format:title_case": _title_case,
    "count:unique_word_count": _different_words,
    "count:numbers": _numbers,
    "startend:start_checker": _start,
}
