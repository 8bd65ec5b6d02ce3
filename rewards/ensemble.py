"""Several reward models of the same thing that know when they do not know: their mean, less their disagreement."""

import json
import re
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .asking import ask
from .base import RewardError, RewardFunction, WeightedReward, number
from .mixture import Combination
from .text import Texts

MEMBER = re.compile(r"member_[1-9][0-9]*")  # folders of the reward stage with `ensemble`


def members_of(path: str | None) -> list[Path]:
    """The reward models of an ensemble, in their order; none where the folder is something else."""
    found = [each for each in Path(path).glob("member_*") if MEMBER.fullmatch(each.name)] if path else []
    return sorted((each for each in found if each.is_dir()), key=lambda each: (len(each.name), each.name))


def check_whole(path: str, log_name: str) -> None:
    """Raises `RewardError` unless the ensemble in a folder has as many reward models as its summary counts: without
    one of them mean and spread would be others, and nothing would tell."""
    summary = Path(path, "summary.json")
    try:
        count = int(json.loads(summary.read_text(encoding="utf-8"))["ensemble"])
    except (OSError, ValueError, KeyError, TypeError):
        raise RewardError(
            f"Reward '{log_name}': {summary}, which counts the reward models of the ensemble, is missing or cannot be "
            "read: go on with the stage that trains them (--resume), or put the file back."
        ) from None
    there, wanted = {each.name for each in members_of(path)}, [f"member_{number}" for number in range(1, count + 1)]
    if missing := [name for name in wanted if name not in there]:
        raise RewardError(
            f"Reward '{log_name}': '{path}' is an ensemble of {count} reward models, of which {', '.join(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} missing: put back what is, or train it again."
        )
    if len(there) > count:
        raise RewardError(
            f"Reward '{log_name}': '{path}' is an ensemble of {count} reward models, but there are {len(there)} in "
            f"it: remove those beyond {wanted[-1]}."
        )


def pessimistic(scores: Sequence[float], pessimism: float) -> tuple[float, float]:
    """(mean - pessimism · s, s) of what k members say, with s = sqrt(Σ (score - mean)² / k), their spread.

    Uncertainty-weighted optimization of Coste et al. 2023, arXiv 2310.02743, but for the spread: they subtract a
    multiple of the variance, s². In the units of the scores the factor means the same whatever their scale is.
    """
    spread = statistics.pstdev(scores)
    return statistics.fmean(scores) - pessimism * spread, spread


class Ensemble(Combination):
    """Reward models trained on the same pairs: the mean of their scores less `pessimism` times their spread.

    `{name: learned, path: ...}` makes it of a folder that `make reward` wrote with `ensemble: k`. In a trainer the
    mean spread of the completions is logged as `<log name>/spread`. A row for which a member has no score gets none.

    With `instant` each word is paid by the difference that it makes to this score: every prefix is scored by each
    member.
    """

    def __init__(self, members: Sequence[RewardFunction], pessimism: float = 0.0, log_name: str = "learned"):
        super().__init__([WeightedReward(member, 1.0) for member in members], log_name)
        self.pessimism = number(pessimism, "pessimism", log_name)
        if self.pessimism < 0:
            raise self.error(f"pessimism is {pessimism:g}; give a number from 0 up.")

    def __call__(self, prompts: Texts, completions: Texts, **columns: Any) -> list[float | None]:
        said = [ask(member, prompts, completions, columns) for member, _ in self.parts]
        scores: list[float | None] = []
        spreads: list[float | None] = []
        for row in zip(*said, strict=True):
            known = [score for score in row if score is not None]
            found = pessimistic(known, self.pessimism) if len(known) == len(row) else (None, None)
            scores.append(found[0])
            spreads.append(found[1])
        self._log(columns.get("log_metric"), "spread", spreads)
        return scores
