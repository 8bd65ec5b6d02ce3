"""One judge's verdicts: a file of JSON lines, the n-th about the n-th pair.

    {"pair": 1, "prompt": ..., "left": "after", "right": "before", "verdict": "left", "seconds": 4.2}

`verdict` is left, right or tie. A line is written and synced to the disk before the next pair is shown, so that a kill
costs at most the one that was being written; a line that was cut is taken away when the judge goes on.
"""

import errno
import fcntl
import json
import os
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.judging.pairs import Pairs

VERDICTS = ("left", "right", "tie")


def read_verdicts(path: Path, pairs: Pairs) -> tuple[list[dict[str, Any]], list[int]]:
    """The verdicts in a file, and the bytes up to the end of each, from 0 on; what a kill has cut is left out.

    Raises:
        UserError: a line that is not the verdict on its pair; file and line are named.
    """
    rows, ends = [], [0]
    for line in (path.read_bytes() if path.exists() else b"").splitlines(keepends=True):
        if not line.endswith(b"\n"):
            break  # cut by a kill
        row, number = _row(line), len(rows)
        known = number < len(pairs.pairs) and row.get("prompt") == pairs.pairs[number].prompt
        sides = sorted([str(row.get("left")), str(row.get("right"))]) == sorted(pairs.columns)
        judged = row.get("verdict") in VERDICTS and isinstance(row.get("seconds"), int | float)
        if not (known and sides and judged and row.get("pair") == number + 1):
            raise UserError(
                f"{path}, line {number + 1} is not a verdict on pair {number + 1}: "
                "mend or remove the file, or give another --output_dir"
            )
        rows.append(row)
        ends.append(ends[-1] + len(line))
    return rows, ends


def _row(line: bytes) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return row if isinstance(row, dict) else {}


def winner(row: dict[str, Any]) -> str | None:
    """The column that the verdict prefers; None for a tie."""
    return None if row["verdict"] == "tie" else row[row["verdict"]]


class Verdicts:
    """The file of one judge, open for judging. A second process that opens it is refused."""

    def __init__(self, path: Path, pairs: Pairs, judge: str):
        self.pairs, self.second_left = pairs, pairs.sides(judge)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("ab", buffering=0)  # nothing may linger in a buffer
        try:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(f"{judge} is judging already, in another window: give another --judge") from None
            self.rows, self._ends = read_verdicts(path, pairs)
            self._file.truncate(self._ends[-1])
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> "Verdicts":
        return self

    def __exit__(self, *_) -> None:
        self._file.close()

    @property
    def done(self) -> bool:
        return len(self.rows) == len(self.pairs.pairs)

    def add(self, verdict: str, seconds: float) -> None:
        """Appends the verdict on the next pair. An OSError (a full disk) leaves the file as it was."""
        number = len(self.rows)
        first, second = self.pairs.columns
        left, right = (second, first) if self.second_left[number] else (first, second)
        row = {"pair": number + 1, "prompt": self.pairs.pairs[number].prompt, "left": left, "right": right}
        row |= {"verdict": verdict, "seconds": round(seconds, 1)}
        line = json.dumps(row, ensure_ascii=False).encode() + b"\n"
        try:
            if self._file.write(line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(self._file.fileno())
        except OSError:
            os.truncate(self._file.fileno(), self._ends[-1])
            raise
        self.rows.append(row)
        self._ends.append(self._ends[-1] + len(line))

    def undo(self) -> None:
        """Takes the last verdict back, out of the file as well."""
        if self.rows:
            os.truncate(self._file.fileno(), self._ends[-2])
            os.fsync(self._file.fileno())
            self._ends.pop()
            self.rows.pop()
