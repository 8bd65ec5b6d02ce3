"""How a reward is named in YAML or Python: specs in, rewards out. The only module here that knows all the others."""

import importlib
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Iterable
from typing import Any

import yaml

from .asking import is_async, renamed
from .base import (
    Bound,
    Reward,
    RewardError,
    RewardFunction,
    WeightedReward,
    bound,
    choice,
    log_name_of,
    nearest,
    number,
)
from .combining import Gated, Multiplied
from .instant import Instant
from .mixture import Shaped, WeightedSum
from .threshold import Threshold
from .trl_rewards import NAMES as TRL_REWARDS

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
    "judge": ("judge", "Judge", {}),
    "learned": ("learned", "Learned", {}),
    "math": ("math_answer", "Math", {}),
    "answer": ("answer", "Answer", {}),
    "format": ("format", "Format", {}),
    "instructions": ("instructions", "Instructions", {}),
    "length": ("fluency", "Length", {}),
    "repetition": ("fluency", "Repetition", {}),
    "perplexity": ("perplexity", "Perplexity", {}),
    "reconstruction": ("reconstruction", "Reconstruction", {}),
    "relevance": ("relevance", "Relevance", {}),
    "coverage": ("coverage", "Coverage", {}),
    "reasoning_gym": ("reasoning", "ReasoningGym", {}),
    "mixture": ("build", "Mixture", {}),
    "gate": ("build", "Gate", {}),
    "product": ("build", "Product", {}),
    "environment": ("turns", "Environment", {}),
    **{name: ("trl_rewards", "TrlReward", {"reward": name}) for name in TRL_REWARDS},
}
HOW_TO_NAME = "write it like {name: bleu, weight: 0.5}"
_LONGEST_NAME = 100  # characters
COMMON_OPTIONS = ("weight", "instant", "clip", "normalize", "at_least", "log_name")


def build_rewards(specs: Iterable[Any]) -> list[WeightedReward]:
    """Rewards from their YAML form.

    Each spec is a mapping, a string that holds a YAML flow mapping, a bare name, or (in Python) a callable:

        [{name: bleu, weight: 0.5}, {name: keyword, column: facts}, {name: mypackage.module:function}]

    Options that every reward takes:
        weight: its factor in the sum (1.0).
        instant: `true` = pay at the tokens that earn it, not all at the last token; `words`, `tokens` or `turns` = by
            the difference that each word, token or turn of a game makes to the score (see `rewards.Instant`).
        normalize: `running` = subtract the running mean of the scores so far and divide by their standard deviation.
        clip: [lowest, highest], after normalizing.
        at_least: 1 where the score is at least this, else 0 (in the place of normalize and clip).
        log_name: the name in logs and reports (default: the reward's own, made unique by _2, _3, ...).
    `module:function` is imported from the Python path or the current folder; further options go to the function as
    keyword arguments, in the place of columns of their names. A class is called with the options first.

    Raises:
        RewardError: unknown name or option (with the nearest real one), or a value of the wrong kind.
    """
    built: list[WeightedReward] = []
    taken: set[str] = set()
    for spec in _listed(specs):
        spec = _as_mapping(spec)
        weight = number(spec.pop("weight", 1.0), "weight", spec["name"])
        try:
            reward = _build(spec, taken)
        except RecursionError:  # an alias of YAML that stands inside of what it names
            raise RewardError("Rewards stand inside each other too deeply, or one inside of itself.") from None
        taken.add(log_name_of(reward))
        built.append(WeightedReward(reward, weight))
    return built


class Mixture(WeightedSum):
    """Several rewards as one, named as in YAML: the weighted sum of their scores (see `WeightedSum`).

        {name: mixture, log_name: quality, clip: [0, 1], rewards: [{name: bleu, weight: 0.5}, {name: rougeL}]}

    Options:
        rewards: specs as `build_rewards` takes them.
    """

    def __init__(self, rewards: Iterable[Any], log_name: str = "mixture"):
        given = _listed(rewards)
        built = [x for x in given if isinstance(x, WeightedReward)]
        super().__init__(built if given and len(built) == len(given) else build_rewards(given), log_name)


class Gate(Gated):
    """Rewards that count only where a condition is met, such as format before content; elsewhere `otherwise` is paid.

        {name: gate, condition: {name: keyword, wanted: [please], mode: any}, rewards: [{name: rougeL}]}
        {name: gate, condition: {name: rougeL, at_least: 0.3}, rewards: [{name: length, max: 40}], otherwise: -1}

    Where the condition is not met nothing is asked of the rewards: a slow one (code in the sandbox, a judge) costs
    nothing there. The condition itself pays nothing; a policy that does not meet it yet learns it from a reward of its
    own in the list. In a trainer the share of completions that meet it is logged as `<gate>/met`.

    It pays per token where one of its rewards does; the condition is asked a second time for it.

    Options:
        condition: a reward, as in `rewards`; met where its score is 1 or more, or with `at_least: x` in it x or more.
            A row for which it has no score gets none.
        rewards: specs as `build_rewards` takes them; they are summed, as in a mixture.
        otherwise (0): what is paid where the condition is not met.
    """

    def __init__(self, condition: Any, rewards: Iterable[Any], otherwise: float = 0.0, log_name: str = "gate"):
        first, *parts = build_rewards([condition, *_listed(rewards)])
        super().__init__(first, parts, otherwise, log_name)


