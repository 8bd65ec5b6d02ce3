"""Worlds: small sources of data that carry a recipe from nothing to PPO, each with its own referee.

May import: runs and below.
Begin with: base.py, then field_notes/, the world of the default recipe.

A world is a module or package here with this interface:

- ``make_data(settings: WorldSettings) -> WorldData``: rows for the files below, the same for the same settings;
- ``pretraining_texts(settings, data) -> list[Document]``: documents for the base model, nothing of the held-out
  prompts among them;
- ``referee(completion, row) -> dict[str, float]``: the held-out measures, never a training reward. `row` is a row of
  ``prompts_heldout``;
- ``HIGHER_IS_BETTER: dict[str, bool]``: the direction of each measure;
- ``CHAT_FORMAT: ChatFormat``, only where rows are messages: chat template and role tokens of the base's tokenizer.
  Where the rows are games (docs/turns.md), the referee is given a game's messages in place of a text.

Files (JSONL): ``sft_train`` {prompt, completion}; ``preferences_train`` and ``preferences_heldout`` {prompt, chosen,
rejected}; ``prompts_train`` and ``prompts_heldout`` {prompt, references, facts, one column per slot}, where ``facts``
is a list of wanted words or phrases and "a|b" means that either counts. A world leaves out what its recipe has no use
for: the preferences, the facts. A prompt ends with a newline: its tokens stay the same when a completion follows. All
of these may be messages (`[{"role": ..., "content": ...}]`) in place of text, and ``sft_train`` then holds whole
conversations, {messages}.

A new world is one more entry in `WORLDS`.
"""

import importlib
from collections.abc import Callable, Mapping
from types import ModuleType

from ..errors import UserError
from .base import BaseModelSettings, WorldData, WorldSettings, write_data

__all__ = [
    "WORLDS",
    "BaseModelSettings",
    "WorldData",
    "WorldSettings",
    "load_world",
    "lower_is_better",
    "referee",
    "write_data",
]

WORLDS = {
    "arithmetic": "pipeline.worlds.arithmetic",
    "field_notes": "pipeline.worlds.field_notes",
    "e2e": "pipeline.worlds.e2e",
    "dialogue": "pipeline.worlds.dialogue",
    "functions": "pipeline.worlds.functions",
    "translation": "pipeline.worlds.translation",
    "records": "pipeline.worlds.records",
    "topics": "pipeline.worlds.topics",
    "reasoning": "pipeline.worlds.reasoning",
    "shop": "pipeline.worlds.shop",
    "halves": "pipeline.worlds.halves",
    "instructions": "pipeline.worlds.instructions",
}


def load_world(name: str) -> ModuleType:
    """The module of the world `name`. UserError for an unknown name."""
    if name not in WORLDS:
        raise UserError(f"There is no world {name!r}. Worlds: {', '.join(sorted(WORLDS))}.")
    return importlib.import_module(WORLDS[name])


def referee(name: str) -> Callable[[str, Mapping], dict[str, float]]:
    """The referee of the world `name`: (completion, row) -> {measure: value}. See the world's HIGHER_IS_BETTER."""
    world = load_world(name)
    if not hasattr(world, "referee"):
        raise UserError(f"The world {name} has no referee.")
    return world.referee


def lower_is_better(name: str | None) -> frozenset[str]:
    """The measures of the world `name` that get better as they fall; none for no world, or one that is not known."""
    if name not in WORLDS:
        return frozenset()
    return frozenset(measure for measure, higher in load_world(name).HIGHER_IS_BETTER.items() if not higher)
