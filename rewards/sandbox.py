"""The sandbox: runs generated code in a process of its own that the kernel locks in (`sandbox_runner.py`).

Every job has a process of its own, the fork of a Python that has done nothing but start. Before it runs anything that
is not ours, it gives up, for good:
    files       all but reading the standard library and system libraries (Landlock, seccomp)
    network, processes, threads, signals, ptrace, and every other system call that computing does not need (seccomp)
    memory      more than `memory_mb` (rlimit)
    time        more than `seconds` (it is killed)
    the rest    environment, stdin, open files, terminal, capabilities: empty, null, closed or dropped
It works without root and without namespaces, so also inside most containers. Where a lock is not to be had, nothing is
run: `require` says what is missing. docs/code-reward.md says what is not promised.
"""

import contextlib
import functools
import json
import os
import queue
import secrets
import select
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

RUNNER = Path(__file__).with_name("sandbox_runner.py")
# -s -S: no site-packages; -P: no folder of ours on the path; -B: no .pyc files. Not -I, which would ignore the hash
# seed: with a fixed one, sets keep their order and the same code gets the same score.
PYTHON = [sys.executable, "-sSPB", "-X", "utf8", str(RUNNER)]
ENVIRONMENT = {"PYTHONHASHSEED": "0"}
START_SECONDS = 60.0  # for Python to start on a busy machine; does not count as the code's time
MOST_BYTES = 4096  # an answer is shorter


class SandboxError(RuntimeError):
    """There is no sandbox: nothing was run. The text says what is missing."""


class Job(NamedTuple):
    """A program to check: whether it `parses`, `compiles`, or `tests`: whether setup, code and test run to the end."""

    check: str
    code: str
    setup: str = ""
    test: str = ""


def run_all(jobs: Iterable[Job], seconds: float, memory_mb: int) -> list[bool]:
    """Whether each job passed; as many at once as there are CPUs. Equal jobs are run once.

    Args:
        seconds: wall-clock time of each job, without the start of Python.
        memory_mb: address space of each job in MiB, Python's own included (about 30).

    Raises:
        SandboxError: a sandbox could not be made; the job was not run.
    """
    jobs = list(jobs)
    todo: queue.SimpleQueue[Job] = queue.SimpleQueue()
    for job in dict.fromkeys(jobs):
        todo.put(job)

    def work() -> dict[Job, bool]:
        done: dict[Job, bool] = {}
        with Python() as python, contextlib.suppress(queue.Empty):
            while True:
                job = todo.get_nowait()
                done[job] = python.run(job, seconds, memory_mb)
        return done

    workers = min(todo.qsize(), os.cpu_count() or 1)
    passed: dict[Job, bool] = {}
    with ThreadPoolExecutor(workers or 1) as pool:
        for future in [pool.submit(work) for _ in range(workers)]:
            passed |= future.result()
    return [passed[job] for job in jobs]


def run(job: Job, seconds: float, memory_mb: int) -> bool:
    """Whether one job passed, see `run_all`."""
    with Python() as python:
        return python.run(job, seconds, memory_mb)


