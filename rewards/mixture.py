"""Rewards put together: weights, clipping, running normalization."""

import functools
import inspect
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch.distributed

from .base import Reward, WeightedReward, build_rewards, log_name_of, number


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


class Shaped(Reward):
    """A reward whose scores are normalized, then clipped. `build_rewards` makes it from the options.

    Args:
        reward: any reward or function.
        normalize: "running": (score - mean) / standard deviation over all scores so far, this batch included.
            With several processes all of them must call the reward, and all use the statistics of all.
        clip: [lowest, highest].
        log_name: name in the logs.

    Attributes:
        raw: the reward as it was. Held-out scores are reported from it: normalized ones have no fixed unit.
        training: False leaves the statistics as they are.
    """

    def __init__(
        self,
        reward: Callable[..., list[float | None]],
        normalize: str | None = None,
        clip: Sequence[float] | None = None,
        log_name: str | None = None,
    ):
        super().__init__(log_name or log_name_of(reward))
        self.raw = reward
        self.training = True
        if _is_async(reward):
            raise self.error("clip, normalize and log_name are not for async functions; do it inside the function.")
        if normalize not in (None, False, "none", "running"):
            raise self.error(f"normalize is {normalize!r}; give running, or leave it out.")
        self.stats = RunningStats() if normalize == "running" else None
        self.clip = None if clip is None else self._bounds(clip)

    def __call__(self, prompts: Sequence, completions: Sequence, **columns: Any) -> list[float | None]:
        scores = list(self.raw(prompts=prompts, completions=completions, **columns))
        if self.stats is not None:
            if self.training:
                self._see([float(score) for score in scores if is_score(score)])
            mean, std = self.stats.mean, self.stats.std
            scores = [(score - mean) / std if is_score(score) else None for score in scores]
        if self.clip is not None:
            low, high = self.clip
            scores = [min(max(float(score), low), high) if is_score(score) else None for score in scores]
        return scores

    def state_dict(self) -> dict[str, Any]:
        state = {} if self.stats is None else {"stats": vars(self.stats).copy()}
        inner = self.raw.state_dict() if isinstance(self.raw, Reward) else {}
        return state | ({"raw": inner} if inner else {})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self.stats is not None:
            if "stats" not in state:
                raise self.error("the saved state has no running statistics; was normalize set when it was saved?")
            self.stats = RunningStats(**state["stats"])
        if isinstance(self.raw, Reward) and "raw" in state:
            self.raw.load_state_dict(state["raw"])

    def _see(self, scores: list[float]) -> None:
        batch = RunningStats.of(scores)
        for stats in _from_every_process(batch):  # in the order of the ranks, so every process gets the same bits
            self.stats.merge(stats)

    def _bounds(self, clip: Any) -> tuple[float, float]:
        if not isinstance(clip, Sequence) or isinstance(clip, str) or len(clip) != 2:
            raise self.error(f"clip is {clip!r}; give [lowest, highest].")
        low, high = (number(bound, "clip", self.__name__) for bound in clip)
        if low >= high:
            raise self.error(f"clip is [{low:g}, {high:g}]; the first number must be the smaller one.")
        return low, high


class Mixture(Reward):
    """Several rewards as one: the weighted sum of their scores.

    A part that has no score for a row is left out of that row's sum; a row that no part can score gets None. This is
    what TRL does with a list of rewards, so a mixture can stand where one function is asked for. In a trainer each
    part's mean is logged as `<mixture>/<part>`.

        {name: mixture, log_name: quality, clip: [0, 1], rewards: [{name: bleu, weight: 0.5}, {name: rougeL}]}

    Options:
        rewards: specs as `build_rewards` takes them.
    """

    def __init__(self, rewards: Iterable[Any], log_name: str = "mixture"):
        super().__init__(log_name)
        given = [rewards] if isinstance(rewards, str | dict) else list(rewards or ())
        self.parts = given if given and all(isinstance(x, WeightedReward) for x in given) else build_rewards(given)
        if not self.parts:
            raise self.error("give at least one reward under `rewards`.")

    def __call__(self, prompts: Sequence, completions: Sequence, **columns: Any) -> list[float | None]:
        totals: list[float | None] = [None] * len(completions)
        for reward, weight in self.parts:
            scores = list(reward(prompts=prompts, completions=completions, **columns))
            if len(scores) != len(totals):
                raise self.error(f"'{log_name_of(reward)}' gave {len(scores)} scores for {len(totals)} completions.")
            self._log(columns.get("log_metric"), log_name_of(reward), scores)
            for row, score in enumerate(scores):
                if is_score(score):
                    totals[row] = (totals[row] or 0.0) + weight * float(score)
        return totals

    def state_dict(self) -> dict[str, Any]:
        return state_of(self.parts)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        load_state(self.parts, state)

    def _log(self, log_metric: Callable | None, part: str, scores: list[float | None]) -> None:
        known = [float(score) for score in scores if is_score(score)]
        if log_metric is not None and known:
            log_metric(f"{self.__name__}/{part}", sum(known) / len(known))


def is_score(score: float | None) -> bool:
    """Whether `score` is a number; None and NaN mean that there is none."""
    return score is not None and not math.isnan(score)


def raw(reward: Callable) -> Callable:
    """The reward without normalization and clipping, for reports."""
    return reward.raw if isinstance(reward, Shaped) else reward


def state_of(rewards: Iterable[WeightedReward]) -> dict[str, Any]:
    """The states of all rewards that have one, by their names in the logs; plain numbers, fit for JSON."""
    states = {log_name_of(r): r.state_dict() for r, _ in rewards if isinstance(r, Reward)}
    return {name: state for name, state in states.items() if state}


def load_state(rewards: Iterable[WeightedReward], state: dict[str, Any]) -> None:
    """Gives every reward its state from `state_of` back."""
    for reward, _ in rewards:
        if isinstance(reward, Reward) and log_name_of(reward) in state:
            reward.load_state_dict(state[log_name_of(reward)])


def _is_async(reward: Callable) -> bool:
    while isinstance(reward, functools.partial):
        reward = reward.func
    return inspect.iscoroutinefunction(reward) or inspect.iscoroutinefunction(type(reward).__call__)


def _from_every_process(stats: RunningStats) -> list[RunningStats]:
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return [stats]
    gathered: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(gathered, stats)
    return gathered
