"""Kinds that decide the form of a whole text: lists, sections, paragraphs, JSON, two answers."""

import json
import random

from .kinds import FORM, Kind, Kwargs, Written, groups
from .requests import Request

FIRST_WORDS = "today many when however sometimes imagine people first although every finally another".split()
SECTIONS = ("SECTION", "PART", "Section", "Part", "CHAPTER")


def _no_parameters(request: Request, rng: random.Random) -> Kwargs:
    return {}


def _count(name: str, lowest: int, highest: int):
    return lambda request, rng: {name: rng.randint(lowest, highest)}


def _bullets(text: str, request: Request, rng: random.Random) -> Written:
    count = rng.randint(2, 5)
    points = groups(text, count)
    return points and ("\n".join(f"* {point}" for point in points), {"num_bullets": count})


def _items(text: str, request: Request, rng: random.Random) -> Written:
    count = rng.randint(2, 5)
    points = groups(text, count)
    return points and (
        "\n".join(f"{i}. {point}" for i, point in enumerate(points, 1)),
        {"num_items": count},
    )


def _sections(text: str, request: Request, rng: random.Random) -> Written:
    count, name = rng.randint(2, 4), rng.choice(SECTIONS)
    parts = groups(text, count)
    return parts and (
        "\n\n".join(f"{name} {i}\n{part}" for i, part in enumerate(parts, 1)),
        {"section_spliter": name, "num_sections": count},
    )


def _divided(text: str, request: Request, rng: random.Random) -> Written:
    count = rng.randint(2, 4)
    parts = groups(text, count)
    return parts and ("\n\n***\n\n".join(parts), {"num_paragraphs": count})


def _first_word(text: str, request: Request, rng: random.Random) -> Written:
    count = rng.randint(2, 4)
    parts = groups(text, count)
    if parts is None:
        return None
    nth = rng.randint(1, count)
    word = parts[nth - 1].split()[0].strip("\"'“”(),.!?:;").lower()
    if not word.isalpha():
        return None
    return "\n\n".join(parts), {"num_paragraphs": count, "nth_paragraph": nth, "first_word": word}


def _draw_first_word(request: Request, rng: random.Random) -> Kwargs:
    count = rng.randint(2, 4)
    return {
        "num_paragraphs": count,
        "nth_paragraph": rng.randint(1, count),
        "first_word": rng.choice(FIRST_WORDS),
    }


def _json(text: str, request: Request, rng: random.Random) -> Written:
    points = groups(text, rng.randint(1, 3))
    if points is None:
        return None
    topic = request.topic
    shapes = (
        {"topic": topic, "text": " ".join(points)},
        {"title": topic.capitalize(), "points": points},
        {f"part {i}": point for i, point in enumerate(points, 1)},
        {"request": request.text, "answer": " ".join(points)},
    )
    written = json.dumps(rng.choice(shapes), ensure_ascii=False, indent=rng.choice((None, 1, 2)))
    return (f"```json\n{written}\n```" if rng.random() < 0.3 else written), {}


def _two_answers(text: str, request: Request, rng: random.Random) -> Written:
    both = groups(text, 2)
    return both and ("\n\n******\n\n".join(both), {})


def _repeated(text: str, request: Request, rng: random.Random) -> Written:
    return f"{request.text}\n\n{text}", {"prompt_to_repeat": request.text}


def _answered(text: str, request: Request, rng: random.Random) -> Written:
    return (f"My answer is {rng.choice(('yes', 'no', 'maybe'))}.", {}) if request.closed else None


