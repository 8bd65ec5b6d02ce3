"""One self-contained HTML page about a run, or about several: what changed, samples side by side, curves, settings.

The page asks for nothing from outside, so it can be mailed or opened from a disk; it runs its own script and no other,
and without a script it shows everything, unsorted. It reads what every stage leaves in its folder (metrics.jsonl,
summary.json, config.yaml) and, from PPO, heldout.jsonl and samples.jsonl.
Text from models and data reaches the page only through the templates' autoescape.
"""

import os
import secrets
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2

from pipeline.errors import UserError
from pipeline.report import charts, exams, runs, samples, tables
from pipeline.report.answers import five_answers
from pipeline.report.baselines import baselines_section
from pipeline.report.beside import side_by_side
from pipeline.report.curves import curve_groups, spread_curves, x_axis
from pipeline.report.numbers import number, signed
from pipeline.report.reward_model import reward_model_section
from pipeline.report.tokens import token_section
from pipeline.watching.watch import read_warnings

REPORT, REPORTS = "report.html", "reports.html"
STAGES = (
    "sft",
    "reward",
)  # the stages before PPO, whose curves its page shows as well, by the names that recipes give them


def write_report(run_dir: str | Path, out: str | Path | None = None) -> Path:
    """Writes the page about the stage in `run_dir` and about the stages before it that lie beside it.

    `out` is the page's path; by default it is `report.html` in `run_dir`. An older page is replaced.
    Raises `UserError` when `run_dir` holds neither metrics nor a summary.
    """
    run = runs.read_run(run_dir, needed=True)
    is_stage = run.name in STAGES or "stage" in run.summary
    beside = [] if is_stage else [runs.read_run(run.path.parent / name) for name in _before(run)]
    stages = [run, *(stage for stage in beside if stage.rows)]
    alone = [runs.Contestant(run.name, [run])]
    rows = samples.read_samples(run.path)
    intervals = samples.changes(rows)
    table = tables.before_after(run.summary, intervals, tables.referees(run))
    warnings, shown, drawn = read_warnings(run.path), samples.show_samples(rows), samples.score_charts(rows)
    plots = exams.over_optimization(alone, {name: half for name, (_, half) in intervals.items()})
    more = sections(run)
    there = {"scores": table, "samples": rows, "warnings": warnings, "over": plots, "histograms": drawn}
    there |= {"lengths": drawn, "reward-model": more["reward_model"], "stage-1": run.rows, "settings": stages}
    page = render(
        "report.html.j2",
        title=_title(run.path),
        tiles=tables.tiles(run, table),
        words=tables.in_words(run, table),
        table=table,
        answers=five_answers(run, rows, intervals, warnings, beside, {name for name, part in there.items() if part}),
        warnings=warnings,
        started_from=run.summary.get("started_from") or run.settings.get("adapter_path") or run.summary.get("base"),
        samples=shown,
        score_charts=drawn,
        plots=plots,
        few_exams=exams.few_exams(alone),
        spreads=spread_curves(run),
        stages=[
            {
                "name": stage.name,
                "logged": bool(stage.rows),  # an evaluation and an ensemble log nothing
                "groups": curve_groups([runs.Contestant(stage.name, [stage])], f"stage {i}"),
                "x": "optimizer steps",
                "numbers": tables.single_numbers(stage),
                "config": stage.config,
            }
            for i, stage in enumerate(stages)
        ],
        **more,
    )
    return _write(page, run.path / REPORT if out is None else Path(out))


def write_comparison(run_dirs: Sequence[str | Path], out: str | Path | None = None) -> Path:
    """Writes one page about several runs: their curves overlaid, those that differ only by their seed as a band.

    `out` is by default `reports.html` in the folder that holds all of them. An older page is replaced.
    Raises `UserError` when one of `run_dirs` holds neither metrics nor a summary.
    """
    read = [runs.read_run(run_dir, needed=True) for run_dir in run_dirs]
    of = runs.contestants(list({run.path: run for run in read}.values()))
    page = render(
        "comparison.html.j2",
        title=f"{', '.join(c.label for c in of)}: {len(read)} runs compared",
        contestants=of,
        table=tables.comparison(of),
        settings=runs.differing_settings(of),
        plots=exams.over_optimization(of),
        few_exams=exams.few_exams(of),
        samples=side_by_side(of),
        x={"episodes": "completions sampled", "step": "optimizer steps"}[x_axis(of)],
        groups=curve_groups(of),
    )
    return _write(page, Path(os.path.commonpath([run.path.parent for run in read]), REPORTS) if out is None else out)


def _before(run: runs.Run) -> list[str]:
    """Names of the stages beside a run that led to it: what it started from, where that is written down."""
    started = run.settings.get("adapter_path")
    names = [Path(str(started)).name, *STAGES[1:]] if started else STAGES
    return [name for name in names if name != run.path.name]


def sections(run: runs.Run) -> dict[str, Any]:
    """What other modules make: the tokens of some completions, the reward model that the run was trained with, and
    what an evaluation beside it says about baselines."""
    reward_dir = run.path if run.summary.get("stage") == "reward" else run.path.parent / "reward"
    asked = "algorithm" in run.summary or reward_dir == run.path
    return {
        "tokens": token_section(run.path),
        "baselines": baselines_section(run.path),
        "reward_model": reward_model_section(reward_dir) if asked and reward_dir.is_dir() else None,
    }


def render(template: str, **values: Any) -> str:
    """The page, with a nonce of its own: no other script than those of the templates runs in it."""
    written = datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")
    nonce = secrets.token_urlsafe(16)
    return environment().get_template(template).render(nonce=nonce, written=written, **values)


def environment() -> jinja2.Environment:
    """Templates with autoescape on for every file; a name that the template expects and does not get is an error."""
    loader = jinja2.FileSystemLoader(Path(__file__).parents[1] / "templates")
    env = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    env.filters |= {"number": number, "signed": signed}
    env.globals["swatch"] = charts.swatch
    return env


def _title(path: Path) -> str:
    return " · ".join(part for part in (path.parent.name, path.name) if part)


def _write(page: str, out: str | Path) -> Path:
    out = Path(out)
    aside = out.with_name(f".{out.name}.tmp")
    if out.is_dir():
        raise UserError(f"{out} is a folder: name the page, e.g. --out {out / REPORT}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        # A model can produce half a character, which utf-8 cannot hold: it is shown as "?".
        aside.write_bytes(page.encode("utf-8", "replace"))
        os.replace(aside, out)
    except OSError as error:
        raise UserError(f"{out} cannot be written ({error.strerror}): give another --out") from error
    return out
