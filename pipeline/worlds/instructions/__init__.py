"""Instructions that can be checked: a request with one to three instructions on how the answer is to be written.

    user: Write a letter to a friend about honey bees. Do not use any commas in your answer. Add a postscript beginning
          with P.S. at the end.

Made here are prompts (messages) with their instructions in the format of IFEval, `instruction_id_list` and `kwargs`,
and SFT rows: the base answers plain requests, a program writes the answers into a form (`write` of a kind) and reads
the instructions off them that they meet. The base is not made here: it is a pretrained model (`gguf_package`, `gguf`).

Held out from all training are a fifth of the topics, and five kinds of instruction (`unseen.py`): ``prompts_heldout``
has other topics, ``unseen_kinds`` other topics and one of these kinds a row. The kinds are those of Zhou et al. 2023
(arXiv 2311.07911) and Pyatkin et al. 2025 (arXiv 2507.02833); no prompt of theirs is used.
"""

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rewards.instructions import met
from rewards.instructions.reading import words

from ..base import WorldData, WorldSettings
from . import contents, counts, forms
from .answers import answers, shortened_to
from .kinds import FORM, Kind, Kwargs
from .requests import Request, draw_request
from .unseen import UNSEEN

HIGHER_IS_BETTER = {"all_met": True, "met": True, "distinct_2": True, "repeated": False}
KINDS: tuple[Kind, ...] = (*forms.KINDS, *contents.KINDS, *counts.KINDS)
MOST = 3  # instructions of a prompt
_FORMS = 5  # SFT rows written from one answer of the base, each with other instructions
_NUMBER = ((1, 2, MOST), (45, 35, 20))  # how many instructions, and how often so many
# What SFT needs more rows of: the first words of an answer decide these forms, and the base hardly knows any of them
_OFTEN = {
    "change_case:english_capital": 4,
    "change_case:english_lowercase": 3,
    "combination:repeat_prompt": 3,
    "combination:two_responses": 3,
    "detectable_format:json_format": 2,
    "punctuation:no_comma": 2,
}
_WITH_ALONE = frozenset({"keywords:existence", "keywords:forbidden_words"})


def referee(completion: str, row: Mapping[str, Any]) -> dict[str, float]:
    """`all_met` (1 if all instructions are met), `met` (the share that is), `distinct_2` (different pairs of words
    over all pairs), `repeated` (share of the runs of four words that occurred before).

    Source: Li et al. 2016, arXiv 1510.03055 (distinct-n).
    """
    prompt = row["prompt"]
    marks = [
        met(id, completion, prompt, **kwargs)
        for id, kwargs in zip(row["instruction_id_list"], row["kwargs"], strict=True)
    ]
    said = [word.lower() for word in words(completion)]
    pairs = list(zip(said, said[1:], strict=False))
    return {
        "all_met": float(all(marks)),
        "met": sum(marks) / len(marks),
        "distinct_2": len(set(pairs)) / len(pairs) if pairs else 1.0,
        "repeated": repeated(said),
    }


def repeated(said: list[str]) -> float:
    """The share of the runs of four words that occurred before."""
    fours = list(zip(said, said[1:], said[2:], said[3:], strict=False))
    return 1 - len(set(fours)) / len(fours) if fours else 0.0


def make_data(settings: WorldSettings) -> WorldData:
    """Rows of the prompts; those of SFT come with `answered_by`."""
    rng = random.Random(f"instructions {settings.seed}")
    taken: set[str] = set()
    heldout = [_new_row(rng, True, taken) for _ in range(settings.heldout_rows)]
    unseen = [_new_row(rng, True, taken, unseen=True) for _ in range(settings.heldout_rows)]
    train = [_new_row(rng, False, taken) for _ in range(settings.prompt_rows)]
    return {"prompts_heldout": heldout, "unseen_kinds": unseen, "prompts_train": train}


