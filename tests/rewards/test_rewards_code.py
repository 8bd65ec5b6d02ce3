"""Generated code: what scores what, and that nothing is run where it cannot be contained (test_sandbox.py)."""

import os
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sandboxed import DOUBLE, LACKING, sandboxed, score

from rewards import Code, RewardError, build_rewards
from rewards.code import code_of
from rewards.sandbox import ATTACKS, PYTHON, Job, SandboxError, require, run


# --- scores ---------------------------------------------------------------------------------------------------------
@sandboxed
@pytest.mark.parametrize(
    "completion, tests, expected",
    [
        (DOUBLE, ["assert f(2) == 4"], 1.0),
        ("def f(x):\n    return 4", ["assert f(2) == 4", "assert f(3) == 6"], 0.5),
        ("def f(x):\n    return 4", ["assert f(2) == 4", "assert f(3) == 6", "assert f(4) == 8", "f(1)"], 0.5),
        ("def f(x):\n    return 5", ["assert f(2) == 4"], 0.0),
        ("def f(x) return", ["assert True"], 0.0),
        ("", ["assert True"], 0.0),
        ("# nothing", ["assert True"], 0.0),
        ("def g(x): return x", ["assert f(2) == 4"], 0.0),
        ("def f(x):\n    return f(x)", ["assert f(2) == 4"], 0.0),
        ("def größe(s):\n    return s + '🦔\u0301'", ["assert größe('ß') == 'ß🦔\u0301'"], 1.0),
        ("f = '\udcff'", ["assert True"], 0.0),  # half a surrogate pair is no source code
        ("f = 1\0", ["assert True"], 0.0),
        ("f = input()", ["assert True"], 0.0),
        ("try:\n    f = input()\nexcept EOFError:\n    f = 'end'", ["assert f == 'end'"], 1.0),
        (DOUBLE + "if __name__ == '__main__':\n    print(f(int(input())))", ["assert f(2) == 4"], 1.0),
        ("from dataclasses import dataclass\n@dataclass\nclass P:\n    x: int = 3", ["assert P().x == 3"], 1.0),
        ("import hashlib, re, json, decimal, sqlite3, zoneinfo, asyncio, random\nf = 1", ["assert f"], 1.0),
        (None, ["assert True"], 0.0),
        (DOUBLE, [], None),
        (DOUBLE, None, None),
        (DOUBLE, "", None),
        ("def f(x):\n    return 4", "def g(x):\n    return f(x)\nassert g(2) == 4\nassert g(3) == 6", 0.5),
        ("def f(x):\n    return 4", "def check(f):\n    assert f(2) == 4\n    assert f(3) == 6\ncheck(f)", 0.0),
        ([{"role": "assistant", "content": f"Here:\n```python\n{DOUBLE}```\nDone."}], ["assert f(2) == 4"], 1.0),
    ],
)
def test_the_score_is_the_share_of_the_tests_that_pass(completion, tests, expected):
    assert Code()(["p"], [completion], tests=[tests]) == [expected]


@sandboxed
def test_a_batch_keeps_its_order_and_each_row_its_tests():
    rows = [(DOUBLE, ["assert f(2) == 4"]), ("x", []), ("f = abs", ["assert f(-1) == 1", "assert f(2) == 4"])] * 3
    completions, tests = zip(*rows, strict=True)
    assert Code()(["p"] * 9, completions, tests=tests) == [1.0, None, 0.5] * 3
    assert Code()([], [], tests=[]) == []


@sandboxed
def test_the_setup_runs_before_the_completion():
    reward = Code(setup_column="setup", column="test_list")
    columns = {"test_list": [["assert f(2) == 2 * tau"]] * 3, "setup": ["from math import tau", ["import math"], None]}
    assert reward(["p"] * 3, ["factor = tau\ndef f(x): return x * factor"] * 3, **columns) == [1.0, 0.0, 0.0]


@sandboxed
def test_the_hash_seed_is_fixed_so_that_sets_keep_their_order():
    command = [sys.executable, "-c", "print(hash('a'))"]
    known = subprocess.run(command, env={"PYTHONHASHSEED": "0"}, capture_output=True, text=True, check=True).stdout
    assert score("f = hash('a')", [f"assert f == {known}"]) == 1.0


@sandboxed
@pytest.mark.parametrize(
    "text, parses, compiles",
    [
        (DOUBLE, 1.0, 1.0),
        ("return 1", 1.0, 0.0),  # outside a function: the grammar takes it, the compiler does not
        ("break", 1.0, 0.0),
        ("f(", 0.0, 0.0),
        ("Sure, here it is", 0.0, 0.0),
        ("  \n", 0.0, 0.0),
        ("# a comment", 0.0, 0.0),
        ("raise SystemExit", 1.0, 1.0),  # not run
        ("(" * 10_000, 0.0, 0.0),
        ("```py\nx = 1\n```", 1.0, 1.0),
    ],
)
def test_parses_and_compiles_need_no_tests(text, parses, compiles):
    assert Code(check="parses")(["p"], [text]) == [parses]
    assert Code(check="compiles")(["p"], [text]) == [compiles]


@sandboxed
@settings(max_examples=15, deadline=None)
@given(st.text() | st.text(alphabet="ab=:()[]`~ \n\t\"'\\#1.,~p\0\ud800"))
def test_any_text_has_a_score(text):
    assert Code(check="parses")(["p"], [text]) in ([0.0], [1.0])


