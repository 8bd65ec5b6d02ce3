"""What several runs answer to the same held-out prompts, side by side."""

from collections.abc import Sequence
from typing import Any

from pipeline.report.numbers import number
from pipeline.report.runs import Contestant
from pipeline.report.samples import cut, plain, read_samples, text_limit

SHOWN = 20


def side_by_side(contestants: Sequence[Contestant]) -> list[dict[str, Any]]:
    """The first prompts that all contestants have answered, as the template shows them; empty where there are none.

    Of several seeds the first one is shown. What a contestant said before its training is shown where no other has
    said the same: runs from one start, asked with one seed, have one such answer.

    Returns:
        dicts with `prompt` and `answers`, a list of (who, text, [(score, number), ...]).
    """
    names = [contestant.label for contestant in contestants]
    read = [{plain(row.get("prompt")): row for row in read_samples(c.runs[0].path)} for c in contestants]
    shared = [prompt for prompt in (read[0] if read else {}) if all(prompt in rows for rows in read)][:SHOWN]
    answers = [plain(rows[prompt].get(side)) for rows in read for prompt in shared for side in ("before", "after")]
    limit = text_limit([*shared, *answers])

    def answer(who: str, row: dict[str, Any], side: str) -> tuple[str, str, list[tuple[str, str]]]:
        scores = [(name, number(value)) for name, value in row[f"scores_{side}"].items()]
        return who, cut(plain(row.get(side)), limit), scores

    found = []
    for prompt in shared:
        rows = [(name, answered[prompt]) for name, answered in zip(names, read, strict=True)]
        starts = {plain(row.get("before")): (name, row) for name, row in reversed(rows)}  # the first to say it stays
        before = [
            answer("before" if len(starts) == 1 else f"{name}, before", row, "before")
            for name, row in reversed(starts.values())
        ]
        found.append({"prompt": cut(prompt, limit), "answers": before + [answer(n, row, "after") for n, row in rows]})
    return found
