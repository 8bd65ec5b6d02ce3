"""Choosing settings: many short runs of a stage, each with other settings, against one held-out measure.

May import: ilql, ppo, report, cli and below.
Begin with: settings.py.

Optuna chooses what to try (sampler) and what to stop early (pruner), and keeps what it knows in SQLite, so that a
sweep goes on where it was stopped and several processes can share it. A trial is a run of the stage by its own
launcher, in a folder of its own.

    settings.py   what is asked for, checked before anything runs
    space.py      which values a setting may take
    measures.py   what a run's exams say, and which way is better
    study.py      the trials in SQLite: who takes which, what became of it
    trials.py     the runs themselves: started, followed, stopped
    results.py    table, plot, the best YAML
    launching.py  one run as a process with a log; recipes/compare.py starts its runs so as well
    comparison.py the table and the curves of recipes/compare.py
"""

from pipeline.errors import UserError
from pipeline.sweep.settings import SweepSettings

__all__ = ["SweepSettings", "run"]


def run(settings: SweepSettings, script: str | None = None) -> None:
    """Runs the sweep, or goes on with it, and writes what came out.

    Args:
        script: what is launched for a trial with `--config <its YAML>`; by default recipes/<stage>.py.

    Raises:
        UserError: for whatever does not fit, before the first trial; a trial that fails is a row of the table.
    """
    try:
        import optuna  # noqa: F401
    except ImportError:
        raise UserError("a sweep needs Optuna, which is not installed: pip install -e '.[sweep]'") from None
    from pipeline.sweep.trials import sweep

    sweep(settings, script or f"recipes/{settings.stage}.py")