@pytest.mark.parametrize(
    "completion, code",
    [
        ("x = 1", "x = 1"),
        ("So:\n```python\nx = 1\n```\nand\n```python\ny = 2\n```", "x = 1\n"),
        ("```bash\npip\n```\n~~~~ Python3 title\nx = '```'\n~~~~", "x = '```'\n"),
        ("```\nx = 1\n```", "x = 1\n"),
        ("```python\nx = 1", "x = 1"),
        ("1. a list:\n   ```py\n   if x:\n       y\n   ```", "if x:\n    y\n"),
        ("```python\n```", ""),
        ("s = '``` no fence'", "s = '``` no fence'"),
    ],
)
def test_the_code_is_what_stands_in_the_fence(completion, code):
    assert code_of(completion) == code


# --- errors ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "options, parts",
    [
        ({"check": "test"}, ["check is 'test'", "did you mean 'tests'"]),
        ({"seconds": 0}, ["seconds is 0"]),
        ({"seconds": "soon"}, ["seconds is 'soon'"]),
        ({"memory_mb": 8}, ["memory_mb is 8", "64"]),
        ({"colum": "x"}, ["did you mean 'column'"]),
    ],
)
def test_a_wrong_option_is_named(options, parts):
    with pytest.raises(RewardError) as caught:
        build_rewards([{"name": "code", **options}])
    assert "\n" not in str(caught.value) and all(part in str(caught.value) for part in parts)


@sandboxed
@pytest.mark.parametrize(
    "columns, parts",
    [
        ({"test": [[]]}, ["no column 'tests'", "did you mean 'test'"]),
        ({"tests": [["assert f("]]}, ["'tests', row 0", "'assert f('", "no Python"]),
        ({"tests": [7]}, ["'tests', row 0", "7"]),
        ({"tests": [[7]]}, ["'tests', row 0"]),
        ({"tests": [["assert f"]], "setup": ["import"]}, ["'setup', row 0", "no Python"]),
    ],
)
def test_what_is_wrong_in_a_column_is_said(columns, parts):
    reward = Code(setup_column="setup" if "setup" in columns else None)
    with pytest.raises(RewardError) as caught:
        reward(["p"], [DOUBLE], **columns)
    assert "\n" not in str(caught.value) and all(part in str(caught.value) for part in parts)


# --- refusal --------------------------------------------------------------------------------------------------------
# Starts a command on a kernel from which system calls have been taken for good, as in a container that forbids them.
WITHOUT = """
import ctypes, os, sys
library = ctypes.CDLL("libseccomp.so.2")
library.seccomp_init.restype = ctypes.c_void_p
rules = ctypes.c_void_p(library.seccomp_init(0x7FFF0000))
for name in sys.argv[1].split():
    number = 444 if name == "landlock_create_ruleset" else library.seccomp_syscall_resolve_name(name.encode())
    assert library.seccomp_rule_add_array(rules, 0x00050000 | 38, number, 0, None) == 0
assert library.seccomp_load(rules) == 0
os.execv(sys.argv[2], sys.argv[2:])
"""


@pytest.fixture
def fresh_trial():
    """The sandbox is tried anew, not remembered."""
    require.cache_clear()
    yield
    require.cache_clear()


@sandboxed
@pytest.mark.parametrize(
    "taken, named",
    [
        ("landlock_create_ruleset", "Landlock"),
        ("capset", "capabilities"),
        ("setrlimit prlimit64", "limit on resources"),
    ],
)
def test_without_one_of_the_locks_the_reward_refuses(taken, named, monkeypatch, fresh_trial):
    monkeypatch.setattr("rewards.sandbox.PYTHON", [sys.executable, "-c", WITHOUT, taken, *PYTHON])
    with pytest.raises(RewardError, match=f"'code'.*not run; missing: .*{named}"):
        Code()


@sandboxed
def test_what_the_trial_finds_uncontained_is_named(monkeypatch, fresh_trial):
    # A file that the sandbox lets everyone read stands for one that it should not.
    monkeypatch.setitem(ATTACKS, "read files", "open(os.__file__).read()")
    with pytest.raises(RewardError, match="not run; missing: containment: in a trial, code could still read files"):
        Code()


@pytest.mark.skipif(LACKING is None, reason="this platform has all that the sandbox needs")
def test_a_platform_without_the_locks_is_refused(fresh_trial):
    with pytest.raises(RewardError, match="cannot be contained here, so it is not run; missing: "):
        Code()


def test_another_system_is_refused(monkeypatch, fresh_trial):
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(RewardError, match="cannot be contained here.*Linux.*darwin"):
        Code()


@sandboxed
@pytest.mark.parametrize("what", ATTACKS)
def test_each_attack_of_the_trial_does_harm_where_nothing_contains_it(what, tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("outside")
    code = ATTACKS[what].format(file=str(victim), parent=os.getpid(), size=2**29)
    assert subprocess.run([sys.executable, "-c", f"import os\n{code}"], stdin=subprocess.DEVNULL).returncode == 0
    assert not run(Job("tests", "import os", test=code), 3.0, 512)


@sandboxed
def test_a_sandbox_that_cannot_start_is_an_error_and_no_score(monkeypatch):
    monkeypatch.setattr("rewards.sandbox.PYTHON", [*PYTHON[:-1], "/no/such/runner.py"])
    with pytest.raises(SandboxError, match="does not start"):
        run(Job("parses", "x = 1"), 3.0, 512)
