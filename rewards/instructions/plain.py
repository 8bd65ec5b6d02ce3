"""A few kinds that people ask for and that neither IFEval nor IFBench has, named as theirs."""

import re

from .ifeval import whole
from .kinds import COUNT, RELATION, TEXT, Kinds, holds

kind = Kinds()
_NUMBERED = re.compile(r"^[^\S\n]*\d+[.)]\s", re.MULTILINE)


@kind("startend:start_checker", "begins with the phrase, capitals and opening quotes aside", start_phrase=TEXT)
def start_checker(text: str, start_phrase: str) -> bool:
    return text.strip().strip('"').lower().startswith(start_phrase.lower())


@kind(
    "keywords:word_frequency",
    "how often the word stands in the text as a word, capitals aside",
    word=TEXT,
    frequency=COUNT,
    relation=RELATION,
)
def word_frequency(text: str, word: str, frequency: int, relation: str) -> bool:
    return holds(len(re.findall(whole(word), text, re.IGNORECASE)), relation, frequency)


@kind(
    "length_constraints:number_characters",
    "how many characters, white space around the text aside",
    num_characters=COUNT,
    relation=RELATION,
)
def number_characters(text: str, num_characters: int, relation: str) -> bool:
    return holds(len(text.strip()), relation, num_characters)


@kind("length_constraints:number_lines", "how many lines that are not blank", num_lines=COUNT, relation=RELATION)
def number_lines(text: str, num_lines: int, relation: str) -> bool:
    return holds(sum(bool(line.strip()) for line in text.split("\n")), relation, num_lines)


@kind("detectable_format:number_numbered_items", "exactly so many lines that begin like `1.` or `1)`", num_items=COUNT)
def number_numbered_items(text: str, num_items: int) -> bool:
    return len(_NUMBERED.findall(text)) == num_items
