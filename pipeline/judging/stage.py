"""What `recipes/judge.py` launches: pairs, page, results."""

import os
import re
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.config import check, setting
from pipeline.errors import UserError
from pipeline.judging import pairs as judged
from pipeline.judging import results
from pipeline.judging.verdicts import Verdicts
from pipeline.safety.commands import following
from pipeline.safety.console import say


@dataclass
class JudgeSettings:
    """What is judged, by whom, and where the verdicts go."""

    samples: str | None = setting(
        None, "File with a prompt and two completions a row, e.g. runs/tiny/ppo/samples.jsonl (.jsonl .csv .parquet)."
    )
    output_dir: str | None = setting(
        None, "Folder for the verdicts of all judges. Started again, a judge goes on with the next pair."
    )
    judge: str = setting("judge", "Name of the judge; each has a file of verdicts.")
    columns: list[str] = setting(
        ["before", "after"], "Columns with the two completions; the win rate is that of the second."
    )
    port: int = setting(0, "Port of the page on this machine; 0 takes a free one.")
    open: bool | None = setting(None, "Open the page in a browser; unset: when this is a terminal with a desktop.")
    seed: int = setting(0, "Of the order of the pairs and of the sides.")

    def __post_init__(self):
        good = re.fullmatch(r"[^\W_][\w-]{0,63}", self.judge)
        check(bool(good), "judge", self.judge, "a name of letters, digits, - and _, 64 at most")
        different = len(self.columns) == 2 and len({*self.columns, "prompt", results.TIE}) == 4
        check(different, "columns", self.columns, "the names of two columns, neither of them prompt or tie")
        check(0 <= self.port < 65536, "port", self.port, "a whole number from 0 to 65535")


def run(settings: JudgeSettings) -> dict[str, Any]:
    """Lets one judge judge what is left, then writes the results of all judges; returns the summary.

    Raises:
        UserError: for whatever does not fit; verdicts that were there before stay as they were.
    """
    if not settings.output_dir:
        raise UserError("output_dir is not set: name the folder for the verdicts, e.g. --output_dir runs/tiny/judged")
    try:
        from pipeline.judging import server
    except ModuleNotFoundError as error:
        if error.name not in ("flask", "werkzeug"):
            raise
        raise UserError(f"the page wants {error.name}, which is not installed: pip install flask") from None
    folder = Path(settings.output_dir)
    there = folder.exists()
    try:
        found = judged.load(settings.samples, folder / "pairs.json", settings.columns, settings.seed)
        with Verdicts(folder / results.VERDICTS / f"{settings.judge}.jsonl", found, settings.judge) as verdicts:
            say(f"{len(found.pairs)} pairs, {found.identical} rows left out because their completions are the same")
            say(f"{settings.judge} has judged {len(verdicts.rows)} of {len(found.pairs)}")
            if not verdicts.done:
                server.serve(verdicts, settings.port, _wants_browser(settings.open), say)
        summary = results.collect(folder, found)
    except OSError as error:
        if not there:
            _remove_empty(folder)
        raise UserError(
            f"output_dir {folder} cannot be written ({error.strerror}): give another --output_dir"
        ) from None
    _log_result(summary, settings, folder)
    return summary


def _remove_empty(folder: Path) -> None:
    """Takes away folders and files in which nothing stands, as a full disk leaves them."""
    with suppress(OSError):
        for path in sorted(folder.rglob("*"), reverse=True):
            if path.is_file() and not path.stat().st_size:
                path.unlink()
            elif path.is_dir():
                path.rmdir()
        folder.rmdir()


def _wants_browser(asked: bool | None) -> bool:
    if asked is not None:
        return asked
    # Without a desktop the browser found could be one for the terminal, which would take it over.
    desktop = sys.platform == "darwin" or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    return sys.stdout.isatty() and bool(desktop)


def _log_result(summary: dict[str, Any], settings: JudgeSettings, folder: Path) -> None:
    if not summary["judges"]:
        say("No pair was judged.")
        return
    say(results.table(summary))
    left = summary["pairs"] - summary["judges"].get(settings.judge, {"judged": 0})["judged"]
    if left:
        say(f"{left} pairs are left for {settings.judge}: start again to go on.")
    file = folder / results.PREFERENCES
    say(f"{summary['preferences']} preference pairs lie in {file}.")
    if summary["preferences"]:
        flags = f"--dataset {file} --output_dir {folder}/reward"
        say(f"Next: {command} {flags}" if (command := following("reward")) else f'Next: make reward ARGS="{flags}"')
