"""Reasoning: words spelled backward, the task spell_backward of the package reasoning_gym.

Prompt:     ``Spell this word backward (example: sun -> nus): plumb`` and a newline
Completion: ``bmulp``

PPO takes its prompts from reasoning_gym itself (`dataset: reasoning_gym:spell_backward`). Made here are prompts held
out from all training, and documents for the base: such tasks with the answers of a careless person, who now and then
swaps two letters, drops one, or forgets to turn the word round. The referee is the task's verifier, taken strictly. No
SFT data and no preference pairs: PPO starts from the base.
"""

import itertools
import random

from rewards.reasoning import ReasoningGym, rows_of

from .base import Document, WorldData, WorldSettings

HIGHER_IS_BETTER = {"right": True}
TASK, OPTIONS = "spell_backward", {"min_word_len": 3, "max_word_len": 6}
SLIPS = 0.4  # share of careless answers that are wrong
_FAR = 10**6  # an entry is drawn by seed + index of its task; PPO's begin at 0


def referee(completion: str, row: dict) -> dict[str, float]:
    """``{"right": …}``: 1 if the completion is the right word and nothing else, 0 if it is not.

    Raises:
        RewardError: the package reasoning_gym is not installed.
    """
    [score] = ReasoningGym()([row["prompt"]], [completion], reasoning_gym=[row["reasoning_gym"]])
    return {"right": float(score == 1.0)}


def make_data(settings: WorldSettings) -> WorldData:
    """Rows of `prompts_heldout`, all of them different."""
    found: dict[str, dict] = {}
    for row in _entries(settings, 4 * settings.heldout_rows):
        if len(found) < settings.heldout_rows:
            found.setdefault(row["prompt"], row)
    return {"prompts_heldout": list(found.values())}


def pretraining_texts(settings: WorldSettings, data: WorldData) -> list[Document]:
    """Words with careless answers; none of them is held out."""
    heldout = {row["prompt"] for row in data["prompts_heldout"]}
    rng = random.Random(f"reasoning {settings.seed}")
    rows = (row for row in _entries(settings, 2 * settings.pretraining_texts) if row["prompt"] not in heldout)
    return [(row["prompt"], careless(row, rng)) for row in itertools.islice(rows, settings.pretraining_texts)]


def careless(row: dict, rng: random.Random) -> str:
    """The answer of somebody who is right in 1 - `SLIPS` of the cases."""
    letters = list(row["answer"])
    if rng.random() >= SLIPS:
        return row["answer"]
    slip, at = rng.choice(("swap", "drop", "forward")), rng.randrange(len(letters) - 1)
    if slip == "swap":
        letters[at], letters[at + 1] = letters[at + 1], letters[at]
    elif slip == "drop":
        del letters[at]
    return "".join(reversed(letters) if slip == "forward" else letters)


def _entries(settings: WorldSettings, count: int) -> list[dict]:
    """`count` entries, other ones for each seed, with a prompt that ends in a newline."""
    rows = rows_of(TASK, OPTIONS | {"seed": _FAR * (settings.seed + 1), "size": count})
    return [{**row, "prompt": f"{row['question']}\n"} for row in rows]