STRUCTURE = frozenset({"structure"})
KINDS = (
    Kind(
        "detectable_format:number_bullet_lists",
        (
            "Your answer must have exactly {num_bullets} bullet points, each on its own line like: * This is a point.",
            "Use exactly {num_bullets} bullet points. Begin each with an asterisk (* like this).",
            "Answer with a markdown list of exactly {num_bullets} bullets (* point).",
            "The answer must contain exactly {num_bullets} bullet points in markdown, such as:\n* This is point one.\n"
            "* This is point two",
        ),
        _count("num_bullets", 2, 6),
        _bullets,
        FORM,
        STRUCTURE,
    ),
    Kind(
        "detectable_format:number_numbered_items",
        (
            "Answer with a numbered list of exactly {num_items} items (1. 2. and so on).",
            "Write exactly {num_items} numbered points, each on a line of its own.",
            "Number your points; there must be exactly {num_items} of them.",
        ),
        _count("num_items", 2, 6),
        _items,
        FORM,
        STRUCTURE,
    ),
    Kind(
        "detectable_format:multiple_sections",
        (
            "Your answer must have {num_sections} sections. Mark the beginning of each with {section_spliter} X, "
            "such as:\n{section_spliter} 1\n[content of section 1]\n{section_spliter} 2\n[content of section 2]",
            "Divide the text into {num_sections} sections, and begin each with {section_spliter} and its number.",
            "Write {num_sections} parts, headed {section_spliter} 1, {section_spliter} 2 and so on.",
        ),
        lambda request, rng: {"section_spliter": rng.choice(SECTIONS), "num_sections": rng.randint(2, 5)},
        _sections,
        FORM,
        frozenset({"structure", "case"}),
    ),
    Kind(
        "length_constraints:number_paragraphs",
        (
            "Write exactly {num_paragraphs} paragraphs, separated by the markdown divider: ***",
            "There should be {num_paragraphs} paragraphs. Put *** between two paragraphs.",
            "Your answer must contain {num_paragraphs} paragraphs with the divider *** between them.",
        ),
        _count("num_paragraphs", 2, 5),
        _divided,
        FORM,
        STRUCTURE,
    ),
    Kind(
        "length_constraints:nth_paragraph_first_word",
        (
            "Write {num_paragraphs} paragraphs, separated by two new lines. Paragraph {nth_paragraph} must start with "
            "the word {first_word}.",
            "There should be {num_paragraphs} paragraphs, with nothing but a blank line between them, and paragraph "
            '{nth_paragraph} must begin with "{first_word}".',
            "Answer in exactly {num_paragraphs} paragraphs with a blank line between them. The first word of "
            "paragraph {nth_paragraph} has to be {first_word}.",
        ),
        _draw_first_word,
        _first_word,
        FORM,
        STRUCTURE,
    ),
    Kind(
        "detectable_format:json_format",
        (
            "The entire output must be valid JSON.",
            "Wrap your whole answer in JSON format. You may use markdown ticks such as ```.",
            "Answer in JSON and write nothing besides it.",
            "Please give the result as a JSON object.",
        ),
        _no_parameters,
        _json,
        FORM,
        alone=True,
    ),
    Kind(
        "combination:two_responses",
        (
            "Give two different responses, separated by six asterisks: ******.",
            "I want two different answers. Put ****** between them and nothing else.",
            "Write two versions, divided by 6 asterisk symbols (******).",
        ),
        _no_parameters,
        _two_answers,
        FORM,
        alone=True,
    ),
    Kind(
        "combination:repeat_prompt",
        (
            "First repeat the request above word for word without change, then give your answer. Do not say anything "
            "before repeating it.",
            "Before you answer, repeat the first request exactly as it is; leave out this sentence.",
            "Start by repeating the request without changing a word (not this sentence), then answer it.",
        ),
        lambda request, rng: {"prompt_to_repeat": request.text},
        _repeated,
        FORM,
        alone=True,
    ),
    Kind(
        "detectable_format:constrained_response",
        (
            "Answer with one of these: 'My answer is yes.', 'My answer is no.', 'My answer is maybe.'",
            "Choose one of the following answers: My answer is yes. / My answer is no. / My answer is maybe.",
            "Your answer must contain exactly one of these sentences: 'My answer is yes.' or 'My answer is no.' or "
            "'My answer is maybe.'",
        ),
        _no_parameters,
        _answered,
        FORM,
        alone=True,
    ),
)
