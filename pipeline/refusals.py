"""What TRL, PEFT and transformers refuse only once model and trainer are made, as one sentence instead of a trace."""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.errors import UserError
from rewards import RewardError

LIBRARIES = ("trl", "peft", "transformers", "accelerate")


@contextmanager
def in_one_sentence(what: str = "these settings") -> Iterator[None]:
    """Inside, what a library refuses is a `UserError` with its words.

    Only what one raises of its own accord: an error that happens to it, or to us, keeps its trace.

    Args: what: the library does not take.
    """
    try:
        yield
    except (UserError, RewardError):
        raise
    except Exception as error:
        library = _who_refused(error)
        if library is None:
            raise
        said = " ".join(str(error).split())
        said = said if len(said) <= 400 else f"{said[:400]} ..."
        raise UserError(f"{library} does not take {what}: {said}") from error


def _who_refused(error: Exception) -> str | None:
    """The library whose own `raise` it was, or None."""
    trace = error.__traceback__
    while trace.tb_next is not None:
        trace = trace.tb_next
    library = str(trace.tb_frame.f_globals.get("__name__", "")).split(".")[0]
    line = traceback.extract_tb(trace)[-1].line or ""
    return library if library in LIBRARIES and line.startswith("raise ") else None
