"""A process that asks the verifiers of reasoning_gym. Started by reasoning.py, never imported.

One line of JSON for each question, one for each answer. Some verifiers take what a model wrote for Python and evaluate
it (`eval`, SymPy's parser). Here `eval` and `exec` refuse; where a verifier wants them, it is asked again in a fork
that has locked itself in like the sandbox for generated code (sandbox_runner.py), and where the locks are not to be
had it is not asked.

It stands alone: of this package it imports nothing but that file.
"""

import builtins
import functools
import importlib.util
import json
import math
import os
import random
import secrets
import select
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import reasoning_gym

_LONGEST = 4096  # bytes of what a fork says
_FOREVER = 10**6  # seconds of the processor: the clock ends a fork


class TooLong(BaseException):
    """Past the time limit; not an Exception, so that no library takes it for a wrong answer."""


@functools.lru_cache(maxsize=64)
def make_task(name: str, options: str) -> Any:
    """The task `name` with options, a JSON text."""
    return reasoning_gym.create_dataset(name, **json.loads(options))


def score(task: Any, entry: Any, given: str) -> dict[str, Any]:
    """What the verifier says; 0 where it stumbles over the answer or says no number."""
    try:
        said = float(task.score_answer(given, entry))
    except Exception:
        return {"score": 0.0, "failed": True}
    return {"score": said} if math.isfinite(said) else {"score": 0.0, "failed": True}


def answer(question: dict[str, Any], seconds: float, memory_mb: int) -> dict[str, Any]:
    """The score of one completion, or why there is none; without a completion (`given`) the entry itself."""
    try:
        name, options, index = question["task"], question["options"], question["index"]
        task = make_task(name, options)
        random.seed(f"{name} {options} {index}")  # list_functions draws from the global generator
        entry = task[index]
    except Exception as error:
        return {"entry": f"{type(error).__name__}: {error}"}
    if "given" not in question:
        return {"question": str(entry["question"]), "answer": "" if entry["answer"] is None else str(entry["answer"])}
    with _no_code() as wanted:
        found = score(task, entry, question["given"])
    if not wanted:
        return found
    if _RUNNER is None:
        return {"missing": f"Linux (this is {sys.platform})"}
    return in_a_fork(lambda: score(task, entry, question["given"]), seconds, memory_mb)


@contextmanager
def _no_code() -> Iterator[list[bool]]:
    """Without `eval` and `exec`; the list says whether they were wanted, for a bare `except:` hides the error."""
    wanted: list[bool] = []

    def refuse(*_: Any, **__: Any) -> None:
        wanted.append(True)
        raise PermissionError

    before = builtins.eval, builtins.exec
    builtins.eval = builtins.exec = refuse
    try:
        yield wanted
    finally:
        builtins.eval, builtins.exec = before


def in_a_fork(ask: Callable[[], dict[str, Any]], seconds: float, memory_mb: int) -> dict[str, Any]:
    """What `ask` says in a locked fork of this process; `late` if it says nothing in time."""
    signal.setitimer(signal.ITIMER_REAL, 0)  # the fork is ended from here
    reading, writing = os.pipe()
    token = secrets.token_bytes(16)
    child = os.fork()
    if child == 0:
        os.close(reading)
        _say_locked_in(ask, writing, token, memory_mb)
    os.close(writing)
    said, poll = b"", select.poll()
    poll.register(reading, select.POLLIN)
    while poll.poll(seconds * 1000) and len(said) < _LONGEST and (part := os.read(reading, _LONGEST)):
        said += part
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(reading)
    if not said.startswith(token):
        return {"late": True}
    found: dict[str, Any] = json.loads(said[len(token) :])
    return found


def _say_locked_in(ask: Callable[[], dict[str, Any]], writing: int, token: bytes, memory_mb: int) -> None:
    """The fork, which ends here. It keeps no file of this process but `writing`."""
    said: dict[str, Any] = {"score": 0.0, "failed": True}
    try:
        for standard in (0, 1, 2):
            os.dup2(_NULL, standard)
        os.closerange(3, writing)
        os.closerange(writing + 1, 256)
        if problem := _lock(memory_mb):
            said = {"missing": problem}
        else:
            said = ask()
    finally:
        os.write(writing, token + json.dumps(said).encode())
        os._exit(0)


def _lock(memory_mb: int) -> str:
    """Shuts this process in for good; what is missing for that, or nothing."""
    try:
        _RUNNER.lock(os.getppid(), _FOREVER, memory_mb)
    except OSError as error:
        return str(error)
    return ""


def _runner() -> Any:
    if sys.platform != "linux":
        return None
    spec = importlib.util.spec_from_file_location("sandbox_runner", Path(__file__).with_name("sandbox_runner.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _too_long(*_: Any) -> None:
    raise TooLong


def main() -> None:
    """Answers questions until the trainer is gone. Arguments: seconds for each, memory in MiB."""
    seconds, memory_mb = float(sys.argv[1]), int(sys.argv[2])
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(_NULL, 1)  # whatever a verifier prints is no answer
    if sys.platform != "win32":
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (memory_mb << 20, memory_mb << 20))
        signal.signal(signal.SIGALRM, _too_long)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the trainer, which ends this process
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for line in sys.stdin:
        try:
            if sys.platform != "win32":
                signal.setitimer(signal.ITIMER_REAL, seconds)
            said = answer(json.loads(line), seconds, memory_mb)
        except TooLong:
            said = {"late": True}
        except MemoryError:
            said = {"score": 0.0, "failed": True}
        finally:
            if sys.platform != "win32":
                signal.setitimer(signal.ITIMER_REAL, 0)
        print(json.dumps(said), file=answers, flush=True)


_NULL = os.open(os.devnull, os.O_RDWR)
_RUNNER = _runner()

if __name__ == "__main__":
    main()