class Product(Multiplied):
    """The product of the scores of several rewards: worth something only as far as every one of them is.

        {name: product, rewards: [{name: rougeL}, {name: coverage, column: facts, clip: [0, 1]}]}

    A row for which one of them has no score gets none. No factor may be negative, or a worse text would be worth more:
    `clip` makes one fit. It pays per token by differences (`instant: words` or `tokens` on the product itself).

    Options:
        rewards: specs as `build_rewards` takes them, without weights: a weight is for the product.
    """

    def __init__(self, rewards: Iterable[Any], log_name: str = "product"):
        super().__init__(build_rewards(_listed(rewards)), log_name)


def _listed(rewards: Any) -> list[Any]:
    if isinstance(rewards, str | dict) or callable(rewards):
        return [rewards]
    if not isinstance(rewards, Iterable):
        raise RewardError(f"rewards is {rewards!r:.100}; give a list of rewards, and {HOW_TO_NAME}.")
    return list(rewards)


def _as_mapping(spec: Any) -> dict[str, Any]:
    if callable(spec):
        return {"name": spec}
    if isinstance(spec, str):
        text = spec
        try:
            spec = yaml.safe_load(text)
        except yaml.YAMLError as error:
            problem = getattr(error, "problem", None) or "not YAML"
            raise RewardError(f"The reward {text!r:.200} cannot be read ({problem}); {HOW_TO_NAME}.") from None
        if isinstance(spec, str):
            spec = {"name": spec}
    if not isinstance(spec, dict) or not spec.get("name"):
        raise RewardError(f"{spec!r:.200} does not name a reward; {HOW_TO_NAME}.")
    return dict(spec)


def _build(spec: dict[str, Any], taken: set[str]) -> RewardFunction:
    name = spec.pop("name")
    common = {key: spec.pop(key) for key in COMMON_OPTIONS if key in spec}
    if callable(name):
        reward: RewardFunction = bound(name)
    elif ":" in str(name):
        reward = _import(name, spec)
    else:
        reward = _from_registry(name, spec)

    log_name = common.pop("log_name", None)
    log_name = _checked_name(log_name) if log_name is not None else _unique(log_name_of(reward), taken)
    if log_name in taken:
        raise RewardError(f"Two rewards are called '{log_name}' in the logs; give each its own log_name.")
    if isinstance(reward, Reward):
        reward.__name__ = log_name
    instant = choice(common.pop("instant", False), "instant", (True, False, "words", "tokens", "turns"), log_name)
    if instant:
        reward = Instant(reward, at="auto" if instant is True else instant, log_name=log_name)
    if (at_least := common.pop("at_least", None)) is not None:
        if common:
            raise RewardError(f"Reward '{log_name}': at_least gives 0 or 1; leave {' and '.join(common)} out.")
        return Threshold(reward, at_least, log_name)
    if is_async(reward) and not common:
        # an object whose call is async, too, goes as a function: TRL sees nothing else as async
        if log_name != log_name_of(reward) or not inspect.iscoroutinefunction(reward):
            reward = renamed(reward, log_name)
    elif common or log_name != log_name_of(reward):
        reward = Shaped(reward, log_name=log_name, **common)
    return reward


def _checked_name(name: Any) -> str:
    text = str(name)
    if isinstance(name, list | dict) or not text.strip() or len(text) > _LONGEST_NAME or not text.isprintable():
        raise RewardError(f"log_name is {name!r:.100}; give a name of up to {_LONGEST_NAME} characters.")
    return text


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
    cls: type[Reward] = getattr(importlib.import_module(f".{module}", __package__), cls_name)
    takes = [*_parameters(cls), *cls.further_options(**fixed)]
    real = [key for key in takes if key not in cls.python_only and key not in fixed and key != "log_name"]
    _check_options(name, options, real)
    _check_required(name, cls, fixed | options)
    return cls.made(**fixed, **options)


def _import(name: str, options: dict[str, Any]) -> RewardFunction:
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
            made: RewardFunction = target(**options)
            return made
        except Exception as error:
            raise RewardError(f"Reward '{name}' cannot be made: {_where(error)}.") from error
    function: RewardFunction = Bound(target, **options) if options else target
    return function


def _where(error: Exception) -> str:
    """Kind, words, file and line of an error in the user's own code."""
    if isinstance(error, SyntaxError) and error.filename:
        file, line, words = error.filename, error.lineno, error.msg
    else:
        last = traceback.extract_tb(error.__traceback__)[-1]
        file, line, words = last.filename, last.lineno, str(error)
    return f"{type(error).__name__}: {words} ({os.path.basename(file)}, line {line})"


def _parameters(target: Callable[..., Any]) -> list[str]:
    """The names that `target` takes. What only its **kwargs would take does not count: a typo would pass unseen."""
    parameters = inspect.signature(target).parameters.values()
    return [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]


def _check_options(name: str, options: dict[str, Any], real: list[str]) -> None:
    everything = [*real, *COMMON_OPTIONS]
    for key in options:
        if key not in everything:
            raise RewardError(
                f"Reward '{name}' has no option '{str(key)[:100]}'{nearest(key, everything)}; it takes "
                f"{', '.join(everything)}."
            )


def _check_required(name: str, cls: type, options: dict[str, Any]) -> None:
    for parameter in inspect.signature(cls).parameters.values():
        wanted = parameter.default is parameter.empty and parameter.kind is not parameter.VAR_KEYWORD
        if wanted and parameter.name not in options:
            raise RewardError(f"Reward '{name}' needs the option '{parameter.name}'.")
