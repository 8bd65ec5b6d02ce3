"""Kinds that add something to a text (title, postscript, placeholders), and those of its letters and marks."""

import random
import re

from rewards.instructions.reading import sentences

from .kinds import ADDED, LETTERS, MARKS, Kind, Kwargs, Written, content_words, either
from .requests import Request

END_PHRASES = (
    "Is there anything else I can help with?",
    "That is all you need to know.",
    "Thank you for reading.",
    "Any other questions?",
    "I hope that you agree.",
    "And that is the whole story.",
    "Let me know what you think.",
    "This is my final answer.",
    "See you next time.",
    "Nothing more needs to be said.",
)
TITLES = ("{}", "All About {}", "A Word on {}", "Notes on {}", "The Joy of {}", "Thinking of {}")
POSTSCRIPTS = (
    "There is always more to say about {}.",
    "I hope that this helps.",
    "Ask me again if you want to know more about {}.",
    "Do not forget to share this.",
    "I nearly forgot: enjoy {}!",
)
OPENINGS = ("Dear [name],", "[date]", "To: [recipient]", "Hello [name],", "[title]")
CLOSINGS = (
    "Contact [name] at [email address] to hear more about {}.",
    "Kind regards, [your name]",
    "Call us at [phone number] or visit [address].",
    "See [website] for more about {}.",
    "We meet at [place] on [date].",
)


def _title(text: str, request: Request, rng: random.Random) -> Written:
    return f"<<{rng.choice(TITLES).format(request.topic.title())}>>\n\n{text}", {}


def _postscript(text: str, request: Request, rng: random.Random) -> Written:
    marker = either("P.S.", "P.P.S", rng, 0.8)
    return f"{text}\n\n{marker} {rng.choice(POSTSCRIPTS).format(request.topic)}", {"postscript_marker": marker}


def _placeholders(text: str, request: Request, rng: random.Random) -> Written:
    count = rng.randint(2, 4)
    if rng.random() < 0.6:
        text = f"{rng.choice(OPENINGS)}\n\n{text}"
    closings = iter(rng.sample(CLOSINGS, len(CLOSINGS)))
    while len(re.findall(r"\[.*?\]", text)) < count:
        text = f"{text}\n{next(closings).format(request.topic)}"
    return text, {"num_placeholders": count}


def _highlights(text: str, request: Request, rng: random.Random) -> Written:
    count = rng.randint(2, 4)
    text, mark = text.replace("*", ""), either("*", "**", rng)
    words = [match for match in re.finditer(r"\b[A-Za-z]{4,}(?: [a-z]{4,})?\b", text)]
    if len(words) < count:
        return None
    for match in sorted(rng.sample(words, count), key=lambda match: -match.start()):
        text = f"{text[: match.start()]}{mark}{match[0]}{mark}{text[match.end() :]}"
    return text, {"num_highlights": count}


def _end(text: str, request: Request, rng: random.Random) -> Written:
    phrase = rng.choice(END_PHRASES)
    return text + rng.choice((" ", "\n\n")) + phrase, {"end_phrase": phrase}


def _capital_words(text: str, request: Request, rng: random.Random) -> Written:
    words = content_words(text)
    shouted = rng.sample(words, min(len(words), rng.randint(1, 5)))
    if not shouted:
        return None
    text = re.sub(rf"\b({'|'.join(shouted)})\b", lambda match: match[0].upper(), text, flags=re.IGNORECASE)
    count = len(re.findall(r"\b[A-Z]{2,}\b", text))
    if rng.random() < 0.6:
        return text, {"capital_frequency": rng.randint(1, count), "capital_relation": "at least"}
    return text, {"capital_frequency": count + rng.randint(2, 8), "capital_relation": "less than"}


def _draw_capital_words(request: Request, rng: random.Random) -> Kwargs:
    relation = either("at least", "less than", rng)
    return {"capital_frequency": rng.randint(2, 6), "capital_relation": relation}


def _no_parameters(request: Request, rng: random.Random) -> Kwargs:
    return {}


def _quoted(text: str, request: Request, rng: random.Random) -> Written:
    return f'"{text.strip().replace(chr(34), chr(39))}"', {}


