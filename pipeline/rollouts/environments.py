"""Tools and environments as settings name them, and what a run cannot have together with them.

An environment is TRL's (docs/turns.md): a class with `reset(**row)`, whose other public methods are the tools of the
player, and perhaps `get_reward()`.
"""

import importlib
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping
from random import Random
from typing import Any

from trl import is_conversational
from trl.chat_template_utils import add_response_schema, supports_tool_calling

from pipeline.errors import UserError
from rewards import RewardFunction, WeightedReward
from rewards.instant import Instant
from rewards.mixture import every_in
from rewards.turns import Environment, reads_environments

Factories = Mapping[str | None, Callable[[], Any]]  # TRL's; None: the only one


def of(
    config: Any, weighted: Iterable[WeightedReward], tokenizer: Any, first_row: Mapping[str, Any]
) -> dict[str, Any]:
    """What TRL's trainer is given of the settings `environment` and `tools`: keyword arguments, none where there are
    none.

    Raises:
        UserError: they cannot be made, or do not go together with the rewards, the data or other settings.
    """
    factory, tools = load(config.environment), load_tools(config.tools)
    factories, rewards = factories_of(factory), [reward for reward, _ in weighted]
    check_rewards(rewards, factories)
    check_turns(rewards, bool(factories or tools))
    if not (factories or tools):
        return {}
    check(config, first_row, factories, bool(tools))
    if factories:
        name = first_row.get("environment") if isinstance(factory, Mapping) else None
        begin(factories[name](), first_row, isinstance(factory, Mapping), config.seed, "first")
    check_template(tokenizer, "environment" if factories else "tools")
    given = {"environment_factory": factory, "tools": tools or None}
    return {key: value for key, value in given.items() if value is not None}


def factories_of(factory: Any) -> Factories:
    """TRL's table of an `environment_factory`."""
    return factory if isinstance(factory, Mapping) else {} if factory is None else {None: factory}


def load(named: str | Mapping[str, str] | None, key: str = "environment") -> Any:
    """The factory that `module:Class` names, or a mapping of them by name, each tried once; None for None.

    Raises:
        UserError: there is no such thing, or what it makes is no environment.
    """
    if named is None:
        return None
    if isinstance(named, Mapping):
        return {name: load(one, f"{key} {name}") for name, one in named.items()}
    factory = imported(named, key)
    try:
        made = factory()
    except Exception as error:
        raise UserError(f"{key} {named} cannot be made: {where(error)}; it is called without arguments") from error
    if not callable(getattr(type(made), "reset", None)):
        raise UserError(f"{key} {named} has no reset method, with which a game begins (docs/turns.md)")
    return factory


def load_tools(names: Iterable[str]) -> list[Callable[..., Any]]:
    """The functions that `module:function` name."""
    return [imported(name, "tools") for name in names]


def imported(named: str, key: str) -> Callable[..., Any]:
    """What `module:attribute` names, something to call.

    Raises:
        UserError: there is no such thing.
    """
    module, _, attribute = str(named).partition(":")
    if not (module and attribute.isidentifier()):
        raise UserError(f"{key}: {named!r} is not valid: give module:name, such as mygames:Maze")
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.append(os.getcwd())  # a launched script has its own folder on the path, not the current one
    try:
        found = getattr(importlib.import_module(module), attribute)
    except Exception as error:
        raise UserError(f"{key}: {named} cannot be imported from {os.getcwd()}: {where(error)}") from error
    if not callable(found):
        raise UserError(f"{key}: {named} is no class or function but {type(found).__name__}")
    return found


def where(error: Exception) -> str:
    """Kind, words, file and line of an error in the user's own code, in one line."""
    words = " ".join(str(error).split())[:200]
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {words} ({os.path.basename(last.filename)}, line {last.lineno})"


# ---------------------------------------------------------------- what goes together
def check(config: Any, first_row: Mapping[str, Any] | None, factories: Factories, has_tools: bool) -> None:
    """Raises `UserError` where a run with tools or an environment asks for what cannot be had.

    Args: first_row: of the prompts, where there are any.
    """
    key = "environment" if factories else "tools"
    if not (factories or has_tools):
        return
    for name in ("vllm_server", "use_transformers_continuous_batching"):
        if getattr(config, name, False):
            raise UserError(
                f"{key} and {name}: games of several turns are played with transformers' own generate; leave one of "
                "the two out"
            )
    if first_row is not None and first_row.get("prompt") and not is_conversational({"prompt": first_row["prompt"]}):
        raise UserError(
            f'{key}: the prompts are text, and turns are messages: give prompts as [{{"role": "user", ...}}]'
        )
    if len(factories) > 1 or None not in factories and factories:
        given = (first_row or {}).get("environment")
        if given not in factories:
            known = ", ".join(map(str, factories))
            raise UserError(
                f"environment: there are {known}, and the first row's column environment is {given!r}: every row "
                "names one of them"
            )


