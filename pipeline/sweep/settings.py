"""What a sweep is asked for, and whether the stage would take it."""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from pipeline import cli
from pipeline.config import DataArguments, ModelArguments, RewardStage, SFTStage, check, setting
from pipeline.errors import UserError
from pipeline.report.numbers import number
from pipeline.safety.reading import read_yaml
from pipeline.sweep import measures
from pipeline.sweep.comparison import KL_LIMIT
from pipeline.sweep.space import Dimension, put, read_space

SAMPLERS = ("tpe", "random", "grid")
PRUNERS = ("median", "halving", "none")
STAGES = ("sft", "reward", "ppo", "grpo", "rloo", "ilql", "dpo")
TRIALS = 20
# What would make the exams of two trials different exams, or is the sweep's own business.
NOT_SWEPT = {"eval_samples", "eval_dataset", "eval_split", "eval_fraction", "max_rows", "referee"}
OWN = {"output_dir", "resume", "resume_from_checkpoint", "push_to_hub", "eval_every"}


@dataclass
class SweepSettings:
    """What is tried, and what counts."""

    stage: str | None = setting(None, f"The stage whose settings are tried: {', '.join(STAGES)}.")
    stage_config: str | None = setting(None, "Its YAML, e.g. recipes/tiny/ppo.yaml.")
    output_dir: str | None = setting(None, "Folder of the sweep. If there is one in it already, it goes on.")
    measure: str | None = setting(
        None, "Held-out measure that counts, of the last exam: score, rewards.<name>, one of the referee's, loss, ..."
    )
    kl_limit: float | None = setting(
        KL_LIMIT, "A trial that ends farther from its start, in nats a completion, cannot be the best; none: any may."
    )
    space: dict = setting(
        {}, "Setting -> {choice: [...]}, {log: [low, high]}, {uniform: [low, high]} or {int: [low, high]}."
    )
    overrides: dict = setting({}, "Settings of every trial, over those of stage_config, such as a shorter run.")
    sampler: str = setting("tpe", "What to try next: tpe, random, or grid (every combination once).")
    pruner: str = setting("median", "What to stop early: median, halving (successive halving) or none.")
    trials: int | None = setting(None, f"How many; none: {TRIALS}, for grid all combinations.")
    jobs: int = setting(1, "Trials at once, with one thread each when 2 or more.")
    seed: int = setting(0, "Seed of the sampler. (Every trial has the stage's own seed.)")

    def __post_init__(self):
        check(self.stage in STAGES, "stage", self.stage, f"one of {', '.join(STAGES)}")
        check(bool(self.stage_config), "stage_config", self.stage_config, "the stage's YAML")
        check(bool(self.output_dir), "output_dir", self.output_dir, "a folder for the sweep, e.g. runs/tiny/sweep")
        check(self.kl_limit is None or self.kl_limit > 0, "kl_limit", self.kl_limit, "a number above 0, or null")
        check(self.sampler in SAMPLERS, "sampler", self.sampler, f"one of {', '.join(SAMPLERS)}")
        check(self.pruner in PRUNERS, "pruner", self.pruner, f"one of {', '.join(PRUNERS)} (none in quotes)")
        check(self.trials is None or self.trials >= 1, "trials", self.trials, "a whole number from 1 up")
        check(self.jobs >= 1, "jobs", self.jobs, "a whole number from 1 up")
        check(self.seed >= 0, "seed", self.seed, "a whole number from 0 up")