class Python:
    """A started Python that forks for each job (`sandbox_runner.serve`); a fork costs a fifth of a start.

    Used by one thread: the kernel ends it with the thread that started it.
    """

    def __init__(self) -> None:
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "Python":
        return self

    def __exit__(self, *_: object) -> None:
        if self.process is not None:
            self.control.close()  # then it kills what it has forked, and ends
            try:
                self.process.wait(START_SECONDS)
            finally:
                self.process.kill()
            self.process = None

    def run(self, job: Job, seconds: float, memory_mb: int) -> bool:
        """Whether `job` passed. The verdict must carry a token that is new for each run."""
        token = secrets.token_hex()
        process = self.process or self._start()
        order = {"token": token, "parent": process.pid, "seconds": seconds, "memory_mb": memory_mb}
        theirs, ours = os.pipe()
        back, answers = os.pipe()
        with open(ours, "wb", buffering=0) as orders, open(back, "rb", buffering=0) as reading:
            try:
                socket.send_fds(self.control, [b"j"], [theirs, answers])
            except OSError:
                pass  # it died; the missing answer says so
            finally:
                os.close(theirs)
                os.close(answers)
            _send(orders, json.dumps(order | job._asdict()).encode())
            start = _read_line(reading, START_SECONDS)
            if start != {"locked": True}:
                self.__exit__()
                raise SandboxError(start.get("error") or f"{sys.executable} does not start in {memory_mb} MB")
            verdict = _read_line(reading, seconds)
            if not _at_end(reading):  # it is running still, whatever it says
                self.__exit__()
            return verdict == {"token": token, "passed": True}

    def _start(self) -> subprocess.Popen[bytes]:
        self.control, far = socket.socketpair()
        with far:
            pipes: dict[str, Any] = {"stdin": far, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
            command = [*PYTHON, "--serve"]
            self.process = subprocess.Popen(command, **pipes, env=ENVIRONMENT, cwd="/", start_new_session=True)
        return self.process


@functools.cache
def require(seconds: float, memory_mb: int) -> None:
    """Tries the sandbox once, by attacking it from inside.

    Raises:
        SandboxError: what is missing, or which attack was not contained.
    """
    if sys.platform != "linux":
        raise SandboxError(f"Linux (this is {sys.platform})")
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as outside:
        outside.write("outside")
        outside.flush()
        target = {"file": outside.name, "parent": os.getpid(), "size": memory_mb * 2**20}
        attacks = {what: code.format_map(target) for what, code in ATTACKS.items()}
        done = run_all([Job("tests", "import os", test=code) for code in attacks.values()], seconds, memory_mb)
        if escaped := [what for what, harm in zip(attacks, done, strict=True) if harm]:
            raise SandboxError(f"containment: in a trial, code could still {', '.join(escaped)}")
    if not run(Job("tests", "answer = 42", test="assert answer == 42"), seconds, memory_mb):
        raise SandboxError(
            f"room to work: in a trial, a single assignment did not pass in {seconds} s and {memory_mb} MB"
        )


# Each passes only if it does harm, so a fault in a line here would look contained: test_rewards_code.py takes each of
# them to an open process and sees it pass. None of them hurts where it is not contained.
ATTACKS = {
    "read files": "open({file!r}).read()",
    "write files": "open({file!r}, 'a').close()",
    "remove files": "os.remove({file!r})",
    "start processes": "os.fork() or os._exit(0)",
    "open sockets": "import socket; socket.socket()",
    "signal its parent": "os.kill({parent}, 0)",
    "take memory": "import mmap; mmap.mmap(-1, {size})",
}


def _send(pipe: Any, order: bytes) -> None:
    try:
        with pipe:
            while order:  # a raw pipe may take a part only
                order = order[pipe.write(order) :]
    except BrokenPipeError:
        pass  # it died; the missing answer says so


def _at_end(pipe: Any) -> bool:
    """Whether all who could write into the pipe have ended; they are given a second for it."""
    poll = select.poll()
    poll.register(pipe, select.POLLIN)
    return bool(poll.poll(1000)) and pipe.read(1) == b""


def _read_line(pipe: Any, seconds: float) -> dict[str, Any]:
    """The next line of JSON that holds a mapping; {} if none comes in time, or something else does."""
    deadline, line = time.monotonic() + seconds, b""
    poll = select.poll()
    poll.register(pipe, select.POLLIN)
    while not line.endswith(b"\n") and len(line) < MOST_BYTES:
        if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
            return {}
        if not (byte := pipe.read(1)):  # one at a time: what follows the line belongs to the next call
            return {}
        line += byte
    try:
        answer = json.loads(line)
    except ValueError:
        return {}
    return answer if isinstance(answer, dict) else {}
