"""Metrics as modules of the `evaluate` library, shipped here because `evaluate.load("bleu")` needs the network.

May import: errors, rewards.
Begin with: bleu/bleu.py.
"""

from pathlib import Path

import evaluate

from ..errors import UserError

HERE = Path(__file__).resolve().parent


def metric_names() -> list[str]:
    """The metrics that are shipped."""
    return sorted(path.parent.name for path in HERE.glob("*/*.py") if path.stem == path.parent.name)


def load_metric(name: str) -> evaluate.EvaluationModule:
    """The shipped metric `name` (`bleu` or `rouge`), without the network.

    >>> load_metric("rouge").compute(predictions=["a cat"], references=[["a cat", "the cat"]])["rougeL"]
    1.0

    Raises:
        UserError: there is no such metric.
    """
    if name not in metric_names():
        raise UserError(f"There is no metric '{name}'; there are {', '.join(metric_names())}.")
    return evaluate.load(str(HERE / name), module_type="metric", keep_in_memory=True)
