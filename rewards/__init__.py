"""Rewards: text in, numbers out. They know no trainer, and TRL's trainers take them as they are."""

from .base import Reward, RewardError, WeightedReward, build_rewards, log_name_of
from .code import Code
from .coverage import Coverage
from .fluency import Length, Repetition
from .instant import Instant
from .keyword import Keyword, first_hit
from .learned import Learned
from .mixture import Mixture, Shaped, every_in, load_state, prepare, raw, set_training, state_of, token_rewards_of
from .overlap import Bleu, Chrf, Rouge
from .perplexity import Perplexity
from .reconstruction import Reconstruction
from .relevance import Relevance
from .text import text_of
from .tokens import pays_tokens, token_ends

__all__ = [
    "Bleu",
    "Chrf",
    "Code",
    "Coverage",
    "Instant",
    "Keyword",
    "Learned",
    "Length",
    "Mixture",
    "Perplexity",
    "Reconstruction",
    "Relevance",
    "Repetition",
    "Reward",
    "RewardError",
    "Rouge",
    "Shaped",
    "WeightedReward",
    "build_rewards",
    "every_in",
    "first_hit",
    "load_state",
    "log_name_of",
    "pays_tokens",
    "prepare",
    "raw",
    "set_training",
    "state_of",
    "text_of",
    "token_ends",
    "token_rewards_of",
]
