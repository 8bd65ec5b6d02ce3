"""Judges: their pairs, their file of verdicts, their page."""

import resource
import signal
import threading
from contextlib import contextmanager
from pathlib import Path

from rows import write_rows

from pipeline.judging import pairs, server
from pipeline.judging.verdicts import Verdicts

ROWS = [{"prompt": f"p{i}", "before": f"old {i}", "after": f"new {i}"} for i in range(6)]
COLUMNS = ("before", "after")


def load(folder: Path, rows=ROWS, columns=COLUMNS, seed=0) -> pairs.Pairs:
    return pairs.load(write_rows(folder.parent / "samples.jsonl", rows), folder / "pairs.json", columns, seed)


def opened(folder: Path, rows=ROWS, judge="anna") -> Verdicts:
    return Verdicts(folder / "verdicts" / f"{judge}.jsonl", load(folder, rows), judge)


@contextmanager
def no_more_than(size: int):
    """Files cannot grow beyond that many bytes, as on a full disk."""
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, ignored)


@contextmanager
def serving(verdicts: Verdicts):
    running, url = server.start(server.Session(verdicts))
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield url, thread
    finally:
        running.shutdown()
        thread.join()
