"""Mathematical answers: equal as mathematics, however they are written."""

import contextlib
import importlib.util
import json
import re
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

from .base import choice, number
from .final import Final, logger
from .text import Texts

_GSM8K = re.compile(r"^.*####[ \t]*(.*)$", re.DOTALL)  # the answer stands behind the last ####
_MEMORY_MB = 4096  # of address space, of which SymPy and its libraries take a part
_START = 120  # seconds that the process may take to start, on a busy machine too


class Math(Final):
    r"""1 where a completion's final answer equals the row's, as mathematics (by the package math-verify), else 0.

        {name: math, column: answer}
        {name: math, column: solution, after: </think>}

    `\frac{1}{2}`, `0.5` and `50\%` are equal, and so are `1,000` and `1000`, `\{1, 2\}` and `\{2, 1\}`, `5 cm` and
    `5`. The answer is what follows the last `####` (GSM8K), else the last `\boxed{...}` or "the final answer is ...",
    else the last formula or number in the text. In the column an answer needs no dollars around its LaTeX, and a whole
    solution will do: it is read by the same rules.

    In a trainer the shares of rows are logged that could not be read: `math/unread` (completions), `math/late` (those
    among them that took too long) and `math/unread_column` (rows whose own answer is no mathematics; they score None).

    Options:
        column ("answer"): the column with each row's right answer, or a list of answers, any of which is right.
        tag, after (none): what alone is read of a completion (see `rewards/final.py`).
        unread (0): what a completion without a readable answer scores: 0, or none for no score.
        seconds (5): time limit of each completion. It is compared in a process of its own, which is ended after that.

    Raises:
        RewardError: math-verify is not installed.
    """

    def __init__(
        self,
        column: str = "answer",
        tag: str | None = None,
        after: str | None = None,
        unread: int | str | None = 0,
        seconds: float = 5.0,
        log_name: str = "math",
    ):
        super().__init__(column, tag, after, log_name)
        self.unread = None if choice(unread, "unread", (0, "none", None), log_name) != 0 else 0.0
        self.seconds = number(seconds, "seconds", log_name)
        if not 0.1 <= self.seconds <= 600:
            raise self.error(f"seconds is {seconds}; give a number from 0.1 to 600.")
        if importlib.util.find_spec("math_verify") is None:
            raise self.error('it needs the package math-verify; run `pip install -e ".[math]"`.')
        self._process = Process(self.seconds)
        self._told = False

    def prepare(self) -> None:
        problem = self._process.start()
        if problem:
            raise self.error(f"math-verify does not start: {problem}.")

    def __call__(self, prompts: Texts, completions: Texts, **columns: Any) -> list[float | None]:
        scores: list[float | None] = []
        unread = late = unknown = 0
        for row, (right, given) in enumerate(self.pairs(completions, columns)):
            said = self._compare(right, given)
            if said.get("right") is False:
                unknown += 1
                scores.append(None)
                self._tell(row, right)
            elif not said.get("given"):
                unread, late = unread + 1, late + bool(said.get("late"))
                scores.append(self.unread)
            else:
                scores.append(float(said["equal"]))
        total = max(1, len(scores))
        self.count(columns, unread=unread / total, late=late / total, unread_column=unknown / total)
        return scores

    def _compare(self, right: list[str], given: str | None) -> dict[str, Any]:
        if not right:
            return {"right": False}
        if not given or not given.strip():
            return {"right": True, "given": False}
        marked = _GSM8K.match(given)
        question = {
            "right": [found[1] if (found := _GSM8K.match(text)) else text for text in right],
            "given": marked[1].strip().partition("\n")[0] if marked else given,
            "alone": bool(marked or self.tag),
        }
        return self._process.ask(question)

    def _tell(self, row: int, right: list[str]) -> None:
        if right and not self._told:
            logger.warning(
                "Reward '%s': no mathematics is found in %r (column '%s'), so the row has no score; said once.",
                self.__name__,
                right[0][:80],
                self.column_name,
            )
            self._told = True


class Process:
    """math_process.py, started when it is first asked and again after a question took too long.

    Args: seconds: for each question.
    """

    def __init__(self, seconds: float):
        self.seconds = seconds
        self._running: subprocess.Popen[str] | None = None
        self._lock = threading.Lock()  # rewards may be asked from several threads

    def start(self) -> str | None:
        """Starts it; what it complained of if it does not start."""
        with self._lock:
            return self._start()

    def ask(self, question: dict[str, Any]) -> dict[str, Any]:
        """Its answer; `{"late": True}` if there was none in time."""
        with self._lock:
            problem = self._start()
            if problem:
                raise RuntimeError(f"math-verify does not start: {problem}")
            said = self._line(json.dumps(question), self.seconds + 1)
            if said is None:
                self.close()
            return said or {"late": True}

    def close(self) -> None:
        """Ends it."""
        if self._running is not None:
            self._running.kill()
            self._running.communicate()
            self._running = None

    def _start(self) -> str | None:
        if self._running is not None and self._running.poll() is None:
            return None
        self.close()
        script = str(Path(__file__).with_name("math_process.py"))
        complaints = tempfile.TemporaryFile("w+", encoding="utf-8")  # no pipe: nobody empties it
        self._running = subprocess.Popen(
            # -P: the folder of the script is not searched for modules; it has a code.py
            [sys.executable, "-P", script, str(self.seconds), str(_MEMORY_MB)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=complaints,
            encoding="utf-8",
        )
        with complaints:
            if self._line(None, _START):
                return None
            self.close()
            complaints.seek(0)
            lines = complaints.read().strip().splitlines()
        return lines[-1] if lines else f"nothing was heard of it within {_START} seconds"

    def _line(self, question: str | None, seconds: float) -> dict[str, Any] | None:
        """The next line that it says, after a question; None, and it is ended, if none comes in time."""
        running = self._running
        assert running is not None and running.stdin is not None and running.stdout is not None
        killer = threading.Timer(seconds, running.kill)  # an end that no computation can hold off
        killer.daemon = True
        killer.start()
        try:
            if question is not None:
                running.stdin.write(question + "\n")
                running.stdin.flush()
            line = running.stdout.readline()
            return dict(json.loads(line)) if line.endswith("\n") else None
        except OSError:  # it died
            return None
        finally:
            killer.cancel()

    def __del__(self) -> None:
        with contextlib.suppress(Exception):  # when Python itself is ending
            self.close()

    def __getstate__(self) -> dict[str, Any]:
        return {"seconds": self.seconds}  # a copy starts a process of its own

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]
