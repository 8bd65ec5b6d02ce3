"""The sandbox: runs generated code in a process of its own that the kernel locks in (`sandbox_runner.py`).

Every job is one fresh Python. Before it runs anything that is not ours, it gives up, for good:
    files       all but reading the standard library and system libraries (Landlock, seccomp)
    network, processes, threads, signals, ptrace, and every other system call that computing does not need (seccomp)
    memory      more than `memory_mb` (rlimit)
    time        more than `seconds` (it is killed)
    the rest    environment, stdin, open files, terminal, capabilities: empty, null, closed or dropped
It works without root and without namespaces, so also inside most containers. Where a lock is not to be had, nothing is
run: `require` says what is missing. docs/code-reward.md says what is not promised.
"""

import functools
import json
import os
import secrets
import select
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
    """Whether each job passed; as many at once as there are CPUs.

    Args:
        seconds: wall-clock time of each job, without the start of Python.
        memory_mb: address space of each job in MiB, Python's own included (about 30).

    Raises:
        SandboxError: a sandbox could not be made; the job was not run.
    """
    jobs = list(jobs)
    with ThreadPoolExecutor(min(len(jobs), os.cpu_count() or 1) or 1) as pool:
        return list(pool.map(lambda job: run(job, seconds, memory_mb), jobs))


def run(job: Job, seconds: float, memory_mb: int) -> bool:
    """Whether one job passed, see `run_all`. The verdict must carry a token that is new for each run."""
    token = secrets.token_hex()
    order = {"token": token, "parent": os.getpid(), "seconds": seconds, "memory_mb": memory_mb, **job._asdict()}
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(PYTHON, **pipes, env=ENVIRONMENT, cwd="/", start_new_session=True, bufsize=0) as process:
        try:
            _send(process.stdin, json.dumps(order).encode())
            start = _read_line(process.stdout, START_SECONDS)
            if start != {"locked": True}:
                raise SandboxError(start.get("error") or f"{sys.executable} does not start in {memory_mb} MB")
            return _read_line(process.stdout, seconds) == {"token": token, "passed": True}
        finally:
            process.kill()  # it has no children: it could not start any


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


# Each passes only if it does harm, so a fault in a line here would look contained: tests/test_rewards_code.py takes
# each of them to an open process and sees it pass. None of them hurts where it is not contained.
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
