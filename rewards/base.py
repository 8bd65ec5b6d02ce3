"""The one interface of all rewards, and the checks that all share.

A reward is any callable with TRL's signature,

    reward(prompts, completions, **columns) -> list[float | None]

one score a completion, None where there is nothing to score (rewards/values.py says what counts as one). TRL's
trainers, ours and a plain Python function all speak it. The classes here add checked options, clear errors and a name
for the logs.
"""

import difflib
import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from .text import Texts, text_of

RewardFunction = Callable[..., list[float | None]]  # a reward of any kind, in its own class or a plain function

# What a reward is handed besides the columns of the data set, by TRL and by us.
NOT_COLUMNS = {"completion_ids", "token_ends", "completion_turns"}
NOT_COLUMNS |= {"trainer_state", "log_extra", "log_metric", "environments"}
# A column of such a name cannot be handed to a reward: the name means something else there (`self`: in a method).
RESERVED = NOT_COLUMNS | {"prompt", "completion", "prompts", "completions", "self"}


class RewardError(ValueError):
    """A reward that is named, set or fed wrongly, in one sentence that says what to do."""


class Reward:
    """Base class of the rewards that come with Plumbline; a subclass implements `__call__`.

    Args:
        log_name: the name under which TRL and the reports log the score.

    A reward that knows which token earned what also has

        token_rewards(prompts, completions, completion_ids, token_ends, **columns) -> list[list[float] | None]

    one number for each sampled token, None for a row without a score; the sum over a row is the score. `token_ends`
    says which token completes which character (see `rewards.token_ends`). A trainer asks for it where `instant` is
    true. The rewards here pay the whole score at the last token unless they are asked with `instant: true`; a reward
    of your own that has `token_rewards` and no `instant` is always asked.
    """

    instant = False  # whether a trainer asks for token_rewards
    python_only: tuple[str, ...] = ()  # options that take Python objects and so have no place in YAML

    def __init__(self, log_name: str):
        self.__name__ = log_name  # read by trl.trainer.utils.get_callable_name

    def __call__(self, prompts: Texts, completions: Texts, **columns: Any) -> list[float | None]:
        """One score a completion, None where there is nothing to score.

        Args:
            prompts, completions: texts, or lists of messages `{"role", "content"}`.
            columns: every column of the data set as a list, one entry a completion, and what else TRL passes.
        """
        raise NotImplementedError

    def potential(self, prompts: Texts, completions: Texts, **columns: Any) -> list[float | None]:
        """What an unfinished completion is worth; `Instant` pays its differences. The score, if it grows evenly."""
        return self(prompts=prompts, completions=completions, **columns)

    def prepare(self) -> None:
        """Loads what the first call would load, so that what is missing shows before a run and not in it."""

    def reason_to_stop(self) -> str | None:
        """Asked before the first step of a training and after each: why there should be no further one, or None."""
        return None

    @classmethod
    def made(cls, **options: Any) -> "Reward":
        """The reward that a spec in YAML names, with its options; a subclass may let another one stand for it."""
        return cls(**options)

    @classmethod
    def further_options(cls, **fixed: Any) -> list[str]:
        """Names of options beside the parameters of `__init__`, where what its `**options` take depends on `fixed`."""
        return []

    def column(self, columns: dict[str, Any], name: str) -> list[Any]:
        """The column `name`, or a `RewardError` that says which columns there are."""
        if name in columns and name not in NOT_COLUMNS:
            column: list[Any] = columns[name]
            return column
        there = sorted(set(columns) - NOT_COLUMNS)
        has = f"it has {', '.join(there)}" if there else "it has none besides the prompt"
        raise self.error(f"the data has no column '{str(name)[:100]}'; {has}{nearest(name, there)}.")

    def texts(self, prompts: Texts, columns: dict[str, Any], name: str) -> list[str]:
        """The text of each row in the column `name`, where `prompt` is the prompt; a list of texts is read as one."""
        if name == "prompt":
            return [text_of(prompt) for prompt in prompts]
        try:
            return [
                "\n".join(x) if isinstance(x, list) and x and isinstance(x[0], str) else text_of(x)
                for x in self.column(columns, name)
            ]
        except (TypeError, AttributeError):
            raise self.error(f"the column '{name}' must hold a text, or a list of texts, in each row.") from None

    def error(self, message: str) -> RewardError:
        """`message` as an error of this reward."""
        return RewardError(f"Reward '{self.__name__}': {message}")

    def state_dict(self) -> dict[str, Any]:
        """What must survive a restart (running statistics); plain numbers only, so that it fits in JSON."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes back what `state_dict` gave."""


class WeightedReward(NamedTuple):
    """A reward and its weight in the sum."""

    reward: RewardFunction
    weight: float


def log_name_of(reward: Callable[..., Any]) -> str:
    """The name of a reward in the logs, as TRL finds it."""
    while isinstance(reward, functools.partial):
        reward = reward.func
    return str(getattr(reward, "__name__", type(reward).__name__))


def nearest(name: str, real: Iterable[str]) -> str:
    """`" (did you mean 'x'?)"` for the real name nearest to `name`, or an empty string."""
    lowered = {other.lower(): other for other in real}
    found = difflib.get_close_matches(str(name)[:100].lower(), lowered, n=1)
    return f" (did you mean '{lowered[found[0]]}'?)" if found else ""


def number(value: Any, option: str, reward: Any) -> float:
    """`value` as a finite number. YAML reads `1e-4` as a string, so strings that are numbers count."""
    try:
        if isinstance(value, bool):
            raise TypeError
        result = float(value)
        if result != result or result in (float("inf"), float("-inf")):
            raise ValueError
    except (TypeError, ValueError, OverflowError):
        raise RewardError(f"Reward '{reward}': {option} is {value!r:.100}; give a number.") from None
    return result


def choice(value: Any, option: str, choices: Sequence[Any], reward: str) -> Any:
    """`value` if it is one of `choices`, else a `RewardError` that lists them."""
    if value in choices:
        return value
    names = [str(c).lower() if isinstance(c, bool) else str(c) for c in choices]
    raise RewardError(
        f"Reward '{reward}': {option} is {value!r:.100}; give {' or '.join(names)}{nearest(value, names)}."
    )


class Bound(functools.partial[Any]):
    """A function with options. A column of the data that is called like one does not replace it, as in a partial."""

    def __call__(self, /, *args: Any, **columns: Any) -> Any:
        return self.func(*self.args, *args, **{**columns, **self.keywords})


def bound(function: RewardFunction) -> RewardFunction:
    """`function`; a plain partial one with its options held fast against columns."""
    if type(function) is not functools.partial:
        return function
    return Bound(function.func, *function.args, **function.keywords)
