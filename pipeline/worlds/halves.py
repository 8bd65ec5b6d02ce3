"""Preference pairs of one's own in two halves: one trains PPO's reward model, the other a second one, which judges.

A reward model that PPO trained against cannot judge what came out of it. A second one, of the same kind but of pairs
that PPO's never saw, can. Rows are kept as they are, `chosen` and `rejected` as whole dialogues, as in HH-RLHF (Bai et
al. 2022, arXiv 2204.05862). Pairs about one prompt stay together, so that no prompt is in two parts.

Files: ``preferences_train`` (SFT, reward model and PPO), ``preferences_referee`` (the second reward model),
``preferences_heldout``. It has no referee of its own and trains no base.
"""

import gzip
import json
import random
import zlib
from pathlib import Path

from ..errors import UserError
from .base import WorldData, WorldSettings

HIGHER_IS_BETTER: dict[str, bool] = {}


def make_data(settings: WorldSettings) -> WorldData:
    """Rows of the three files. `preference_heldout_rows` of them at least are held out.

    Raises:
        UserError: no `data_path`, or a line of it that is no pair; too few pairs for what is held out.
    """
    if settings.data_path is None:
        raise UserError("The world halves reads pairs: give --data_path, a .jsonl or .jsonl.gz file.")
    by_prompt: dict[str, list[dict]] = {}
    for row in _rows(Path(settings.data_path)):
        by_prompt.setdefault(_prompt(row), []).append(row)
    prompts = sorted(by_prompt)
    random.Random(f"halves {settings.seed}").shuffle(prompts)
    heldout: list[dict] = []
    while prompts and len(heldout) < settings.preference_heldout_rows:
        heldout += by_prompt[prompts.pop()]
    halves: tuple[list[dict], list[dict]] = ([], [])
    for prompt in prompts:
        min(halves, key=len).extend(by_prompt[prompt])
    if not halves[1]:
        raise UserError(
            f"{settings.data_path} has too few pairs to hold out {settings.preference_heldout_rows} and halve the "
            "rest: give more pairs or a smaller preference_heldout_rows."
        )
    return {"preferences_train": halves[0], "preferences_referee": halves[1], "preferences_heldout": heldout}


def _prompt(row: dict) -> str:
    """What the two texts share, up to the last turn of the assistant."""
    return row["chosen"].rpartition("\n\nAssistant:")[0]


def _rows(path: Path):
    """The pairs of a file, each as a dict of `chosen` and `rejected`."""
    opened = gzip.open if path.suffix == ".gz" else open
    try:
        with opened(path, "rt", encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                row = _read(line)
                if not isinstance(row, dict) or not all(isinstance(row.get(x), str) for x in ("chosen", "rejected")):
                    raise UserError(f"{path}, line {number}: there are no texts chosen and rejected.")
                yield {"chosen": row["chosen"], "rejected": row["rejected"]}
    except OSError as error:
        raise UserError(f"data_path {path}: {error.strerror or 'cannot be read'}. Give a file of pairs.") from None
    except (UnicodeDecodeError, EOFError, zlib.error):
        raise UserError(f"{path} cannot be read: give a .jsonl or .jsonl.gz file in UTF-8.") from None


def _read(line: str):
    try:
        return json.loads(line)
    except ValueError:
        return None
