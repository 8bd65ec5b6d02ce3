"""What stands in run folders, and which of several runs belong together: those that differ only by their seed."""

import json
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.errors import UserError
from pipeline.runs.folder import CONFIG, METRICS, SUMMARY, read_heldout, read_metrics
from pipeline.safety import shapes
from pipeline.safety.reading import checked, read_json, read_text, read_yaml
from pipeline.worlds import lower_is_better

COUNTERS = ("step", "update", "episodes", "tokens", "seconds", "cpu_seconds")  # of an exam, beside what it measured
NOT_COMPARED = ("seed", "data_seed", "output_dir", "run_name", "versions")  # settings that make no other contestant


class Run(NamedTuple):
    """What one output folder holds. What is missing is empty."""

    path: Path
    rows: list[dict[str, Any]]  # metrics.jsonl, and the exams in between as metrics `eval/…`
    exams: list[dict[str, Any]]  # heldout.jsonl, see pipeline/exam/exam.py
    summary: dict[str, Any]
    config: str  # config.yaml as it stands
    settings: dict[str, Any]  # and as it reads

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def algorithm(self) -> str:
        """As in the summary; else the name of the stage or of its folder."""
        return str(self.summary.get("algorithm") or self.summary.get("stage") or self.name)

    @property
    def lower_is_better(self) -> frozenset[str]:
        """Measures of its referee that get better as they fall."""
        return lower_is_better(self.settings.get("referee"))

    @property
    def seed(self) -> Any:
        return self.settings.get("seed", self.summary.get("seed"))


class Contestant(NamedTuple):
    """Runs that differ only by their seed, under the name that the page gives them."""

    label: str
    runs: list[Run]


def read_run(folder: str | Path, needed: bool = False) -> Run:
    """Reads a run folder. With `needed`, a folder with neither metrics nor a summary is a `UserError`."""
    folder = Path(folder)
    if needed and not folder.is_dir():
        raise UserError(f"{folder} is no folder: give the output folder of a finished stage, such as runs/tiny/ppo")
    rows, exams, summary = [], read_heldout(folder), {}
    if (folder / METRICS).is_file():
        rows = read_metrics(folder)
    if (folder / SUMMARY).is_file():
        summary = read_json(folder / SUMMARY, shapes.SUMMARY)
    if needed and not rows and not summary:
        raise UserError(f"{folder} has no {METRICS} and no {SUMMARY}: give the output folder of a finished stage")
    config, settings = "", {}
    if (folder / CONFIG).is_file():
        config = read_text(folder / CONFIG)
        settings = checked(read_yaml(folder / CONFIG), shapes.CONFIG, str(folder / CONFIG))
    return Run(Path(os.path.abspath(folder)), rows + exam_points(exams), exams, summary, config, settings)


def exam_points(exams: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Exams on held-out prompts as metrics `eval/…`; before and after alone are in the table, and make no curve."""
    return [
        {key: exam[key] for key in ("step", "episodes") if key in exam}
        | {f"eval/{n}": x for n, x in flatten({k: v for k, v in exam.items() if k not in COUNTERS})}
        for exam in (exams if len(exams) > 2 else [])
    ]


def flatten(value: dict[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, item in value.items():
        if isinstance(item, dict):
            yield from flatten(item, f"{prefix}{key}/")
        elif not isinstance(item, list):
            yield f"{prefix}{key}", item


def contestants(runs: Sequence[Run]) -> list[Contestant]:
    """Runs with the same settings but other seeds together, in the order in which they were named."""
    groups: list[list[Run]] = []
    for run in runs:
        for group in groups:
            if setup(run) == setup(group[0]) and run.seed not in [other.seed for other in group]:
                group.append(run)
                break
        else:
            groups.append([run])
    return [Contestant(label, group) for label, group in zip(labels(groups), groups, strict=True)]


def setup(run: Run) -> str:
    """All that makes a run but its seed. A folder `seed3` in a path of the run with seed 3 is its seed as well."""
    if not run.settings:
        return str(run.path)  # nothing is known of it: it stands alone
    settings = {key: value for key, value in run.settings.items() if key not in NOT_COMPARED}
    text = json.dumps([run.algorithm, settings], sort_keys=True, default=str)
    return re.sub(rf"seed{re.escape(str(run.seed))}(?!\d)", "seed", text)


def labels(groups: Sequence[Sequence[Run]]) -> list[str]:
    """A name for each group: the end of its folders' paths that tells it from the others, without the seed."""
    parts = [list(run.path.parts) for group in groups for run in group]
    while all(len(p) > 1 for p in parts) and len({p[-1] for p in parts}) == 1:
        parts = [p[:-1] for p in parts]
    length = 1
    while len({tuple(p[-length:]) for p in parts}) < len(parts):
        length += 1
    names, found = iter("/".join(p[-length:]) for p in parts), []
    for group in groups:
        own = [next(names) for _ in group]
        shared = own[0] if len(own) == 1 else re.sub(r"[-_/.]*(seed)?[-_/.]*$", "", os.path.commonprefix(own))
        found.append(shared or group[0].algorithm)
    twice = {name for name in found if found.count(name) > 1}
    return [f"{name} ({i})" if name in twice else name for i, name in enumerate(found, start=1)]


def differing_settings(groups: Sequence[Contestant]) -> list[tuple[str, list[str]]]:
    """name -> its value for each contestant, of every setting that is not the same for all; `seed` for each run."""
    first = [group.runs[0].settings for group in groups]
    keys = list(dict.fromkeys(key for settings in first for key in settings if key not in NOT_COMPARED))
    rows = [(key, [_as_text(settings.get(key)) for settings in first]) for key in keys]
    seeds = ("seed", [", ".join(str(run.seed) for run in group.runs) for group in groups])
    return [seeds] + [(key, values) for key, values in rows if len(set(values)) > 1]


def _as_text(value: Any) -> str:
    return "–" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