def _without_commas(text: str, request: Request, rng: random.Random) -> Written:
    said = [sentence.replace(",", "") for sentence in sentences(text)]
    return (text.replace(",", ""), {}) if said else None


CASE, END = frozenset({"case"}), frozenset({"end"})
KINDS = (
    Kind(
        "detectable_format:title",
        (
            "Your answer must have a title in double angle brackets, such as <<title of the text>>.",
            "Give it a title, wrapped in double angular brackets like <<this>>.",
            "Begin with a title in double angle brackets: <<title>>.",
        ),
        _no_parameters,
        _title,
        ADDED,
    ),
    Kind(
        "detectable_content:postscript",
        (
            "At the end of your answer, add a postscript that starts with {postscript_marker}",
            "Add a postscript beginning with {postscript_marker} at the end.",
            "Finish with a postscript, marked by {postscript_marker}",
        ),
        lambda request, rng: {"postscript_marker": either("P.S.", "P.P.S", rng, 0.7)},
        _postscript,
        ADDED,
        END,
    ),
    Kind(
        "detectable_content:number_placeholders",
        (
            "The answer must contain at least {num_placeholders} placeholders in square brackets, such as [address].",
            "Use at least {num_placeholders} placeholders like [name] for what I will fill in later.",
            "Leave at least {num_placeholders} blanks in square brackets, for example [date].",
        ),
        lambda request, rng: {"num_placeholders": rng.randint(2, 5)},
        _placeholders,
        ADDED,
    ),
    Kind(
        "detectable_format:number_highlighted_sections",
        (
            "Highlight at least {num_highlights} sections of your answer in markdown, such as *highlighted section*.",
            "Mark at least {num_highlights} phrases in markdown, like *this*.",
            "Put at least {num_highlights} parts between asterisks (*highlighted part*).",
        ),
        lambda request, rng: {"num_highlights": rng.randint(2, 5)},
        _highlights,
        ADDED,
        frozenset({"stars"}),
    ),
    Kind(
        "startend:end_checker",
        (
            "Finish your answer with this exact phrase: {end_phrase} No other words should follow it.",
            'The very last sentence must be "{end_phrase}"',
            'End the text with the words "{end_phrase}" and write nothing behind them.',
        ),
        lambda request, rng: {"end_phrase": rng.choice(END_PHRASES)},
        _end,
        ADDED,
        END,
    ),
    Kind(
        "change_case:capital_word_frequency",
        (
            "Words in all capital letters should appear {capital_relation} {capital_frequency} times.",
            "Write {capital_relation} {capital_frequency} words in capital letters, like THIS.",
        ),
        _draw_capital_words,
        _capital_words,
        LETTERS,
        CASE,
    ),
    Kind(
        "change_case:english_capital",
        (
            "Your entire answer must be in English and in all capital letters.",
            "Write everything in capital letters.",
            "USE ONLY CAPITAL LETTERS in the whole answer.",
            "No lowercase letters are allowed.",
        ),
        _no_parameters,
        lambda text, request, rng: (text.upper(), {}),
        LETTERS,
        CASE,
    ),
    Kind(
        "change_case:english_lowercase",
        (
            "Your entire answer must be in English and in all lowercase letters. No capital letters are allowed.",
            "Write everything in small letters, without a single capital.",
            "use only lowercase letters in the whole answer.",
            "No capital letters, please.",
        ),
        _no_parameters,
        lambda text, request, rng: (text.lower(), {}),
        LETTERS,
        CASE,
    ),
    Kind(
        "punctuation:no_comma",
        (
            "Do not use any commas in your answer.",
            "Refrain from the use of commas.",
            "Your whole answer must be written without commas.",
            "Avoid commas.",
        ),
        _no_parameters,
        _without_commas,
        MARKS,
    ),
    Kind(
        "startend:quotation",
        (
            "Wrap your entire answer in double quotation marks.",
            "Put the whole answer between double quotation marks.",
            "Your answer must begin and end with a double quotation mark.",
        ),
        _no_parameters,
        _quoted,
        MARKS,
        END,
    ),
)
