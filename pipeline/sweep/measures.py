"""What the exams of a run say, whatever its stage: one row an exam, `{step, kl, measure: value, ...}`.

PPO, GRPO and RLOO write `heldout.jsonl` (exam/exam.py): `score`, `rewards.<name>`, the referee's measures and the
corpus figures by their own names. SFT and the reward model evaluate into `metrics.jsonl` (`eval_loss` is `loss` here),
and their summary has the last word: the reward model's `accuracy`, `margin` and `log_loss` stand there alone.
"""

import math
from pathlib import Path
from typing import Any

from pipeline.report.numbers import is_number
from pipeline.runs.folder import HELDOUT, METRICS, SUMMARY, read_heldout, read_metrics
from pipeline.safety.reading import read_json
from pipeline.sweep.comparison import value_of
from pipeline.sweep.space import label
from pipeline.worlds import load_world, lower_is_better

CORPUS = ("corpus_bleu", "corpus_rougeL")  # where the rows have references
# higher is better?
OF_STAGE = {
    "sft": {"loss": False, "mean_token_accuracy": True},
    "reward": {"accuracy": True, "log_loss": False, "margin": True, "calibration_error": False},
}


def known(stage: str, resolved: dict[str, Any]) -> dict[str, bool]:
    """The measures of a stage with these settings: name -> whether higher is better."""
    if stage in OF_STAGE:
        return OF_STAGE[stage]
    found = dict.fromkeys(("score", *CORPUS, "finished"), True)
    found |= {f"rewards.{label(spec)}": True for spec in resolved["rewards"]}
    if world := resolved.get("referee"):
        lower = lower_is_better(world)
        found |= {name: name not in lower for name in load_world(world).HIGHER_IS_BETTER}
    return found


def in_between(resolved: dict[str, Any]) -> bool:
    """Whether the stage takes exams during training."""
    if "eval_every" in resolved:
        return resolved["eval_every"] is not None
    return str(getattr(resolved["eval_strategy"], "value", resolved["eval_strategy"])) != "no"


def exams(folder: Path) -> list[dict[str, Any]]:
    """The exams of a run, finished or not, without the one before training; the same for all runs of a sweep."""
    if (folder / HELDOUT).is_file():
        return [_flat(row) for row in read_heldout(folder) if row.get("step")]
    rows = read_metrics(folder) if (folder / METRICS).is_file() else []
    rows = [
        {"step": row["step"], "epoch": row.get("epoch")}
        | {key.removeprefix("eval_"): value for key, value in row.items() if key.startswith("eval_")}
        for row in rows
        if row.get("step") and any(key.startswith("eval_") for key in row)
    ]
    if (folder / SUMMARY).is_file():
        said = {key: value for key, value in read_json(folder / SUMMARY).items() if is_number(value)}
        rows.append((rows[-1] if rows else {}) | {"step": said.get("steps")} | said)
    return rows


def value(row: dict[str, Any], measure: str) -> float | None:
    """What an exam says, None where it says nothing or no number."""
    found = row.get(measure)
    return float(found) if is_number(found) else None


def within(row: dict[str, Any], kl_limit: float | None) -> bool:
    """Whether an exam is within the limit; one without a KL is."""
    kl = row.get("kl")
    return kl_limit is None or kl is None or (is_number(kl) and kl <= kl_limit)


def ends(row: dict[str, Any], resolved: dict[str, Any]) -> bool:
    """Whether it is the exam after training: there is nothing left to stop."""
    if "episodes" in row:
        return row["episodes"] >= (resolved.get("total_episodes") or math.inf)
    if resolved.get("max_steps", -1) > 0:
        return row["step"] >= resolved["max_steps"]
    return (row.get("epoch") or 0) >= resolved["num_train_epochs"]


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    inside = {key: item for key, item in row.items() if not isinstance(item, dict)}
    rewards = {f"rewards.{name}": item for name, item in (row.get("rewards") or {}).items()}
    referee = {name: value_of(row, name) for name in row.get("referee") or {} if name != "score"}
    return referee | rewards | inside
