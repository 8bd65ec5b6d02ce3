"""The 25 kinds of IFEval, with the ids and parameters of its data.

Source: Zhou et al. 2023, "Instruction-Following Evaluation for Large Language Models", arXiv 2311.07911, table 4, and
its reference code, https://github.com/google-research/google-research/tree/master/instruction_following_eval, whose
strict checks these are. They differ from it where a check of the reference would be a fault in a reward:

- Keywords, section names and other texts are texts; there they are regular expressions, and C++ is an error.
- `language:response_language`: a text in which no language is found meets none; there it meets all.
- `change_case:english_capital` and `english_lowercase`: that the text is English is not asked.
- A parameter that is missing or out of range is an error; there a random one takes its place.
- Sentences are counted as in `reading.sentences`.
"""

import json
import re

from .kinds import COUNT, LETTER, PLACE, RELATION, TEXT, TEXTS, Kinds, holds
from .language import LANGUAGE, detect
from .reading import sentences, tokens, words

kind = Kinds()
ANSWERS = ("My answer is yes.", "My answer is no.", "My answer is maybe.")
_BULLETS = (re.compile(r"^[^\S\n]*\*[^*].*$", re.MULTILINE), re.compile(r"^[^\S\n]*-", re.MULTILINE))
_HIGHLIGHTS = (re.compile(r"\*([^\n*]*)\*"), re.compile(r"\*\*([^\n*]*)\*\*"))
_FENCES = ("```json", "```Json", "```JSON", "```")


def found(text: str, phrase: str) -> int:
    """How often `phrase` stands in `text`, capitals aside, be it in the middle of a word."""
    return len(re.findall(re.escape(phrase), text, re.IGNORECASE))


# --- words and letters ----------------------------------------------------------------------------------------------
@kind("keywords:existence", "each keyword stands in the text, be it in a longer word", keywords=TEXTS)
def existence(text: str, keywords: list[str]) -> bool:
    return all(found(text, keyword) for keyword in keywords)


@kind(
    "keywords:frequency", "how often the keyword stands in the text", keyword=TEXT, frequency=COUNT, relation=RELATION
)
def frequency(text: str, keyword: str, frequency: int, relation: str) -> bool:
    return holds(found(text, keyword), relation, frequency)


@kind("keywords:forbidden_words", "none of the words stands in the text as a word", forbidden_words=TEXTS)
def forbidden_words(text: str, forbidden_words: list[str]) -> bool:
    return not any(re.search(whole(word), text, re.IGNORECASE) for word in forbidden_words)


def whole(word: str) -> str:
    """The pattern of `word` as a whole word: not next to a further letter where it begins or ends with one."""
    before = r"\b" if re.match(r"\w", word) else ""
    after = r"\b" if re.search(r"\w$", word) else ""
    return before + re.escape(word) + after


@kind(
    "keywords:letter_frequency",
    "how often the letter occurs, capitals aside",
    letter=LETTER,
    let_frequency=COUNT,
    let_relation=RELATION,
)
def letter_frequency(text: str, letter: str, let_frequency: int, let_relation: str) -> bool:
    return holds(text.lower().count(letter), let_relation, let_frequency)


@kind("language:response_language", "the text is in the language (ISO 639-1)", language=LANGUAGE)
def response_language(text: str, language: str) -> bool:
    return detect(text) == language


# --- length ---------------------------------------------------------------------------------------------------------
@kind("length_constraints:number_sentences", "how many sentences", num_sentences=COUNT, relation=RELATION)
def number_sentences(text: str, num_sentences: int, relation: str) -> bool:
    return holds(len(sentences(text)), relation, num_sentences)


@kind("length_constraints:number_paragraphs", "exactly so many paragraphs, divided by `***`", num_paragraphs=COUNT)
def number_paragraphs(text: str, num_paragraphs: int) -> bool:
    paragraphs = [bool(paragraph.strip()) for paragraph in re.split(r"\s?\*\*\*\s?", text)]
    return all(paragraphs[1:-1]) and sum(paragraphs) == num_paragraphs


@kind("length_constraints:number_words", "how many words", num_words=COUNT, relation=RELATION)
def number_words(text: str, num_words: int, relation: str) -> bool:
    return holds(len(words(text)), relation, num_words)


@kind(
    "length_constraints:nth_paragraph_first_word",
    "exactly so many paragraphs, divided by empty lines, and the nth begins with the word",
    num_paragraphs=COUNT,
    nth_paragraph=PLACE,
    first_word=TEXT,
)
def nth_paragraph_first_word(text: str, num_paragraphs: int, nth_paragraph: int, first_word: str) -> bool:
    paragraphs = text.split("\n\n")
    filled = sum(bool(paragraph.strip()) for paragraph in paragraphs)
    if filled != num_paragraphs or nth_paragraph > filled or not paragraphs[nth_paragraph - 1].strip():
        return False
    first = paragraphs[nth_paragraph - 1].split()[0].lstrip("'").lstrip('"')
    return re.split(r"[.,?!'\"]", first)[0].lower() == first_word.lower()


