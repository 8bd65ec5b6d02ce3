"""Translation: English into Ondri, an invented language with cases, three noun classes and the verb at the end.

Prompt:     ``some apples were seen by the old women near a river yesterday.`` and a newline
Completion: ``elka tamuri ortari larul pelurin doretak.``

The grammar is in `language`, all wordings of a meaning in `sentences`. References are up to four of them; training
texts are a learner's (`learner`): words left out, cases and agreement wrong, the verb where English has it.

The referee reads a completion with the exact grammar. It knows every right wording, not only the references, and
nothing of n-grams; the rewards (BLEU, chrF) know the references and nothing of grammar or meaning. No preference
pairs: the recipe has no reward model.
"""

import random

from ..base import Document, WorldData, WorldSettings, draw_new
from .language import Meaning, Phrase, read
from .learner import BEGINNER, LEARNER, write
from .sentences import all_wordings, draw_meaning, in_english

__all__ = ["HIGHER_IS_BETTER", "columns_of", "make_data", "pretraining_texts", "prompt_of", "referee"]

HIGHER_IS_BETTER = {"right": True, "grammar": True}
REFERENCES = 4


def prompt_of(english: str) -> str:
    """The prompt for an English sentence."""
    return english + "\n"


def columns_of(meaning: Meaning) -> dict[str, str]:
    """One column for each part of `meaning`: lemmas, "" for what is not said."""

    def said(phrase: Phrase | None) -> str:
        if phrase is None:
            return ""
        return " ".join(filter(None, ("many" if phrase.plural else "one", phrase.adjective, phrase.noun)))

    place = f"{meaning.relation} {said(meaning.place)}" if meaning.place else ""
    return {
        "verb": meaning.verb,
        "tense": meaning.tense,
        "subject": said(meaning.subject),
        "object": said(meaning.object),
        "place": place,
        "time": meaning.time or "",
    }


def referee(completion: str, row: dict) -> dict[str, float]:
    """``{"right": …, "grammar": …}``, each 0 or 1.

    `grammar`: a sentence of Ondri, each word known, each ending as the grammar wants it. `right`: such a sentence, and
    it means exactly what the row means, whatever the order of its parts and the choice among synonyms.
    """
    meaning = read(completion)
    right = meaning is not None and all(row[part] == said for part, said in columns_of(meaning).items())
    return {"right": float(right), "grammar": float(meaning is not None)}


def prompt_row(meaning: Meaning, rng: random.Random) -> dict:
    """A row of a prompts file: an English wording, up to four right translations, the parts of the meaning."""
    wordings = all_wordings(meaning)
    references = rng.sample(wordings, min(REFERENCES, len(wordings)))
    return {"prompt": prompt_of(in_english(meaning, rng)), "references": references, **columns_of(meaning)}


def make_data(settings: WorldSettings) -> WorldData:
    """Rows of `sft_train`, `prompts_train` and `prompts_heldout` (see `pipeline.worlds`).

    What a held-out sentence means is in no training row, whatever the wording.
    """
    rng = random.Random(f"translation {settings.seed}")
    taken: set[Meaning] = set()
    held, prompts, pairs = (
        draw_new(lambda: draw_meaning(rng), count, taken)
        for count in (settings.heldout_rows, settings.prompt_rows, settings.sft_rows)
    )
    return {
        "prompts_heldout": [prompt_row(meaning, rng) for meaning in held],
        "prompts_train": [prompt_row(meaning, rng) for meaning in prompts],
        "sft_train": [
            {"prompt": prompt_of(in_english(meaning, rng)), "completion": write(meaning, LEARNER, rng)}
            for meaning in pairs
        ],
    }


def pretraining_texts(settings: WorldSettings, data: WorldData) -> list[Document]:
    """A beginner's translations into Ondri, some the other way round, some text in one language alone.

    What the held-out sentences mean does not occur.
    """
    rng = random.Random(f"translation pretraining {settings.seed}")
    parts = list(columns_of(draw_meaning(random.Random(0))))
    held_out = {tuple(row[part] for part in parts) for row in data["prompts_heldout"]}
    texts: list[Document] = []
    while len(texts) < settings.pretraining_texts:
        meaning = draw_meaning(rng)
        if tuple(columns_of(meaning).values()) not in held_out:
            texts.append(_document(meaning, rng))
    return texts


def _document(meaning: Meaning, rng: random.Random) -> Document:
    english, ondri = in_english(meaning, rng), write(meaning, BEGINNER, rng)
    kind = rng.random()
    if kind < 0.05:
        return "", ondri
    return ("", f"{ondri}\n= {english}") if kind < 0.1 else (prompt_of(english), ondri)
