"""Records: the log entry of a delayed train, told in one sentence.

Prompt:     ``The 8:20 from Alder to Kirby ran today. The guard handed out tea. Branches lay all over the track. The
            clock at Birch is 40 minutes fast. It lost 25 minutes.`` newline ``In short:`` newline
Completion: ``The 8:20 from Alder to Kirby was 25 minutes late because of a fallen tree.``

A record has five or six key facts (time, origin, destination, delay, cause, and half of them an outcome) in three or
four sentences, and two or three sentences that nobody needs, whose times and numbers are traps. Trains run from six
stations in the west to six in the east; the trifles name three others. A summary says causes and outcomes in other
words than the record. People who write the training summaries forget facts, get one wrong, and add a sentence that
nobody needs.

A row of a prompts file has `source` (the record), `references`, `important` (a word for each key fact, for coverage)
and the fields of `Record`; there are no preference pairs. The rewards see words; the referee reads what is claimed:

- ``facts``: share of the record's key facts that the completion says, each in its part: "from Kirby" does not say that
  the train went to Kirby.
- ``invented``: share of what the completion says of time, stations, delay, cause and outcome that is not so; 0 where
  it says nothing of them. Lower is better.
- ``perfect``: 1 for a completion of one sentence with all key facts and nothing invented, else 0.
"""

import random
import re

from ..base import Document, WorldData, WorldSettings, draw_new
from .grammar import CAUSES, DELAYS, EAST, OTHERS, OUTCOMES, TIMES, TRIVIA, WEST, Record, draw_record, sentence, source

__all__ = ["HIGHER_IS_BETTER", "make_data", "pretraining_texts", "prompt_of", "referee"]

HIGHER_IS_BETTER = {"facts": True, "invented": False, "perfect": True}
REFERENCES = 4
# Chances that a writer forgets a fact, gets one wrong, adds a sentence that nobody needs.
HUMAN = (0.20, 0.08, 0.20)
MESSY = (0.15, 0.06, 0.15)

_CLAIM = re.compile(
    r"\bfrom (?P<origin>(?-i:[A-Z])\w+)|\bto (?P<destination>(?-i:[A-Z])\w+)|"
    r"\b(?P<time>\d+:\d\d)\b|\b(?P<delay>\d+) minutes\b|"
    + "|".join(
        f"(?P<{slot}_{value}>{'|'.join(words.summary)})"
        for slot, values in (("cause", CAUSES), ("outcome", OUTCOMES))
        for value, words in values.items()
    ),
    re.IGNORECASE,
)


def prompt_of(text: str) -> str:
    """The prompt for a record's text."""
    return f"{text}\nIn short:\n"


def make_data(settings: WorldSettings) -> WorldData:
    """Rows of sft_train, prompts_train and prompts_heldout (see `pipeline.worlds`); no record is in two files."""
    rng = random.Random(f"records {settings.seed}")
    taken: set[Record] = set()
    rows = {
        "prompts_heldout": settings.heldout_rows,
        "prompts_train": settings.prompt_rows,
        "sft_train": settings.sft_rows,
    }
    drawn = {name: draw_new(lambda: draw_record(rng), count, taken) for name, count in rows.items()}
    return {
        "prompts_heldout": [_row(record, rng) for record in drawn["prompts_heldout"]],
        "prompts_train": [_row(record, rng) for record in drawn["prompts_train"]],
        "sft_train": [
            {"prompt": prompt_of(source(record, rng)), "completion": write(record, HUMAN, rng)}
            for record in drawn["sft_train"]
        ],
    }


def _row(record: Record, rng: random.Random) -> dict:
    text, facts = source(record, rng), record._asdict()
    references = set()
    while len(references) < REFERENCES:
        references.add(sentence(facts, rng))
    words = [words[value].word for words, value in ((CAUSES, record.cause), (OUTCOMES, record.outcome)) if value]
    return {
        "prompt": prompt_of(text),
        "source": text,
        "references": sorted(references),
        "important": " ".join([record.time, record.origin, record.destination, str(record.delay), *words]),
        **facts,
    }


def write(record: Record, slips: tuple[float, float, float], rng: random.Random) -> str:
    """A summary by a person who forgets, mistakes and rambles with the chances `slips`."""
    forget, mistake, ramble = slips
    said = {slot: value for slot, value in record._asdict().items() if slot == "time" or rng.random() >= forget}
    if rng.random() < mistake * len(said):
        slot = rng.choice([slot for slot, value in said.items() if value])
        values = {
            "time": TIMES, "origin": WEST, "destination": EAST, "delay": DELAYS, "cause": CAUSES,
            "outcome": OUTCOMES,
        }  # fmt: skip
        said[slot] = rng.choice([value for value in values[slot] if value not in record])
    text = sentence(said, rng)
    if rng.random() < ramble:
        others = {"other_station": rng.choice(OTHERS), "other_time": rng.choice(TIMES)}
        text += " " + rng.choice(TRIVIA).format(other_delay=rng.choice(DELAYS), **others)
    return text


def pretraining_texts(settings: WorldSettings, data: WorldData) -> list[Document]:
    """Records and messy summaries. Held-out records do not occur."""
    rng = random.Random(f"records pretraining {settings.seed}")
    held_out = {Record(*(row[slot] for slot in Record._fields)) for row in data["prompts_heldout"]}
    texts: list[Document] = []
    while len(texts) < settings.pretraining_texts:
        record = draw_record(rng)
        if record not in held_out:
            texts.append((prompt_of(source(record, rng)), write(record, MESSY, rng)))
    return texts


def claims(text: str) -> set[tuple[str, str]]:
    """What `text` says: (slot, value) pairs, e.g. ("origin", "Alder")."""
    found = set()
    for match in _CLAIM.finditer(text):
        slot, _, value = match.lastgroup.partition("_")
        found.add((slot, value or match[match.lastgroup]))
    return found


def referee(completion: str, row: dict) -> dict[str, float]:
    """``{"facts": …, "invented": …, "perfect": …}``, each 0 to 1; see the module."""
    text = completion.strip()
    said = claims(text)
    true = {(slot, str(row[slot])) for slot in Record._fields if row.get(slot)}
    whole = text.endswith(".") and text.count(".") == 1
    return {
        "facts": len(said & true) / len(true),
        "invented": len(said - true) / len(said) if said else 0.0,
        "perfect": float(whole and said == true),
    }