class Plan(NamedTuple):
    """A sweep that can be run."""

    asked: SweepSettings
    folder: Path
    config: dict[str, Any]  # of the stage, without overrides, as its YAML has it
    base: dict[str, Any]  # with overrides
    resolved: dict[str, Any]  # `base` with the stage's defaults
    space: dict[str, Dimension]
    higher_is_better: bool
    trials: int

    @property
    def startup(self) -> int:
        """Trials before TPE leaves off drawing at random, and ends before the median pruner begins to compare."""
        return max(3, min(10, self.trials // 4))

    def settings(self, params: dict[str, Any]) -> dict[str, Any]:
        """The stage's settings for a trial; `params` as the study has them."""
        settings = copy.deepcopy(self.base)
        for key, value in params.items():
            put(settings, key, self.space[key].value(value))
        return settings

    def shown(self, key: str, params: dict[str, Any]) -> str:
        """What a trial has for `key`, as a person writes it."""
        if key not in params:
            return "–"
        value = self.space[key].value(params[key])
        return number(value) if isinstance(value, float) else str(value)

    def identity(self) -> dict[str, Any]:
        """What must be as it was when the sweep goes on."""
        keys = ("stage", "measure", "kl_limit", "space", "sampler", "pruner", "seed")
        return {key: getattr(self.asked, key) for key in keys} | {"the stage's settings": self.base}


def plan(asked: SweepSettings) -> Plan:
    """Checks a sweep against its stage.

    Raises:
        UserError: a setting that the stage does not have or does not take, an unknown measure, a space that is empty
            or does not suit the sampler.
    """
    kinds = dataclasses_of(asked.stage)
    cli.parse(*kinds, argv=["--config", asked.stage_config])
    config = read_yaml(Path(asked.stage_config))
    config.pop("versions", None)
    if own := OWN - {"eval_every"} & set(asked.overrides):
        raise UserError(f"overrides: {', '.join(sorted(own))} cannot be set there, each trial has its own")
    base = config | copy.deepcopy(asked.overrides)
    resolved = {}
    for item in cli.build(base, *kinds, where=f"{asked.stage_config} with overrides"):
        resolved |= {key: value for key, value in vars(item).items() if key not in resolved}
    space = read_space(asked.space)
    for key, dimension in space.items():
        _check_dimension(key, dimension, base, kinds)
    known = measures.known(asked.stage, resolved)
    if asked.measure not in known:
        raise UserError(f"measure: {asked.measure!r} is none of {asked.stage}'s: choose from {', '.join(known)}")
    if asked.measure == "score" and (weights := [key for key in space if key.partition(".")[0] == "rewards"]):
        raise UserError(
            f"measure: score adds up the rewards, which the space changes ({', '.join(weights)}), so that two trials "
            f"could not be compared: choose another one from {', '.join(name for name in known if name != 'score')}"
        )
    offline = asked.stage in ("ilql", "dpo")  # which exam is its last one does not show in their rows
    if asked.pruner != "none" and offline:
        raise UserError(f'pruner: runs of {asked.stage} are not stopped early; set pruner: "none"')
    if asked.pruner != "none" and not measures.in_between(resolved):
        raise UserError(
            f"pruner: {asked.pruner} compares exams during training, and this stage takes none: set eval_every "
            "(sft, reward: eval_strategy) in overrides, or pruner: 'none'"
        )
    trials = asked.trials or TRIALS
    if asked.sampler == "grid":
        points = 1
        for key, dimension in space.items():
            points *= len(dimension.grid(key))
        trials = min(points, asked.trials or points)
    return Plan(asked, Path(asked.output_dir), config, base, resolved, space, known[asked.measure], trials)


def dataclasses_of(stage: str) -> tuple[type, ...]:
    """What recipes/<stage>.py parses."""
    if stage in ("sft", "reward"):
        return ModelArguments, DataArguments, SFTStage if stage == "sft" else RewardStage
    from pipeline.exam.exam import RewardArguments

    if stage == "ppo":
        from pipeline.ppo.config import PPOStage

        return ModelArguments, DataArguments, RewardArguments, PPOStage
    if stage == "dpo":
        from pipeline.config import DPOStage

        return ModelArguments, DataArguments, RewardArguments, DPOStage
    if stage == "ilql":
        from pipeline.ilql.config import ILQLStage

        return ModelArguments, DataArguments, RewardArguments, ILQLStage
    from pipeline.config import GRPOStage, RLOOStage

    return ModelArguments, DataArguments, RewardArguments, GRPOStage if stage == "grpo" else RLOOStage


def _check_dimension(key: str, dimension: Dimension, base: dict, kinds: tuple[type, ...]) -> None:
    setting = key.partition(".")[0]
    if setting in OWN | NOT_SWEPT:
        why = "decides what is examined, and all trials must take the same exam" if setting in NOT_SWEPT else "is not"
        raise UserError(f"space: {key} {why if setting in NOT_SWEPT else 'is not a setting to try'}")
    for value in dimension.ends():
        settings = copy.deepcopy(base)
        put(settings, key, value)
        # the type alone: what does not go together with other settings is a failed trial, not a wrong space
        cli.checked(settings, kinds, "space")
