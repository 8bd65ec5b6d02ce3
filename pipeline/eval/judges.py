"""Who says which of two answers wins: functions of one's own, or a language model; asked in both orders."""

import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from trl import is_conversational

from pipeline.errors import UserError
from rewards import Judge as LanguageModel
from rewards import RewardError, RewardFunction, build_rewards, log_name_of
from rewards.asking import columns_of
from rewards.base import RESERVED

SIDES = ("completions_a", "completions_b")  # what a judge is asked about; no column can have the name
Judge = Callable[..., Sequence[float | None]]
Pair = tuple[float | None, float | None]  # 1 = ours wins: shown first, shown second


def read_judges(specs: Iterable[Any], columns: Sequence[str] = ()) -> dict[str, Judge]:
    """Judges by name: `mymodule:function`, or `{name: mymodule:function, option: ...}`, imported as rewards are; or a
    language model, `{name: judge, url: ..., model: ...}` with the options of the reward, which is asked once here.

    Args:
        columns: what each of them will be given besides prompts and completions.

    Raises:
        UserError, RewardError: no function of the user's own, none there, or one that does not take the columns.
    """
    judges: dict[str, Judge] = {}
    for spec in specs:
        named = spec["name"] if isinstance(spec, dict) else spec
        if not callable(named) and named != "judge" and ":" not in str(named):
            wants = "name a function of your own, e.g. mymodule:prefer, or judge for a language model"
            raise UserError(f"judges: {named!r} is not valid: {wants}")
        [(function, _)] = build_rewards([spec])
        name = log_name_of(function)
        if name in judges:
            raise UserError(f"judges: two are called {name}; rename one of the functions, or give a log_name")
        if named == "judge":
            judges[name] = _language_model(function)
            continue
        try:
            inspect.signature(function).bind(
                [], [], [], **dict.fromkeys(sorted(set(columns) - {*RESERVED, *SIDES}), [])
            )
        except TypeError as error:
            raise UserError(
                f"judge {name} does not take what it will be given ({error}); write it as "
                f"{name}(prompts, completions_a, completions_b, **columns)"
            ) from None
        judges[name] = function
    return judges


def _language_model(reward: RewardFunction) -> Judge:
    name = log_name_of(reward)
    if not isinstance(reward, LanguageModel):
        raise UserError(f"judges: {name} says who wins: leave weight, clip, normalize and instant out")
    if reward.against or reward.reference:
        raise UserError(f"judges: {name} compares two candidates' answers: leave against and reference out")
    reward.prepare()
    return reward.prefer


def both_orders(
    judge: Judge, name: str, rows: Sequence[dict], ours: Sequence[str], theirs: Sequence[str]
) -> list[Pair]:
    """What the judge says of each row with our answer shown first, and with our answer shown second.

    Raises:
        UserError: it fails, or does not give one number from 0 to 1, or None, for each pair.
        RewardError: a language model's server fails.
    """
    prompts = [row["prompt"] for row in rows]
    columns = {key: values for key, values in columns_of(rows).items() if key not in SIDES}
    if is_conversational({"prompt": prompts[0]}):
        ours, theirs = ([[{"role": "assistant", "content": text}] for text in side] for side in (ours, theirs))
    try:
        first = judge(prompts, list(ours), list(theirs), **columns)
        second = judge(prompts, list(theirs), list(ours), **columns)
    except RewardError:
        raise
    except Exception as error:  # it is the user's own code
        raise UserError(f"judge {name} failed: {type(error).__name__}: {error}") from error
    first, second = (_verdicts(given, name, len(rows)) for given in (first, second))
    return [(a, None if b is None else 1 - b) for a, b in zip(first, second, strict=True)]


def means(pairs: Sequence[Pair]) -> list[float | None]:
    """The mean of both orders, 1 = ours wins; None where one is missing. One that prefers whatever comes first gives
    ties."""
    return [None if a is None or b is None else (a + b) / 2 for a, b in pairs]


def order_of(pairs: Sequence[Pair]) -> dict[str, Any]:
    """How much the order counted, on the pairs with a verdict in both.

    `first`: the share of verdicts for the answer that was shown first, a tie half; 0.5: the order does not count.
    `each`: the same of every pair, None where a verdict is missing. `agree`: the share of pairs with the same verdict
    in both orders. `missing`: verdicts that could not be had.
    """
    each = [None if a is None or b is None else (a + 1 - b) / 2 for a, b in pairs]
    known = [share for share in each if share is not None]
    same = [abs(a - b) < 1e-9 for a, b in pairs if a is not None and b is not None]
    return {
        "first": sum(known) / len(known) if known else None,
        "each": each,
        "agree": sum(same) / len(same) if same else None,
        "missing": sum(verdict is None for pair in pairs for verdict in pair),
    }


def _verdicts(given: Any, name: str, count: int) -> list[float | None]:
    wants = "return a list with 1 (the first wins), 0, 0.5 (a tie) or None for each pair"
    if not hasattr(given, "__len__") or isinstance(given, str | dict) or len(given) != count:
        raise UserError(f"judge {name} returned {given!r:.80} for {count} pairs; {wants}")
    for verdict in given:
        if verdict is not None and not (isinstance(verdict, int | float | np.number) and 0 <= verdict <= 1):
            raise UserError(f"judge {name} returned {verdict!r:.80} for a pair; {wants}")
    return [None if verdict is None else float(verdict) for verdict in given]
