"""Rewards: text in, numbers out. One file a kind; `mixture`, `combining`, `threshold` and `instant` wrap them, `build`
makes them from YAML.

They import nothing of the pipeline and know no trainer: TRL's trainers take them as they are. Begin with `base.py`,
which holds the one interface; `build.py` lists them all.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .answer import Answer
    from .base import Reward, RewardError, RewardFunction, WeightedReward, log_name_of
    from .build import Gate, Mixture, Product, build_rewards
    from .code import Code
    from .coverage import Coverage
    from .fluency import Length, Repetition
    from .format import Format
    from .instant import Instant
    from .instructions.reward import Instructions
    from .judge import Judge
    from .keyword import Keyword, first_hit
    from .learned import Learned
    from .math_answer import Math
    from .mixture import Shaped, every_in, load_state, prepare, raw, set_training, state_of, token_rewards_of
    from .overlap import Bleu, Chrf, Rouge
    from .perplexity import Perplexity
    from .reconstruction import Reconstruction
    from .relevance import Relevance
    from .text import text_of
    from .threshold import Threshold
    from .tokenizing import adds_end, begun_once, open_ended
    from .tokens import pays_tokens, texts_after, token_ends
    from .trl_rewards import TrlReward
    from .turns import Environment, Turn

__all__ = [
    "Answer",
    "Bleu",
    "Chrf",
    "Code",
    "Coverage",
    "Environment",
    "Format",
    "Gate",
    "Instant",
    "Instructions",
    "Judge",
    "Keyword",
    "Learned",
    "Length",
    "Math",
    "Mixture",
    "Perplexity",
    "Product",
    "Reconstruction",
    "Relevance",
    "Repetition",
    "Reward",
    "RewardError",
    "RewardFunction",
    "Rouge",
    "Shaped",
    "Threshold",
    "TrlReward",
    "Turn",
    "WeightedReward",
    "adds_end",
    "begun_once",
    "build_rewards",
    "every_in",
    "first_hit",
    "load_state",
    "log_name_of",
    "open_ended",
    "pays_tokens",
    "prepare",
    "raw",
    "set_training",
    "state_of",
    "text_of",
    "texts_after",
    "token_ends",
    "token_rewards_of",
]

# Where each name lives, loaded when it is first used: torch and transformers are for the rewards that need them.
_MODULES = {
    "answer": "Answer",
    "base": "Reward RewardError RewardFunction WeightedReward log_name_of",
    "build": "Gate Mixture Product build_rewards",
    "code": "Code",
    "coverage": "Coverage",
    "fluency": "Length Repetition",
    "format": "Format",
    "instant": "Instant",
    "instructions.reward": "Instructions",
    "judge": "Judge",
    "keyword": "Keyword first_hit",
    "learned": "Learned",
    "math_answer": "Math",
    "mixture": "Shaped every_in load_state prepare raw set_training state_of token_rewards_of",
    "overlap": "Bleu Chrf Rouge",
    "perplexity": "Perplexity",
    "reconstruction": "Reconstruction",
    "relevance": "Relevance",
    "text": "text_of",
    "threshold": "Threshold",
    "tokenizing": "adds_end begun_once open_ended",
    "tokens": "pays_tokens texts_after token_ends",
    "trl_rewards": "TrlReward",
    "turns": "Environment Turn",
}
_HOME = {name: module for module, names in _MODULES.items() for name in names.split()}

if not TYPE_CHECKING:  # a type checker reads the imports above, and so finds a misspelt name

    def __getattr__(name: str) -> Any:
        if name not in _HOME:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        found = globals()[name] = getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
        return found

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
