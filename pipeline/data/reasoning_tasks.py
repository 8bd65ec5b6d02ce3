"""Rows of a task of the package reasoning_gym: `dataset: reasoning_gym:chain_sum`."""

from collections.abc import Mapping
from typing import Any

from pipeline.errors import UserError
from rewards import RewardError
from rewards.reasoning import rows_of

PREFIX = "reasoning_gym:"


def is_task(source: str) -> bool:
    """Whether `source` names a task rather than data that lies somewhere."""
    return source.startswith(PREFIX)


def read_task(source: str, options: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """Its entries: prompt, completion, question, answer, and `reasoning_gym`, by which the verifier finds the entry.

    Args: options: settings of the task; `size` 500 and `seed` 0 unless given.

    Raises:
        UserError: the package is not installed, or there is no such task or option.
    """
    try:
        return rows_of(source.removeprefix(PREFIX), options or {})
    except RewardError as error:
        raise UserError(f"dataset {source}: {error}".rstrip(".")) from None