# --- content --------------------------------------------------------------------------------------------------------
@kind("detectable_content:number_placeholders", "at least so many, like `[address]`", num_placeholders=COUNT)
def number_placeholders(text: str, num_placeholders: int) -> bool:
    count = 0
    for line in text.split("\n"):
        opened = line.find("[")
        while opened >= 0 and (closed := line.find("]", opened)) >= 0:
            count += 1
            opened = line.find("[", closed)
    return count >= num_placeholders


_POSTSCRIPTS = {"P.S.": r"p\.\s?s\.", "P.P.S": r"p\.\s?p\.\s?s"}


@kind(
    "detectable_content:postscript",
    "there is a postscript with the marker (`P.S.`, `P.P.S` or another)",
    postscript_marker=TEXT,
)
def postscript(text: str, postscript_marker: str) -> bool:
    marker = _POSTSCRIPTS.get(postscript_marker, re.escape(postscript_marker.lower()))
    return re.search(marker, text.lower()) is not None


# --- form -----------------------------------------------------------------------------------------------------------
@kind("detectable_format:number_bullet_lists", "exactly so many lines that begin with `*` or `-`", num_bullets=COUNT)
def number_bullet_lists(text: str, num_bullets: int) -> bool:
    return sum(len(bullet.findall(text)) for bullet in _BULLETS) == num_bullets


@kind("detectable_format:constrained_response", "holds `My answer is yes.` or the same with no or maybe")
def constrained_response(text: str) -> bool:
    return any(answer in text for answer in ANSWERS)


@kind(
    "detectable_format:number_highlighted_sections",
    "at least so many, like `*this*` or `**this**`",
    num_highlights=COUNT,
)
def number_highlighted_sections(text: str, num_highlights: int) -> bool:
    return sum(bool(inner.strip()) for mark in _HIGHLIGHTS for inner in mark.findall(text)) >= num_highlights


@kind(
    "detectable_format:multiple_sections",
    "at least so many sections, each begun by the splitter and a number, like SECTION 1",
    section_spliter=TEXT,
    num_sections=COUNT,
)
def multiple_sections(text: str, section_spliter: str, num_sections: int) -> bool:
    return len(re.findall(re.escape(section_spliter) + r"\s?\d+", text)) >= num_sections


@kind("detectable_format:json_format", "the whole text is JSON, perhaps as a fenced block of code")
def json_format(text: str) -> bool:
    text = text.strip()
    for fence in _FENCES:
        text = text.removeprefix(fence)
    try:
        json.loads(text.removesuffix("```").strip())
    except (ValueError, RecursionError):
        return False
    return True


@kind("detectable_format:title", "there is a title, like `<<a song of joy>>`")
def title(text: str) -> bool:
    for line in text.split("\n"):
        opened, closed = line.find("<<"), line.rfind(">>")
        if opened >= 0 and closed > opened and line[opened:closed].lstrip("<").rstrip(">").strip():
            return True
    return False


# --- whole answers --------------------------------------------------------------------------------------------------
@kind("combination:two_responses", "two different answers, divided by `******`")
def two_responses(text: str) -> bool:
    answers = [answer.strip() for answer in text.split("******")]
    filled = [answer for answer in answers if answer]
    return all(answers[1:-1]) and len(filled) == 2 and filled[0] != filled[1]


@kind(
    "combination:repeat_prompt",
    "begins with the request, word for word, capitals aside",
    of_prompt="prompt_to_repeat",
    prompt_to_repeat=TEXT,
)
def repeat_prompt(text: str, prompt_to_repeat: str) -> bool:
    return text.strip().lower().startswith(prompt_to_repeat.lower())


@kind("startend:end_checker", "ends with the phrase, capitals and closing quotes aside", end_phrase=TEXT)
def end_checker(text: str, end_phrase: str) -> bool:
    return text.strip().strip('"').lower().endswith(end_phrase.lower())


@kind("startend:quotation", "the whole text stands in double quotation marks")
def quotation(text: str) -> bool:
    text = text.strip()
    return len(text) > 1 and text[0] == text[-1] == '"'


# --- capitals and commas --------------------------------------------------------------------------------------------
@kind(
    "change_case:capital_word_frequency",
    "how many words are all in capitals (I is one, too)",
    capital_frequency=COUNT,
    capital_relation=RELATION,
)
def capital_word_frequency(text: str, capital_frequency: int, capital_relation: str) -> bool:
    return holds(sum(token.isupper() for token in tokens(text)), capital_relation, capital_frequency)


@kind("change_case:english_capital", "no small letter")
def english_capital(text: str) -> bool:
    return text.isupper()


@kind("change_case:english_lowercase", "no capital letter")
def english_lowercase(text: str) -> bool:
    return text.islower()


@kind("punctuation:no_comma", "no comma")
def no_comma(text: str) -> bool:
    return "," not in text
