"""The trials in SQLite: who takes which, and what became of it.

Any number of processes may share a study. What is decided together (which trial is next, which one lost its process)
is decided under a lock on the folder; that a trial is being run shows by a lock on its YAML, which the kernel lets go
of when the process ends in whatever way. Both hold for the processes of one machine, as does SQLite itself.
"""

import fcntl
import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import numpy as np
import optuna
import sqlalchemy.exc
import yaml
from optuna.trial import FrozenTrial, Trial, TrialState

from pipeline.errors import UserError, shortened
from pipeline.runs.folder import write_aside
from pipeline.safety.console import say
from pipeline.sweep.settings import Plan

DATABASE, PLAN, LOCK = "study.db", "plan", ".lock"
PUT_BACK = "put_back"  # of a trial that was stopped with its sweep: another one has its settings and its folder
AGAIN = "again"  # of that other one
EXAM = "exam"  # what the trial's last exam said: value (of the measure), kl, cpu_seconds, seconds; and how many exams
SECONDS_FOR_SQLITE = 60  # to wait for another process that writes


class GridSampler(optuna.samplers.GridSampler):
    """Optuna's, without the end of `study.optimize`, which is not used here: the sweep counts its trials itself."""

    def after_trial(self, study, trial, state, values):
        pass


class Study:
    """The sweep's Optuna study, as one process sees it."""

    def __init__(self, plan: Plan):
        """Opens the study in the plan's folder, or makes it.

        Raises:
            UserError: the folder holds something else, or a sweep that was asked for something else.
        """
        self.plan, self.folder = plan, plan.folder
        self._claims: dict[int, IO] = {}  # by the number of the trial
        if self.folder.is_dir() and any(self.folder.iterdir()) and not (self.folder / LOCK).exists():
            raise UserError(f"output_dir {self.folder} holds files, but no sweep: give another --output_dir")
        fresh = not self.folder.exists()
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with self.locked():
                self._open()
        except (OSError, sqlalchemy.exc.OperationalError) as error:
            if fresh:  # nothing was tried yet
                shutil.rmtree(self.folder, ignore_errors=True)
            reason = error.strerror if isinstance(error, OSError) else str(error.orig)
            raise UserError(
                f"output_dir {self.folder} cannot be written ({reason}): make room, or give another --output_dir"
            ) from None

    def _open(self) -> None:
        plan = self.plan
        self.study = optuna.create_study(
            storage=optuna.storages.RDBStorage(
                f"sqlite:///{self.folder / DATABASE}",
                engine_kwargs={"connect_args": {"timeout": SECONDS_FOR_SQLITE}},
            ),
            study_name="sweep",
            direction="maximize" if plan.higher_is_better else "minimize",
            pruner=_pruner(plan),
            load_if_exists=True,
        )
        asked = yaml.safe_load(yaml.safe_dump(plan.identity()))
        began = self.study.user_attrs.get(PLAN)
        if began is None:
            self.study.set_user_attr(PLAN, asked)
        elif changed := _differences(began, asked):
            raise UserError(
                f"the sweep in {self.folder} was begun with other settings ({'; '.join(changed)}): take them "
                "back, or give another --output_dir"
            )

    @contextmanager
    def locked(self) -> Iterator[None]:
        """One process of the sweep at a time."""
        with (self.folder / LOCK).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def trials(self) -> list[FrozenTrial]:
        """Those that count: not the ones that another trial goes on with."""
        return [trial for trial in self.study.get_trials(deepcopy=False) if PUT_BACK not in trial.user_attrs]

    def take(self) -> Trial | None:
        """The next trial for this process; None when there is none left (others may still be running)."""
        with self.locked():
            self._take_over()
            trials = self.trials()
            if len(trials) >= self.plan.trials and all(trial.state != TrialState.WAITING for trial in trials):
                return None
            # seeded by the trial: a random sweep draws the same in one process, in several, and when it was stopped
            self.study.sampler = _sampler(self.plan, len(trials))
            space = {key: dimension.distribution() for key, dimension in self.plan.space.items()}
            trial = self.study.ask(fixed_distributions=space)
            if "folder" not in trial.user_attrs:
                trial.set_user_attr("folder", f"trial-{trial.number:03d}")
            folder = self.path(trial)
            settings = self.plan.settings(trial.params) | {"output_dir": str(folder)}
            if settings.get("push_to_hub"):
                settings["push_to_hub"] = False
            write_aside(folder.with_suffix(".yaml"), dump(settings))
            self._claims[trial.number] = _lock(folder.with_suffix(".yaml"))
            return trial

    def path(self, trial: Trial | FrozenTrial) -> Path:
        """The run folder of a trial; its YAML and log lie beside it."""
        return self.folder / trial.user_attrs["folder"]

    def complete(self, trial: Trial, value: float) -> None:
        """The trial came to its end, with this value."""
        self._end(trial, TrialState.COMPLETE, value)

    def prune(self, trial: Trial) -> None:
        """The trial was stopped early; what its last exam said is its value."""
        self._end(trial, TrialState.PRUNED)

    def fail(self, trial: Trial, error: str) -> None:
        """The trial came to nothing."""
        trial.set_user_attr("error", error)
        self._end(trial, TrialState.FAIL)

    def put_back(self, trial: Trial) -> None:
        """The trial was stopped with the sweep: it counts as failed, and its settings are enqueued to go on."""
        with self.locked():
            self._put_back(trial.number)
        self._release(trial)

    def _end(self, trial: Trial, state: TrialState, value: float | None = None) -> None:
        self.study.tell(trial, value, state)
        self._release(trial)

    def _release(self, trial: Trial) -> None:
        if claim := self._claims.pop(trial.number, None):
            claim.close()

    def _take_over(self) -> None:
        """Puts back the trials whose process is gone, killed perhaps; their stages are asked to stop if they live."""
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if trial.number in self._claims:
                continue
            if "folder" in trial.user_attrs:
                folder = self.path(trial)
                if (claim := _lock(folder.with_suffix(".yaml"))) is None:
                    continue  # another process runs it
                claim.close()
                if self.study.get_trials(deepcopy=False)[trial.number].state != TrialState.RUNNING:
                    continue  # it has ended since we looked; its process lets go of it after that
                log = _lock(folder.with_suffix(".log"))
                if log is None and (pid := trial.user_attrs.get("pid")):
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGTERM)  # the log is locked: it is still the process that was started
                elif log:
                    log.close()
            say(f"trial {trial.number} lost its sweep and goes on")
            self._put_back(trial.number)

    def _put_back(self, number: int) -> None:
        every = self.study.get_trials(deepcopy=False)
        trial = Trial(self.study, every[number]._trial_id)
        kept = {key: value for key, value in trial.user_attrs.items() if key in ("folder", "pid")} | {AGAIN: True}
        trial.set_user_attr(PUT_BACK, True)
        enqueued = [
            t for t in every[number + 1 :] if "folder" in kept and t.user_attrs.get("folder") == kept["folder"]
        ]
        if not enqueued and len(trial.params) == len(self.plan.space):  # neither killed in here nor while it was drawn
            self.study.enqueue_trial(trial.params, user_attrs=kept)
        self.study.tell(trial, state=TrialState.FAIL)


