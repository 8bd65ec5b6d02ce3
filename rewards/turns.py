"""Games of several turns: what the environment pays, and any score paid out at the turns that earn it.

A completion of several turns is a list of messages: what the model said, what tools or an environment answered, what
the model said then, and so on. All of it is one row of tokens, of which the model sampled some (docs/turns.md).
"""

import asyncio
import inspect
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from .base import Reward, RewardFunction
from .text import Text, Texts, text_of
from .tokens import TokenIds, pay, settle
from .values import read

TURNS = "completion_turns"  # under this name a reward that pays by turns is handed the turns of each completion


class Turn(NamedTuple):
    """One turn of the model, with the answers to what it called."""

    end: int  # index of its last token among those of the completion
    messages: int  # of the completion up to here, answers included
    worth: float | None = None  # what the environment's get_reward said then, where it was asked
    environment: Any = None  # a copy of the environment as it was then, where a reward reads it


class Environment(Reward):
    """What the environment itself pays: its `get_reward()`, asked when the game is over.

        {name: environment, instant: turns}

    With `instant: turns` (or `true`) it is asked after every turn as well. What it says then is what the game has been
    worth so far, and each turn is paid what it added, at its last token; so the sum is what it says at the end.
    An async `get_reward` is waited for. A row whose environment has none has no score.
    """

    def __init__(self, log_name: str = "environment"):
        super().__init__(log_name)

    def __call__(self, prompts: Texts, completions: Texts, **columns: Any) -> list[float | None]:
        environments = columns.get("environments")
        if environments is None:
            raise self.error("there is no environment; set environment: module:Class (docs/turns.md).")
        return [worth_of(environment) for environment in environments]

    def token_rewards(
        self, prompts: Texts, completions: Texts, completion_ids: TokenIds, **columns: Any
    ) -> list[list[float] | None]:
        """One number for each token of a completion, (B, T) ragged; None for a row without a score."""
        scores = self(prompts=prompts, completions=completions, **columns)
        turns = columns.get(TURNS) or [None] * len(completions)
        worths = [[turn.worth for turn in row or ()] for row in turns]
        return _at_turns(scores, turns, worths, completion_ids)


def turn_rewards(
    reward: RewardFunction,
    /,  # a column may have the name
    prompts: Texts,
    completions: Texts,
    completion_ids: TokenIds,
    **columns: Any,
) -> list[list[float] | None]:
    """What any score pays at each token, (B, T) ragged, if each turn is paid what it adds to the score.

        r_k = score(turns 1..k) - score(turns 1..k-1)   at the last token of turn k, the score of nothing being 0

    `reward` is asked about the messages up to and with each turn and the answers to it; where it has a parameter
    `environments`, it is given the environments as they were then. What the turns leave of the score, such as what
    a turn without a score before it would have been paid, comes at the last token.

    Args:
        completion_ids: B lists of sampled ids, without padding.
        columns: the columns of the data, and with them `completion_turns`, B lists of `Turn`. Without it every
            completion is one turn.
    """
    turns: Sequence[Any] = columns.pop(TURNS, None) or [None] * len(completions)
    name = f"Reward '{getattr(reward, '__name__', 'reward')}': it returned"
    rows: dict[str, Any] = {"prompts": prompts, "completions": completions, "completion_ids": completion_ids}
    scores = read(reward(**rows, **columns), len(completions), name)
    # the last turn ends with the whole: it is paid what is left
    cuts = [(row, turn) for row, of in enumerate(turns) for turn in (of or ())[:-1]]
    found: list[list[float | None]] = [[] for _ in completions]
    if cuts:
        n, at = len(completions), [row for row, _ in cuts]
        columns = {
            key: [x[row] for row in at] if isinstance(x, list | tuple) and len(x) == n else x
            for key, x in columns.items()
        }
        if reads_environments(reward):
            columns["environments"] = [turn.environment for _, turn in cuts]
        else:
            columns.pop("environments", None)  # as they are now would be a lie
        asked: dict[str, Any] = {
            "prompts": [prompts[row] for row in at],
            "completions": [completions[row][: turn.messages] for row, turn in cuts],
            "completion_ids": [list(completion_ids[row][: turn.end + 1]) for row, turn in cuts],
        }
        for row, answer in zip(at, read(reward(**asked, **columns), len(cuts), name), strict=True):
            found[row].append(answer)
    return _at_turns(scores, turns, found, completion_ids)


def calls_of(message: Mapping[str, Any]) -> list[str]:
    """What a message calls, each as one would write it: `buy(item=rope, count=2)`."""
    found = []
    for call in message.get("tool_calls") or ():
        function = call.get("function", call)
        given = function.get("arguments")
        if isinstance(given, Mapping):
            given = ", ".join(f"{name}={value}" for name, value in given.items())
        found.append(f"{function.get('name')}({given})")
    return found


def transcript(completion: Text) -> str:
    """A completion to look at: a text as it is; of messages what was said, called (`> buy(rope)`), answered."""
    if isinstance(completion, str):
        return completion
    lines = [line for m in completion for line in (text_of([m]).strip(), *(f"> {call}" for call in calls_of(m)))]
    return "\n".join(filter(None, lines))


def reads_environments(reward: object) -> bool:
    """Whether a reward names `environments` among its parameters, as TRL's documentation has it."""
    while hasattr(reward, "func"):  # functools.partial
        reward = reward.func
    try:
        return "environments" in inspect.signature(reward).parameters  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return False


def worth_of(environment: Any) -> float | None:
    """What `environment.get_reward()` says; None where it has no such method.

    Raises:
        RewardError: it is neither a number nor None.
    """
    get_reward = getattr(environment, "get_reward", None)
    if get_reward is None:
        return None
    answer = get_reward()
    if inspect.isawaitable(answer):
        answer = asyncio.run(_wait_for(answer))
    number: float | None = read([answer], 1, f"The environment {type(environment).__name__}: get_reward returned")[0]
    return number


async def _wait_for(answer: Any) -> Any:
    return await answer


def _at_turns(
    scores: Sequence[float | None],
    turns: Sequence[Any],
    worths: Sequence[Sequence[float | None]],
    completion_ids: TokenIds,
) -> list[list[float] | None]:
    """Each turn is paid what it adds to `worths`; the rest of the score comes at the last token."""
    found: list[list[float] | None] = []
    for score, of, worth, ids in zip(scores, turns, worths, completion_ids, strict=True):
        paid = pay(score, (), len(ids), None)
        if score is not None and ids:
            paid, before = [0.0] * len(ids), 0.0
            for turn, now in zip((of or ())[:-1], worth, strict=False):
                if now is not None:
                    paid[turn.end] += now - before
                    before = now
            settle(paid, score)
        found.append(paid)
    return found