def check_template(tokenizer: Any, key: str) -> None:
    """Raises `UserError` where the chat template writes no tool calls, or nobody knows how to read them back."""
    if not supports_tool_calling(tokenizer):
        raise UserError(
            f"{key}: the chat template of this tokenizer writes no tool calls and answers: set chat_template_path to "
            "one that does"
        )
    if any(getattr(tokenizer, f"response_{kind}", None) for kind in ("template", "schema")):
        return
    try:
        add_response_schema(tokenizer)
    except ValueError:
        raise UserError(
            f"{key}: the tokenizer does not say how tool calls are read back from its chat template, and TRL does not "
            "know the template: give it a response_template (docs/turns.md)"
        ) from None


def check_rewards(rewards: Iterable[RewardFunction], factories: Factories) -> None:
    """Raises `UserError` where the rewards and the environment do not know of each other."""
    found = [part for reward in rewards for part in every_in(reward)]
    asked = any(isinstance(part, Environment) for part in found)
    pays = any(hasattr(factory(), "get_reward") for factory in factories.values())
    if asked and not pays:
        raise UserError(
            "rewards names the reward environment, but "
            + ("the environment has no get_reward" if factories else "environment is not set: give module:Class")
        )
    if pays and not asked:
        raise UserError(
            "the environment pays by itself (get_reward), and rewards does not say how much that counts: add "
            "{name: environment, instant: turns}, with weight: 0 if it is only to be logged"
        )


def check_turns(rewards: Iterable[RewardFunction], several_turns: bool) -> None:
    """Raises `UserError` where a reward is to be paid by turns and there is one turn only."""
    found = [part for reward in rewards for part in every_in(reward)]
    if not several_turns and any(isinstance(part, Instant) and part.at == "turns" for part in found):
        raise UserError(
            "instant: turns wants tools or an environment: without them a completion is one turn, which is paid at "
            "its end anyway; leave instant out"
        )


def asks_worth(reward: object) -> bool:
    """Whether what the environment has paid is asked for after every turn."""
    parts = list(every_in(reward))  # type: ignore[arg-type]
    return any(isinstance(x, Environment) for x in parts) and any(isinstance(x, Instant) for x in parts)


def asks_copies(reward: object) -> bool:
    """Whether a reward that is paid by turns reads the environments themselves."""
    return any(
        isinstance(part, Instant) and part.at == "turns" and any(map(reads_environments, every_in(part)))
        for part in every_in(reward)  # type: ignore[arg-type]
    )


# ---------------------------------------------------------------- how a game begins
def begin(environment: Any, row: Mapping[str, Any], one_of_several: bool, *made_from: Any) -> Any:
    """What `reset` says at the beginning of the game of a row, called as TRL calls it.

    Args: one_of_several: the row's column `environment` chose it and is not handed on. made_from: the seed.

    Raises:
        UserError: it fails.
    """
    given = seeded(row, environment, *made_from)
    if one_of_several:
        given.pop("environment", None)
    try:
        return environment.reset(**given)
    except Exception as error:
        hint = "; end its parameters with **row, for it is given every column" * ("unexpected keyword" in str(error))
        raise UserError(f"environment {type(environment).__name__}: reset fails: {where(error)}{hint}") from error


def seeded(row: Mapping[str, Any], environment: Any, *made_from: Any) -> dict[str, Any]:
    """The row with a `seed` for `reset`, a whole number below 2³², made of `made_from`; its own stays.

    An environment whose `reset` takes no such argument gets none.
    """
    if row.get("seed") is not None or not takes_seed(environment):
        return dict(row)
    return {**row, "seed": Random(" ".join(map(str, made_from))).getrandbits(32)}


def takes_seed(environment: Any) -> bool:
    parameters = inspect.signature(environment.reset).parameters.values()
    return any(p.name == "seed" or p.kind is p.VAR_KEYWORD for p in parameters)