def answered_by(base: Path, data: WorldData, settings: WorldSettings) -> WorldData:
    """``sft_train``: prompts whose completions, by the model in the folder `base`, meet their instructions."""
    rng = random.Random(f"instructions, answered {settings.seed}")
    requests = [draw_request(rng, False) for _ in range(settings.sft_rows // _FORMS)]
    texts = answers(base, [request.text for request in requests], settings.seed)
    written = [pair for pair in zip(requests, texts, strict=True) if _is_sensible(pair[1])]
    rows: list[dict] = []
    while len(rows) < settings.sft_rows and written:
        for request, text in rng.sample(written, len(written)):
            row = revised(request, text, rng)
            if row is not None and len(rows) < settings.sft_rows:
                rows.append(row)
    return {"sft_train": rows}


def _is_sensible(text: str) -> bool:
    """Whether an answer is a text to learn from: some words, and few of them again and again."""
    said = [word.lower() for word in words(text)]
    return len(said) >= 15 and repeated(said) < 0.1


def draw_kinds(rng: random.Random, often: Mapping[str, int] | None = None) -> list[Kind]:
    """One to three kinds that do not clash, in random order; those in `often` come first so many times as often."""
    wanted = rng.choices(*_NUMBER)[0]
    first = rng.choices(KINDS, [(often or {}).get(kind.id, 1) for kind in KINDS])[0]
    others = rng.sample([kind for kind in KINDS if kind is not first], len(KINDS) - 1)
    chosen = [first]
    for kind in others:
        if len(chosen) < wanted and all(_fit(kind, other) for other in chosen):
            chosen.append(kind)
    return chosen


def _fit(one: Kind, other: Kind) -> bool:
    if one.alone or other.alone:
        return bool({one.id, other.id} & _WITH_ALONE) and not (one.alone and other.alone) and not _closed((one, other))
    return not one.clashes & other.clashes


def _closed(kinds) -> bool:
    return any(kind.id == "detectable_format:constrained_response" for kind in kinds)


def _new_row(rng: random.Random, held_out: bool, taken: set[str], unseen: bool = False) -> dict:
    """A prompt that is not in `taken`, with its instructions."""
    while True:
        if unseen:
            request = draw_request(rng, held_out)
            id, draw = rng.choice(list(UNSEEN.items()))
            said, kwargs = draw(request, rng)
            row = _row(request, [(id, said, kwargs)], rng)
        else:
            kinds = draw_kinds(rng)
            request = draw_request(rng, held_out, closed=_closed(kinds))
            drawn = [(kind, kind.draw(request, rng)) for kind in kinds]
            row = _row(request, [(kind.id, kind.word(kwargs, rng), kwargs) for kind, kwargs in drawn], rng)
        if row["prompt"][0]["content"] not in taken:
            taken.add(row["prompt"][0]["content"])
            return row


def _row(request: Request, instructions: list[tuple[str, str, Kwargs]], rng: random.Random) -> dict:
    """A row of a data file: the request with its instructions behind it, or as a list below it."""
    said = [words for _, words, _ in instructions]
    layout = rng.random()
    if "combination:repeat_prompt" in (id for id, _, _ in instructions) or layout < 0.7:
        content = rng.choice((" ", " ", "\n\n")).join((request.text, " ".join(said)))
    elif layout < 0.85:
        content = "\n".join((request.text, *(f"- {each}" for each in said)))
    else:
        content = "\n".join((request.text, *said))
    return {
        "prompt": [{"role": "user", "content": content}],
        "instruction_id_list": [id for id, _, _ in instructions],
        "kwargs": [kwargs for _, _, kwargs in instructions],
        "topic": request.topic,
    }


def revised(request: Request, text: str, rng: random.Random) -> dict | None:
    """An SFT row made of the answer `text`: written into the form of some kinds, with their instructions read off it.

    None where the text cannot be made to meet the kinds that were drawn.
    """
    kinds = draw_kinds(rng, _OFTEN)
    if rng.random() < 0.5 and not any(kind.rank == FORM for kind in kinds):  # a form needs its sentences
        text = shortened_to(text, rng.randint(1, 5))
    if _closed(kinds):
        request = draw_request(rng, False, closed=True)
    said: dict[str, Kwargs] = {}
    for kind in sorted(kinds, key=lambda kind: kind.rank):
        written = kind.write(text, request, rng)
        if not written:
            return None
        text, said[kind.id] = written
    if not all(met(id, text, **kwargs) for id, kwargs in said.items()):
        return None  # what came later undid what came before
    instructions = [(kind.id, kind.word(said[kind.id], rng), said[kind.id]) for kind in kinds]
    return _row(request, instructions, rng) | {"completion": [{"role": "assistant", "content": text}]}
