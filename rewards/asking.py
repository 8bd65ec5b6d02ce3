"""Asking a reward about completions, so that one bad row does not sink the others and nothing is hidden."""

import asyncio
import inspect
import logging
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from .base import RESERVED, RewardError, RewardFunction, log_name_of
from .text import Text, Texts, text_of

logger = logging.getLogger(__name__)


def columns_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """The columns of rows as a reward is handed them, one entry a row; without those that cannot be (`RESERVED`)."""
    return {key: [row[key] for row in rows] for key in rows[0] if key not in RESERVED}


def ask(
    function: Callable[..., Any], prompts: Texts, completions: Texts, columns: dict[str, Any], name: str | None = None
) -> list[Any]:
    """What `function` says of each completion; None where it has nothing to say or fails.

    A function that raises is asked again row by row. Rows on which it fails, or returns NaN, are reported in the log
    and get None, never 0.

    Args:
        function: a reward, or the `token_rewards` of one.
        columns: every column as a list, and what else TRL passes to a reward.
        name: how the reports call it; default: its name in the logs.

    Raises:
        RewardError: when it fails for every row, or returns something else than one number (or None) for each. An
            error of its own kind goes through: it speaks of the settings or the data, not of one row.
    """

    async def at_once(**question: Any) -> Any:
        return function(**question)

    asking = ask_async(at_once, prompts, completions, columns, name or log_name_of(function))
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
) -> list[Any]:
    """`ask` for a coroutine function (TRL's convention for rewards that call a server)."""
    name = name or log_name_of(function)
    try:
        return _checked(await function(prompts=prompts, completions=completions, **columns), prompts, name)
    except RewardError:
        raise
    except Exception as error:
        whole = error
    answers: list[Any] = []
    errors: dict[int, Exception] = {}
    for row in range(len(prompts)):
        try:
            answer = await function(**_one_row(row, prompts, completions, columns))
            answers += _checked(answer, [prompts[row]], name)
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


def _one_row(row: int, prompts: Texts, completions: Texts, columns: dict[str, Any]) -> dict[str, Any]:
    n = len(prompts)
    one = {k: [v[row]] if isinstance(v, list | tuple) and len(v) == n else v for k, v in columns.items()}
    return {"prompts": [prompts[row]], "completions": [completions[row]], **one}


def _checked(answers: Any, prompts: Texts, name: str) -> list[Any]:
    """One number, list of numbers or None for each prompt, with None for NaN."""
    if not hasattr(answers, "__len__") or isinstance(answers, str | dict):
        raise RewardError(
            f"Reward '{name}': it returned {answers!r}; return a list with one number for each completion."
        )
    if len(answers) != len(prompts):
        raise RewardError(
            f"Reward '{name}': it returned {len(answers)} scores for {len(prompts)} completions; return one for each."
        )
    return [_number(answer, row, prompts, name) for row, answer in enumerate(answers)]


def _number(answer: Any, row: int, prompts: Texts, name: str) -> Any:
    if answer is None:
        return None
    if isinstance(answer, list | tuple):  # one number for each token
        tokens = [_number(x, row, prompts, name) for x in answer]
        return None if None in tokens else tokens
    try:
        if isinstance(answer, str):
            raise TypeError
        number = float(answer)
    except (TypeError, ValueError):
        raise RewardError(
            f"Reward '{name}': it returned {answer!r} for {_excerpt(prompts[row])}; return a number, or None."
        ) from None
    if math.isnan(number):
        logger.warning("Reward '%s' returned NaN for %s; the row goes without it.", name, _excerpt(prompts[row]))
        return None
    return number


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


def asked(function: Callable[..., Any], name: str | None = None) -> RewardFunction:
    """`function` so that a row on which it fails gets None, as in training; an async one is waited for."""

    def score(prompts: Texts, completions: Texts, **columns: Any) -> list[float | None]:
        if is_async(function):
            scores = asyncio.run(ask_async(function, prompts, completions, columns, name))
        else:
            scores = ask(function, prompts, completions, columns, name)
        for score in scores:
            if isinstance(score, list):  # numbers for each token are for token_rewards
                raise RewardError(
                    f"Reward '{name or log_name_of(function)}': it returned {score!r} for one completion; return a "
                    "number, or None."
                )
        return scores

    return score
