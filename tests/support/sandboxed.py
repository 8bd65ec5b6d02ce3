"""Generated code in the sandbox, and whether this platform has one."""

import ctypes
import re
import sys
import textwrap
from pathlib import Path

import pytest

from rewards import Code

ROOT = Path(__file__).resolve().parents[2]
DOUBLE = "def f(x):\n    return 2 * x\n"
SMALL = {"seconds": 1.0, "memory_mb": 200}


def missing() -> str | None:
    """What this platform lacks, found without the code under test: a fault there must fail, not skip."""
    if sys.platform != "linux":
        return "Linux"
    try:
        ctypes.CDLL("libseccomp.so.2")
    except OSError:
        return "libseccomp.so.2"
    if ctypes.CDLL(None).syscall(444, None, ctypes.c_size_t(0), 1) < 1:  # landlock_create_ruleset: its version
        return "Landlock"
    return None if re.search(r"^Seccomp:", Path("/proc/self/status").read_text(), re.M) else "seccomp"


LACKING = missing()
sandboxed = pytest.mark.skipif(LACKING is not None, reason=f"no sandbox on this platform: it has no {LACKING}")


def score(completion, tests=("assert f(2) == 4",), **options):
    return Code(**options)(["p"], [completion], tests=[list(tests)])[0]


def outcome(lines: str, name: str, **options) -> bool:
    """Whether the lines, run in the sandbox, end with the exception `name` (`done`: with none)."""
    body = textwrap.indent(textwrap.dedent(lines).strip(), "    ")
    code = f"import os, sys, time, ctypes\ntry:\n{body}\n    end = 'done'\n"
    code += "except BaseException as error:\n    end = type(error).__name__\n"
    return score(code, [f"assert end == {name!r}"], **options) == 1.0
