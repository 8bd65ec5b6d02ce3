"""A verifier in a process of its own, which can be ended when a completion keeps it busy: one line of JSON for each
question, one for each answer."""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

MEMORY_MB = 4096  # of address space, of which SymPy and its libraries take a part
_START = 120  # seconds that the process may take to start, on a busy machine too


class Process:
    """A script that answers questions, started when it is first asked and again after a question took too long.

    Args:
        script: its arguments are the seconds for a question and the memory in MiB; it says a first line when it is
            ready, and ends with its input.
        package: what it brings, for errors.
        seconds: for each question.
    """

    def __init__(self, script: Path, package: str, seconds: float):
        self.script, self.package, self.seconds = script, package, seconds
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
                raise RuntimeError(f"{self.package} does not start: {problem}")
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
        complaints = tempfile.TemporaryFile("w+", encoding="utf-8")  # no pipe: nobody empties it
        self._running = subprocess.Popen(
            # -P: the folder of the script is not searched for modules; it has a code.py
            [sys.executable, "-P", str(self.script), str(self.seconds), str(MEMORY_MB)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=complaints,
            encoding="utf-8",
            env=os.environ | {"PYTHONHASHSEED": "0"},  # sets have an order of their own in each process otherwise
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
        except BaseException:  # Ctrl-C: what it says next would be taken for the answer to another question
            self.close()
            raise
        finally:
            killer.cancel()

    def __del__(self) -> None:
        with contextlib.suppress(Exception):  # when Python itself is ending
            self.close()

    def __getstate__(self) -> dict[str, Any]:
        return {
            "script": self.script,
            "package": self.package,
            "seconds": self.seconds,
        }  # a copy starts a process of its own

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]
