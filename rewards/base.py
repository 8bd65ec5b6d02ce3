"""The one interface of all rewards, and how a reward is named in YAML.

A reward is any callable with TRL's signature,

    reward(prompts, completions, **columns) -> list[float | None]

one score a completion, None where there is nothing to score. TRL's trainers, ours and a plain Python function all
speak it. The classes here add checked options, clear errors and a name for the logs.
"""

import difflib
import functools
import importlib
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import yaml

from .text import text_of

__all__ = ["Reward", "RewardError", "WeightedReward", "build_rewards", "log_name_of", "nearest", "text_of"]

# What TRL hands to a reward besides the columns of the data set.
NOT_COLUMNS = {"completion_ids", "token_ends", "trainer_state", "log_extra", "log_metric", "environments"}

# name in YAML -> (module, class, fixed options). Imported when asked for.
REGISTRY: dict[str, tuple[str, str, dict[str, Any]]] = {
    "bleu": ("overlap", "Bleu", {}),
    "chrf": ("overlap", "Chrf", {}),
    "rouge": ("overlap", "Rouge", {}),
    "rouge1": ("overlap", "Rouge", {"type": "rouge1"}),
    "rouge2": ("overlap", "Rouge", {"type": "rouge2"}),
    "rougeL": ("overlap", "Rouge", {"type": "rougeL"}),
    "keyword": ("keyword", "Keyword", {}),
    "code": ("code", "Code", {}),
    "learned": ("learned", "Learned", {}),
    "length": ("fluency", "Length", {}),
    "repetition": ("fluency", "Repetition", {}),
    "perplexity": ("perplexity", "Perplexity", {}),
    "reconstruction": ("reconstruction", "Reconstruction", {}),
    "relevance": ("relevance", "Relevance", {}),
    "coverage": ("coverage", "Coverage", {}),
    "mixture": ("mixture", "Mixture", {}),
}
HOW_TO_NAME = "write it like {name: bleu, weight: 0.5}"
COMMON_OPTIONS = ("weight", "instant", "clip", "normalize", "log_name")


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

    def __call__(self, prompts: Sequence, completions: Sequence, **columns: Any) -> list[float | None]:
        """One score a completion, None where there is nothing to score.

        Args:
            prompts, completions: texts, or lists of messages `{"role", "content"}`.
            columns: every column of the data set as a list, one entry a completion, and what else TRL passes.
        """
        raise NotImplementedError

    def potential(self, prompts: Sequence, completions: Sequence, **columns: Any) -> list[float | None]:
        """What an unfinished completion is worth; `Instant` pays its differences. The score, if it grows evenly."""
        return self(prompts=prompts, completions=completions, **columns)

    def prepare(self) -> None:
        """Loads what the first call would load, so that what is missing shows before a run and not in it."""

    def column(self, columns: dict[str, Any], name: str) -> list:
        """The column `name`, or a `RewardError` that says which columns there are."""
        if name in columns and name not in NOT_COLUMNS:
            return columns[name]
        there = sorted(set(columns) - NOT_COLUMNS)
        has = f"it has {', '.join(there)}" if there else "it has none besides the prompt"
        raise self.error(f"the data has no column '{name}'; {has}{nearest(name, there)}.")

    def texts(self, prompts: Sequence, columns: dict[str, Any], name: str) -> list[str]:
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

    reward: Callable[..., list[float | None]]
    weight: float


def build_rewards(specs: Iterable[Any]) -> list[WeightedReward]:
    """Rewards from their YAML form.

    Each spec is a mapping, a string that holds a YAML flow mapping, a bare name, or (in Python) a callable:

        [{name: bleu, weight: 0.5}, {name: keyword, column: facts}, {name: mypackage.module:function}]

    Options that every reward takes:
        weight: its factor in the sum (1.0).
        instant: `true` = pay at the tokens that earn it, not all at the last token; `words` or `tokens` = by the
            difference that each word or token makes to the score (see `rewards.Instant`).
        normalize: `running` = subtract the running mean of the scores so far and divide by their standard deviation.
        clip: [lowest, highest], after normalizing.
        log_name: the name in logs and reports (default: the reward's own, made unique by _2, _3, ...).
    `module:function` is imported from the Python path or the current folder; further options go to the function as
    keyword arguments. A class is called with the options first.

    Raises:
        RewardError: unknown name or option (with the nearest real one), or a value of the wrong kind.
    """
    if isinstance(specs, str | dict):
        specs = [specs]
    built: list[WeightedReward] = []
    taken: set[str] = set()
    for spec in specs:
        spec = _as_mapping(spec)
        weight = number(spec.pop("weight", 1.0), "weight", spec["name"])
        reward = _build(spec, taken)
        taken.add(log_name_of(reward))
        built.append(WeightedReward(reward, weight))
    return built


def log_name_of(reward: Callable) -> str:
    """The name of a reward in the logs, as TRL finds it."""
    while isinstance(reward, functools.partial):
        reward = reward.func
    return getattr(reward, "__name__", type(reward).__name__)


def nearest(name: str, real: Iterable[str]) -> str:
    """`" (did you mean 'x'?)"` for the real name nearest to `name`, or an empty string."""
    lowered = {other.lower(): other for other in real}
    found = difflib.get_close_matches(str(name).lower(), lowered, n=1)
    return f" (did you mean '{lowered[found[0]]}'?)" if found else ""


def number(value: Any, option: str, reward: Any) -> float:
    """`value` as a finite number. YAML reads `1e-4` as a string, so strings that are numbers count."""
    try:
        if isinstance(value, bool):
            raise TypeError
        result = float(value)
        if result != result or result in (float("inf"), float("-inf")):
            raise ValueError
    except (TypeError, ValueError):
        raise RewardError(f"Reward '{reward}': {option} is {value!r}; give a number.") from None
    return result


