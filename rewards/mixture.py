"""Rewards put together: weights, clipping, running normalization; what is paid per token goes along."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from .asking import ask, is_async
from .base import Reward, RewardError, RewardFunction, WeightedReward, bound, log_name_of, number
from .text import Texts
from .tokens import TokenEnds, TokenIds, pay, pays_tokens, settle
from .values import read

# called by each process before all of them put running statistics together
before_gathering: list[Callable[[], None]] = []


class RunningStats:
    """Count, mean and sum of squared deviations of all numbers seen so far.

    Source: Chan, Golub, LeVeque 1979, "Updating Formulae and a Pairwise Algorithm for Computing Sample Variances",
    equation 1.5.
    """

    def __init__(self, count: int = 0, mean: float = 0.0, m2: float = 0.0):
        self.count, self.mean, self.m2 = count, mean, m2

    @classmethod
    def of(cls, numbers: Sequence[float]) -> "RunningStats":
        """The statistics of `numbers`."""
        if not numbers:
            return cls()
        mean = math.fsum(numbers) / len(numbers)
        return cls(len(numbers), mean, math.fsum((x - mean) ** 2 for x in numbers))

    def merge(self, other: "RunningStats") -> None:
        """Adds what `other` has seen."""
        if not other.count:
            return
        count, delta = self.count + other.count, other.mean - self.mean
        self.m2 += other.m2 + delta**2 * self.count * other.count / count
        self.mean += delta * other.count / count
        self.count = count

    @property
    def std(self) -> float:
        """Population standard deviation; 1 where all numbers so far were the same, so that it can divide."""
        std = math.sqrt(self.m2 / self.count) if self.count else 0.0
        return std if std > 1e-8 else 1.0


class Wrapper(Reward):
    """A reward around another one, `raw`."""

    for_training = True  # reports have the score of what it holds, for this one has no fixed unit

    def __init__(self, reward: RewardFunction, log_name: str | None = None):
        super().__init__(log_name or log_name_of(reward))
        self.raw = bound(reward)

    @property
    def inside(self) -> list[RewardFunction]:
        """The rewards that it holds."""
        return [self.raw]

    def prepare(self) -> None:
        prepare(self.inside)

    def state_dict(self) -> dict[str, Any]:
        return self.raw.state_dict() if isinstance(self.raw, Reward) else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if isinstance(self.raw, Reward):
            self.raw.load_state_dict(state)


class Shaped(Wrapper):
    """A reward whose scores are normalized, then clipped. `build_rewards` makes it from the options.

    Args:
        reward: any reward or function.
        normalize: "running": (score - mean) / standard deviation over all scores so far, this batch included.
            With several processes all of them must call the reward, and all use the statistics of all.
        clip: [lowest, highest].
        log_name: name in the logs.

    It pays per token where `reward` does: the token rewards divided by the standard deviation, and what the mean and
    the clip take or give at the last token.

    Attributes:
        raw: the reward as it was. Held-out scores are reported from it: normalized ones have no fixed unit.
        training: False leaves the statistics as they are.
    """

    def __init__(
        self,
        reward: RewardFunction,
        normalize: str | None = None,
        clip: Sequence[float] | None = None,
        log_name: str | None = None,
    ):
        super().__init__(reward, log_name)
        self.training = True
        if is_async(reward):
            raise self.error("clip and normalize are not for async functions; do it inside the function.")
        if normalize not in (None, False, "none", "running"):
            raise self.error(f"normalize is {normalize!r:.100}; give running, or leave it out.")
        self.stats = RunningStats() if normalize == "running" else None
        self.clip = None if clip is None else self._bounds(clip)

    def __call__(self, prompts: Texts, completions: Texts, **columns: Any) -> list[float | None]:
        scores = ask(self.raw, prompts, completions, columns)
        if self.stats is not None and self.training:
            self._see(self.stats, [score for score in scores if score is not None])
        return [None if score is None else self.shape(score) for score in scores]

    def shape(self, score: float) -> float:
        """`score` normalized with the statistics as they are, and clipped."""
        if self.stats is not None:
            score = (score - self.stats.mean) / self.stats.std
        return score if self.clip is None else min(max(score, self.clip[0]), self.clip[1])

    @property
    def instant(self) -> bool:  # type: ignore[override]  # not to be set: it follows what is inside
        return pays_tokens(self.raw)

    def token_rewards(
        self, prompts: Texts, completions: Texts, completion_ids: TokenIds, token_ends: TokenEnds, **columns: Any
    ) -> list[list[float] | None]:
        """See `Shaped`; (B, T) ragged. The statistics stay as they are: `__call__` has seen these completions."""
        paid = token_rewards_of(self.raw, prompts, completions, completion_ids, token_ends, **columns)
        std = 1.0 if self.stats is None else self.stats.std
        return [
            None if row is None else settle([reward / std for reward in row], self.shape(math.fsum(row)))
            for row in paid
        ]

    def state_dict(self) -> dict[str, Any]:
        state = {} if self.stats is None else {"stats": vars(self.stats).copy()}
        inner = super().state_dict()
        return state | ({"raw": inner} if inner else {})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self.stats is not None:
            if "stats" not in state:
                raise self.error("the saved state has no running statistics; was normalize set when it was saved?")
            self.stats = RunningStats(**state["stats"])
        if "raw" in state:
            super().load_state_dict(state["raw"])

    def _see(self, so_far: RunningStats, scores: list[float]) -> None:
        batch = RunningStats.of(scores)
        for stats in _from_every_process(batch):  # in the order of the ranks, so every process gets the same bits
            so_far.merge(stats)

    def _bounds(self, clip: Any) -> tuple[float, float]:
        if not isinstance(clip, Sequence) or isinstance(clip, str) or len(clip) != 2:
            raise self.error(f"clip is {clip!r:.100}; give [lowest, highest].")
        low, high = (number(bound, "clip", self.__name__) for bound in clip)
        if low >= high:
            raise self.error(f"clip is [{low:g}, {high:g}]; the first number must be the smaller one.")
        return low, high


class Combination(Reward):
    """Several rewards as one. In a trainer each part's mean is logged as `<log name>/<part>`.

    Attributes:
        parts: the rewards with their weights.
    """

    def __init__(self, parts: Iterable[WeightedReward], log_name: str):
        super().__init__(log_name)
        self.parts = [WeightedReward(bound(reward), weight) for reward, weight in parts]
        if not self.parts:
            raise self.error("give at least one reward under `rewards`.")

    @property
    def inside(self) -> list[RewardFunction]:
        """The rewards that it holds."""
        return [reward for reward, _ in self.parts]

    def prepare(self) -> None:
        prepare(self.inside)

    def state_dict(self) -> dict[str, Any]:
        return state_of((reward, 1.0) for reward in self.inside)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        load_state(((reward, 1.0) for reward in self.inside), state)

    def _log(self, log_metric: Callable[[str, float], None] | None, part: str, scores: Sequence[float | None]) -> None:
        known = [score for score in scores if score is not None]
        if log_metric is not None and known:
            log_metric(f"{self.__name__}/{part}", sum(known) / len(known))


class WeightedSum(Combination):
    """Several rewards as one: the weighted sum of their scores.

    A part that has no score for a row is left out of that row's sum; a row that no part can score gets None. This is
    what TRL does with a list of rewards, so a mixture can stand where one function is asked for.

    It pays per token where at least one part does (that part has `instant`): each such part at its own tokens, the
    others at the last one. These others are scored a second time for it.
    """

    def __call__(self, prompts: Texts, completions: Texts, **columns: Any) -> list[float | None]:
        totals: list[float | None] = [None] * len(completions)
        for reward, weight in self.parts:
            scores = ask(reward, prompts, completions, columns)
            self._log(columns.get("log_metric"), log_name_of(reward), scores)
            for row, score in enumerate(scores):
                if score is not None:
                    totals[row] = (totals[row] or 0.0) + weight * score
        return totals

    @property
    def instant(self) -> bool:  # type: ignore[override]  # not to be set: it follows what is inside
        return any(pays_tokens(reward) for reward, _ in self.parts)

    def token_rewards(
        self, prompts: Texts, completions: Texts, completion_ids: TokenIds, token_ends: TokenEnds, **columns: Any
    ) -> list[list[float] | None]:
        """See `WeightedSum`; (B, T) ragged."""
        totals: list[list[float] | None] = [None] * len(completions)
        for reward, weight in self.parts:
            paid = token_rewards_of(reward, prompts, completions, completion_ids, token_ends, **columns)
            for i, row in enumerate(paid):
                if row is not None:
                    total = totals[i] or [0.0] * len(row)
                    totals[i] = [sum_ + weight * reward for sum_, reward in zip(total, row, strict=True)]
        return totals


def prepare(rewards: Iterable[RewardFunction]) -> None:
    """Has every reward load what it needs; a plain function says nothing about that."""
    for reward in rewards:
        if isinstance(reward, Reward):
            reward.prepare()


def raw(reward: RewardFunction) -> RewardFunction:
    """The reward without normalization, clipping and payment per token, for reports."""
    while isinstance(reward, Wrapper) and reward.for_training:
        reward = reward.raw
    return reward


def token_rewards_of(
    reward: RewardFunction,
    /,  # a column may have the name
    prompts: Texts,
    completions: Texts,
    completion_ids: TokenIds,
    token_ends: TokenEnds,
    **columns: Any,
) -> list[list[float] | None]:
    """What any reward pays for each sampled token: its `token_rewards` if it has them, else its score at the last one.

    Nothing is logged by it, and running statistics stay as they are: both are for the reward's own call.

    Args:
        completion_ids: B lists of sampled ids, without padding.
        token_ends: B lists from `token_ends`, or None where the text is not aligned with the ids.
        prompts, completions, columns: as in the reward's call.

    Returns:
        B lists as long as the ids; None where there is no score.

    Raises:
        RewardError: `token_rewards` gives another number of rows, or of numbers in a row.
    """
    rows: dict[str, Any] = {"prompts": prompts, "completions": completions, "completion_ids": completion_ids}
    columns = silent(columns)
    with at_rest(reward):
        answer = reward if not pays_tokens(reward) else partial(reward.token_rewards, token_ends=token_ends)
        got = f"Reward '{(name := log_name_of(reward))}': {'token_rewards' if pays_tokens(reward) else 'it'} returned"
        paid = read(answer(**rows, **columns), len(completion_ids), got, tokens=pays_tokens(reward))
    if not pays_tokens(reward):
        return [pay(score, (), len(ids), None) for score, ids in zip(paid, completion_ids, strict=True)]
    for i, (row, ids) in enumerate(zip(paid, completion_ids, strict=True)):
        if isinstance(row, float):
            raise RewardError(
                f"Reward '{name}': token_rewards gave one number for completion {i}; give one for each sampled token."
            )
        if row is not None and len(row) != len(ids):
            raise RewardError(
                f"Reward '{name}': token_rewards gave {len(row)} numbers for the {len(ids)} tokens of completion {i}; "
                "give one for each sampled token."
            )
    return paid


def set_training(reward: RewardFunction, training: bool) -> None:
    """Whether running statistics inside `reward`, however deep, go on with each call (True) or stay as they are."""
    for shaped in _shaped_in(reward):
        shaped.training = training


@contextmanager
def at_rest(reward: RewardFunction) -> Iterator[None]:
    """Inside, the running statistics in `reward` stay as they are."""
    before = [(shaped, shaped.training) for shaped in _shaped_in(reward)]
    set_training(reward, False)
    try:
        yield
    finally:
        for shaped, training in before:
            shaped.training = training


def state_of(rewards: Iterable[tuple[RewardFunction, float]]) -> dict[str, Any]:
    """The states of all rewards that have one, by their names in the logs; plain numbers, fit for JSON."""
    states = {log_name_of(r): r.state_dict() for r, _ in rewards if isinstance(r, Reward)}
    return {name: state for name, state in states.items() if state}


def load_state(rewards: Iterable[tuple[RewardFunction, float]], state: dict[str, Any]) -> None:
    """Gives every reward its state from `state_of` back."""
    for reward, _ in rewards:
        if isinstance(reward, Reward) and log_name_of(reward) in state:
            reward.load_state_dict(state[log_name_of(reward)])


def every_in(reward: RewardFunction) -> Iterator[RewardFunction]:
    """Every reward in a reward: itself, what it wraps, the parts of a mixture."""
    yield reward
    for part in reward.inside if isinstance(reward, Wrapper | Combination) else ():
        yield from every_in(part)


def _shaped_in(reward: RewardFunction) -> list[Shaped]:
    return [part for part in every_in(reward) if isinstance(part, Shaped)]


def silent(columns: dict[str, Any]) -> dict[str, Any]:
    """`columns` with TRL's log functions replaced by ones that do nothing."""
    return columns | {key: lambda *args, **kwargs: None for key in ("log_metric", "log_extra") if key in columns}


def _from_every_process(stats: RunningStats) -> list[RunningStats]:
    import torch.distributed  # heavy, and needed by normalized rewards alone

    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return [stats]
    for call in before_gathering:
        call()
    gathered: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(gathered, stats)
    return gathered
