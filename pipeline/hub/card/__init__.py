"""The model card of a run: README.md and curves.png, written from what the run left in its folder.

`python -m pipeline.card --run runs/tiny/ppo [--repo_id me/name] [--license apache-2.0] [--data_license cc-by-sa-4.0]`
writes it again, with the name under which it will be shared.
"""

from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import ModelCard

from pipeline.config import setting
from pipeline.hub.card.curves import CURVES, draw_curves
from pipeline.hub.card.page import MARK, digest, render
from pipeline.hub.card.run import read_run
from pipeline.safety.console import say

__all__ = ["CARD", "CURVES", "CardArguments", "is_ours", "read_run", "write_card"]

CARD = "README.md"
EMPTY_FORM = "# Model Card for Model ID\n\n<!-- Provide a quick summary"


@dataclass
class CardArguments:
    """What the run itself does not know of its card."""

    run: str | None = setting(None, "Folder of the run.")
    repo_id: str | None = setting(None, "Name on the Hub under which it will be shared, e.g. me/field-notes-ppo.")
    license: str | None = setting(None, "License of the result, e.g. apache-2.0.")
    base_license: str | None = setting(None, "License of the base; by default from the base's README.md.")
    data_license: str | None = setting(None, "License of the data; by default from the README.md beside it.")
    force: bool = setting(False, "Also replace a README.md that was edited by hand.")


def write_card(
    run: str | Path,
    into: str | Path | None = None,
    *,
    repo_id: str | None = None,
    license: str | None = None,
    base_license: str | None = None,
    data_license: str | None = None,
    force: bool = False,
) -> Path:
    """Writes README.md, and curves.png beside it, about the run in folder `run`; returns the README's path.

    Args:
        into: folder to write into, by default `run`; another one holds the run's merged model.
        repo_id: the name on the Hub, for the lines that load it. license, base_license, data_license: see
            `CardArguments`; `license` is kept from an older card when it is not given.
        force: also replace a README.md that somebody has edited or that is not ours. Otherwise it is left as it is.

    Raises:
        UserError: `run` is not the folder of a finished stage.
    """
    found = read_run(run)
    folder = Path(into or run)
    path = folder / CARD
    old = path.read_text("utf-8") if path.is_file() else None
    if old is not None and not force and not is_ours(old):
        say(f"{path} was edited by hand, or is not of this run: it stays as it is.")
        return path
    if license is None and old is not None and MARK.search(old):
        before = ModelCard(old).data
        license = before.get("license_name") or before.get("license")
    merged = into is not None and Path(into).resolve() != Path(run).resolve()
    drawn = draw_curves(found, folder / CURVES)
    text = render(found, repo_id, license, base_license, data_license, drawn, merged)
    path.write_bytes(text.encode("utf-8", "replace"))
    return path


def is_ours(text: str) -> bool:
    """Whether a README.md is as `write_card` left it, or PEFT's empty form, which every saved adapter gets."""
    mark = MARK.search(text)
    return mark is not None and digest(text[: mark.start()]) == mark[1] or EMPTY_FORM in text
