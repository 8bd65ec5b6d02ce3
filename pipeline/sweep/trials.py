"""The runs of a sweep: started by the stage's own launcher, followed by the exams that they write, stopped early."""

import os
import signal
import subprocess
import time
from pathlib import Path

from optuna.trial import Trial

from pipeline.errors import UserError
from pipeline.report.numbers import LARGEST, number
from pipeline.runs.folder import SUMMARY
from pipeline.safety.console import say
from pipeline.sweep import measures, results
from pipeline.sweep.launching import launch
from pipeline.sweep.settings import SweepSettings, plan
from pipeline.sweep.study import AGAIN, EXAM, Study

POLL = 0.3  # seconds between two looks at the running trials
TAIL = 20_000  # bytes of a log in which its last line is looked for


class Run:
    """One trial and the process that makes it."""

    def __init__(self, study: Study, trial: Trial, script: str):
        self.study, self.trial, self.plan = study, trial, study.plan
        self.folder = study.path(trial)
        self.reported, self.unpromising = 0, False
        self.words = [script, "--config", str(self.folder.with_suffix(".yaml"))]
        if AGAIN in trial.user_attrs:
            self.words.append("--resume")
        self.process: subprocess.Popen | None = None

    def start(self) -> None:
        """Launches the stage."""
        self.process = launch(self.words, self.folder.with_suffix(".log"), self.plan.asked.jobs)
        self.trial.set_user_attr("pid", self.process.pid)
        say(f"trial {self.trial.number}: {self.described()}")

    def described(self) -> str:
        """The settings that make the trial what it is."""
        return ", ".join(f"{key} {self.plan.shown(key, self.trial.params)}" for key in self.plan.space)

    def follow(self) -> None:
        """Tells the study of new exams, and stops the run when it is unpromising."""
        for row in measures.exams(self.folder)[self.reported :]:
            if measures.ends(row, self.plan.resolved | self.plan.settings(self.trial.params)):
                return
            self.reported += 1
            value, inside = (
                measures.value(row, self.plan.asked.measure),
                measures.within(row, self.plan.asked.kl_limit),
            )
            # an exam over the limit counts as one that says nothing
            self.trial.report(value if inside and value is not None else float("nan"), self.reported)
            if not self.unpromising and self.process.poll() is None and self.trial.should_prune():
                self.unpromising = True
                self.stop()

    def stop(self) -> None:
        """As Ctrl-C does: after the step that it is at. By SIGTERM, since the stage may have had the terminal's Ctrl-C
        already, and would stop at once at a second one."""
        if self.process and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)

    def conclude(self) -> None:
        """Tells the study what became of the run that has ended."""
        trial, rows, asked = self.trial, measures.exams(self.folder), self.plan.asked
        last = rows[-1] if rows else {}
        figures = {key: measures.value(last, key) for key in ("kl", "cpu_seconds", "seconds")}
        value = measures.value(last, asked.measure)
        trial.set_user_attr(EXAM, {"value": value, "exams": len(rows)} | figures)
        if asked.kl_limit is not None and "kl" in last:
            # a KL that is no number is as far away as can be
            trial.set_constraint("kl", LARGEST if figures["kl"] is None else figures["kl"] - asked.kl_limit)
        if self.process.returncode == 0 and (self.folder / SUMMARY).is_file():
            if value is None:
                self.study.fail(trial, f"its last exam says nothing of {asked.measure}")
            else:
                self.study.complete(trial, value)
        elif self.unpromising:
            self.study.prune(trial)
        else:
            self.study.fail(trial, last_line(self.folder.with_suffix(".log")))
        say(f"trial {trial.number}: {self._outcome(value)}")

    def _outcome(self, value: float | None) -> str:
        if "error" in self.trial.user_attrs:
            return f"failed: {self.trial.user_attrs['error']}"
        kl = self.trial.user_attrs[EXAM]["kl"]
        said = f"{self.plan.asked.measure} {number(value, 3)}"
        said += "" if kl is None else f" at a KL of {number(kl, 2)} nats"
        return f"stopped early, {said}" if self.unpromising and self.process.returncode else said


def sweep(asked: SweepSettings, script: str) -> None:
    """See `pipeline.sweep.run`."""
    todo = plan(asked)
    if not Path(script).is_file():
        raise UserError(f"{script} does not exist here: start the sweep in the folder of the project")
    study = Study(todo)
    say(
        f"{todo.trials} trials of {asked.stage} ({asked.sampler}) for the best {asked.measure}, in {todo.folder}; "
        "Ctrl-C stops, the same command goes on."
    )
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    running: list[Run] = []
    try:
        while True:
            while len(running) < asked.jobs and (trial := study.take()):
                running.append(Run(study, trial, script))  # before it starts: whatever happens, it is stopped
                running[-1].start()
            if not running:
                break
            for run in list(running):
                ended = run.process.poll() is not None
                run.follow()
                if ended:
                    running.remove(run)
                    run.conclude()
                    results.write(study)
            time.sleep(POLL)
    finally:
        _leave(study, running)
        signal.signal(signal.SIGTERM, before)
    results.write(study, plot=True)
    say(results.conclusion(study))


def _leave(study: Study, running: list[Run]) -> None:
    """Stops what is running and puts it back; there is something only when the sweep was stopped, or failed."""
    if not running:
        return
    say("Stopping the trials after the step that they are at (Ctrl-C again: at once)")
    for run in running:
        run.stop()
    try:
        for run in running:
            if run.process:
                run.process.wait()
    finally:
        for run in running:
            if run.process:
                run.process.kill()
                run.process.wait()
            study.put_back(run.trial)


def last_line(log: Path) -> str:
    """The last line of a log that says something."""
    with log.open("rb") as file:
        file.seek(0, os.SEEK_END)
        file.seek(max(0, file.tell() - TAIL))
        lines = file.read().decode("utf-8", "replace").splitlines()
    said = next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")
    return said.removeprefix("error: ")
