"""Asking a reward about completions, so that one bad row does not sink the others and nothing is hidden."""

import asyncio
import inspect
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from .base import RESERVED, RewardError, RewardFunction, log_name_of
from .text import Text, Texts, text_of
from .values import read

logger = logging.getLogger(__name__)


def columns_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """The columns of rows as a reward is handed them, one entry a row; without those that cannot be (`RESERVED`)."""
    return {key: [row[key] for row in rows] for key in rows[0] if key not in RESERVED}


def some_rows(rows: Sequence[int], prompts: Texts, completions: Texts, columns: Mapping[str, Any]) -> dict[str, Any]:
    """What a reward is asked about these rows alone: prompts, completions and columns; what is no column stays."""
    n = len(prompts)
    some = {k: [v[i] for i in rows] if isinstance(v, list | tuple) and len(v) == n else v for k, v in columns.items()}
    return {"prompts": [prompts[i] for i in rows], "completions": [completions[i] for i in rows], **some}


def ask(
    function: Callable[..., Any],
    prompts: Texts,
    completions: Texts,
    columns: dict[str, Any],
    name: str | None = None,
    tokens: bool = False,
) -> list[Any]:
    """What `function` says of each completion; None where it has nothing to say or fails.

    A function that raises is asked again row by row. Rows on which it fails, or returns NaN, are reported in the log
    and get None, never 0.

    Args:
        function: a reward, or the `token_rewards` of one.
        columns: every column as a list, and what else TRL passes to a reward.
        name: how the reports call it; default: its name in the logs.
        tokens: it may say a list of numbers of a completion, one for each token.

    Raises:
        RewardError: when it fails for every row, or what it returns is no answer (`rewards/values.py`). An error of
            its own kind goes through: it is about the settings or the data, not one row.
    """

    async def at_once(**question: Any) -> Any:
        return function(**question)

    asking = ask_async(at_once, prompts, completions, columns, name or log_name_of(function), tokens)
    try:
        asking.send(None)  # nothing in it waits, so it runs to its end without an event loop
    except StopIteration as end:
        answers: list[Any] = end.value
    return answers


async def ask_async(
    function: Callable[..., Awaitable[Any]],
    prompts: Texts,
    completions: Texts,
    columns: dict[str, Any],
    name: str | None = None,
    tokens: bool = False,
) -> list[Any]:
    """`ask` for a coroutine function (TRL's convention for rewards that call a server)."""
    name = name or log_name_of(function)
    try:
        return _checked(await function(prompts=prompts, completions=completions, **columns), prompts, name, tokens)
    except RewardError:
        raise
    except Exception as error:
        whole = error
    answers: list[Any] = []
    errors: dict[int, Exception] = {}
    for row in range(len(prompts)):
        try:
            answer = await function(**some_rows([row], prompts, completions, columns))
            answers += _checked(answer, [prompts[row]], name, tokens)
        except RewardError:
            raise
        except Exception as error:
            answers.append(None)
            errors[row] = error
    return _report(answers, errors, whole, prompts, name)


def is_async(function: Callable[..., Any]) -> bool:
    """Whether calling `function` gives a coroutine; a callable object may have it on its `__call__`."""
    while hasattr(function, "func"):  # functools.partial
        function = function.func
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)


def renamed(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    """An async function, or an object whose call is one, as a function of that name, by which TRL knows it too."""

    async def with_name(*args: Any, **columns: Any) -> Any:
        return await function(*args, **columns)

    with_name.__name__ = name
    return with_name


def _checked(answers: Any, prompts: Texts, name: str, tokens: bool) -> list[Any]:
    """One number or None for each prompt, with `tokens` perhaps a list of numbers; NaN is reported and made None."""

    def of(row: int) -> str:
        return _excerpt(prompts[row])

    def nan(row: int) -> None:
        logger.warning("Reward '%s' returned NaN for %s; the row goes without it.", name, of(row))

    return read(answers, len(prompts), f"Reward '{name}': it returned", of, tokens, nan)


def _report(
    answers: list[Any], errors: dict[int, Exception], whole: Exception, prompts: Texts, name: str
) -> list[Any]:
    if errors and len(errors) == len(answers):
        needs = ""
        if isinstance(whole, TypeError) and "unexpected keyword argument" in str(whole):
            needs = "; end its parameters with **columns, for it is given every column of the data and more"
        raise RewardError(f"Reward '{name}' failed for every completion: {_words(whole)}{needs}.") from whole
    if not errors:
        logger.warning("Reward '%s' failed for all rows together, but for none alone: %s.", name, _words(whole))
    for row, error in errors.items():
        logger.warning(
            "Reward '%s' failed for %s, which goes without it: %s.", name, _excerpt(prompts[row]), _words(error)
        )
    return answers


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".rstrip(": .")


def _excerpt(prompt: Text) -> str:
    text = " ".join(text_of(prompt).split())
    return f"the prompt '{text[:80]}{'...' if len(text) > 80 else ''}'"


def guarded(function: Callable[..., Any], name: str | None = None) -> RewardFunction:
    """`function` so that a row on which it fails gets None, as in training; an async one is waited for."""
    alike = guarded_alike(function, name)

    def score(prompts: Texts, completions: Texts, **columns: Any) -> list[float | None]:
        return asyncio.run(alike(prompts, completions, **columns))

    return score if is_async(alike) else alike


def guarded_alike(function: Callable[..., Any], name: str | None = None) -> Callable[..., Any]:
    """The same, but async where `function` is."""
    if is_async(function):

        async def score_later(prompts: Texts, completions: Texts, **columns: Any) -> list[float | None]:
            return await ask_async(function, prompts, completions, columns, name)

        return score_later

    def score(prompts: Texts, completions: Texts, **columns: Any) -> list[float | None]:
        return ask(function, prompts, completions, columns, name)

    return score