def dump(settings: dict[str, Any]) -> str:
    """Settings as a YAML that a stage takes."""
    return yaml.safe_dump(settings, sort_keys=False, allow_unicode=True, default_flow_style=None, width=110)


def _lock(path: Path) -> IO | None:
    """The open file, locked; None where somebody else holds it."""
    file = path.open("a")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file


def _sampler(plan: Plan, number: int) -> optuna.samplers.BaseSampler:
    if plan.asked.sampler == "grid":
        return GridSampler({key: d.grid(key) for key, d in plan.space.items()}, seed=plan.asked.seed)
    seed = int(np.random.SeedSequence([plan.asked.seed, number]).generate_state(1)[0])
    if plan.asked.sampler == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    return optuna.samplers.TPESampler(n_startup_trials=plan.startup, seed=seed)


def _pruner(plan: Plan) -> optuna.pruners.BasePruner:
    if plan.asked.pruner == "median":
        return optuna.pruners.MedianPruner(n_startup_trials=plan.startup)
    if plan.asked.pruner == "halving":  # the exams are its resource: compared at the 1st, 2nd, 4th, 8th ...
        return optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=2)
    return optuna.pruners.NopPruner()


def _differences(then: dict, now: dict, prefix: str = "") -> list[str]:
    found = []
    for key in [*now, *(key for key in then if key not in now)]:
        old, new = then.get(key), now.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            found += _differences(old, new, f"{key}: ")
        elif old != new:
            found.append(f"{prefix}{key} was {shortened(repr(old))} and is {shortened(repr(new))} now")
    return found