def choice(value: Any, option: str, choices: Sequence[Any], reward: str) -> Any:
    """`value` if it is one of `choices`, else a `RewardError` that lists them."""
    if value in choices:
        return value
    names = [str(c).lower() if isinstance(c, bool) else str(c) for c in choices]
    raise RewardError(f"Reward '{reward}': {option} is {value!r}; give {' or '.join(names)}{nearest(value, names)}.")


def _as_mapping(spec: Any) -> dict[str, Any]:
    if callable(spec):
        return {"name": spec}
    if isinstance(spec, str):
        text = spec
        try:
            spec = yaml.safe_load(text)
        except yaml.YAMLError as error:
            problem = getattr(error, "problem", None) or "not YAML"
            raise RewardError(f"The reward {text!r} cannot be read ({problem}); {HOW_TO_NAME}.") from None
        if isinstance(spec, str):
            spec = {"name": spec}
    if not isinstance(spec, dict) or not spec.get("name"):
        raise RewardError(f"{spec!r} does not name a reward; {HOW_TO_NAME}.")
    return dict(spec)


def _build(spec: dict[str, Any], taken: set[str]) -> Callable:
    name = spec.pop("name")
    common = {key: spec.pop(key) for key in ("instant", "clip", "normalize", "log_name") if key in spec}
    if callable(name):
        reward = name
    elif ":" in str(name):
        reward = _import(name, spec)
    else:
        reward = _from_registry(name, spec)

    log_name = common.pop("log_name", None)
    log_name = str(log_name) if log_name is not None else _unique(log_name_of(reward), taken)
    if log_name in taken:
        raise RewardError(f"Two rewards are called '{log_name}' in the logs; give each its own log_name.")
    if isinstance(reward, Reward):
        reward.__name__ = log_name
    instant = choice(common.pop("instant", False), "instant", (True, False, "words", "tokens"), log_name)
    if instant:
        from .instant import Instant

        reward = Instant(reward, at="auto" if instant is True else instant, log_name=log_name)
    if common or log_name != log_name_of(reward):
        from .mixture import Shaped

        reward = Shaped(reward, log_name=log_name, **common)
    return reward


def _unique(name: str, taken: set[str]) -> str:
    count, unique = 1, name
    while unique in taken:
        count += 1
        unique = f"{name}_{count}"
    return unique


def _from_registry(name: Any, options: dict[str, Any]) -> Reward:
    if not isinstance(name, str) or name not in REGISTRY:
        known = f"there are {', '.join(REGISTRY)}, and your own as module:function"
        raise RewardError(f"There is no reward '{str(name)[:100]}'{nearest(str(name)[:100], REGISTRY)}; {known}.")
    module, cls_name, fixed = REGISTRY[name]
    cls = getattr(importlib.import_module(f".{module}", __package__), cls_name)
    real = [key for key in _parameters(cls) if key not in cls.python_only and key not in fixed and key != "log_name"]
    _check_options(name, options, real)
    _check_required(name, cls, options)
    return cls(**fixed, **options)


def _import(name: str, options: dict[str, Any]) -> Callable:
    """The user's own reward `module:function` (or `module:Class`), with `options` bound."""
    module_name, _, attribute = name.partition(":")
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.append(os.getcwd())  # a launched script has its own folder on the path, not the current one
    try:
        target = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        # A missing import inside the user's module is the user's to see, under its own name.
        raise RewardError(f"Reward '{name}': cannot import '{module_name}' from {os.getcwd()}: {error}.") from error
    except Exception as error:
        raise RewardError(f"Reward '{name}': '{module_name}' fails when it is imported: {_where(error)}.") from error
    for part in attribute.split("."):
        if not hasattr(target, part):
            names = [key for key in vars(target) if not key.startswith("_")]
            raise RewardError(f"Reward '{name}': '{module_name}' has no '{part}'{nearest(part, names)}.")
        target = getattr(target, part)
    if not callable(target):
        raise RewardError(f"Reward '{name}' is no function but {type(target).__name__}.")
    _check_options(name, options, [key for key in _parameters(target) if key not in ("prompts", "completions")])
    if isinstance(target, type):
        try:
            return target(**options)
        except Exception as error:
            raise RewardError(f"Reward '{name}' cannot be made: {_where(error)}.") from error
    return functools.partial(target, **options) if options else target


def _where(error: Exception) -> str:
    """Kind, words, file and line of an error in the user's own code."""
    if isinstance(error, SyntaxError) and error.filename:
        file, line, words = error.filename, error.lineno, error.msg
    else:
        last = traceback.extract_tb(error.__traceback__)[-1]
        file, line, words = last.filename, last.lineno, str(error)
    return f"{type(error).__name__}: {words} ({os.path.basename(file)}, line {line})"


def _parameters(target: Callable) -> list[str]:
    """The names that `target` takes. What only its **kwargs would take does not count: a typo would pass unseen."""
    parameters = inspect.signature(target).parameters.values()
    return [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]


def _check_options(name: str, options: dict[str, Any], real: list[str]) -> None:
    everything = [*real, *COMMON_OPTIONS]
    for key in options:
        if key not in everything:
            raise RewardError(
                f"Reward '{name}' has no option '{key}'{nearest(key, everything)}; it takes {', '.join(everything)}."
            )


def _check_required(name: str, cls: type, options: dict[str, Any]) -> None:
    for parameter in inspect.signature(cls).parameters.values():
        if parameter.default is parameter.empty and parameter.name not in options:
            raise RewardError(f"Reward '{name}' needs the option '{parameter.name}'.")
