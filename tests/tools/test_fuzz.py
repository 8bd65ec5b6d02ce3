"""A short form of `make fuzz`, and that it sees what it looks for."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from fuzz_mutations import VALUES, mutate, payloads

ROOT = Path(__file__).resolve().parents[2]
CASES = 136  # 8 of each of the 17 loaders


def run(out: Path, *flags: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "tests/tools/fuzz.py"), "--out", str(out), *flags]
    return subprocess.run(command, capture_output=True, text=True, timeout=580)


def test_broken_files_are_loaded_or_refused(tmp_path):
    done = run(tmp_path, "--cases", str(CASES), "--seed", "7")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["cases"] == CASES and summary["violations"] == [] and len(summary["loaders"]) == 17
    outcomes = {key: sum(row[key] for row in summary["loaders"].values()) for key in ("loaded", "refused")}
    assert min(outcomes.values()) > CASES // 20  # neither all harmless nor all broken at the first byte


def test_the_good_files_load():
    """Where the loader refuses them as they are, what is broken in them is never looked at."""
    code = f"""
import random, sys
sys.path[:0] = [{str(ROOT / "tests" / "tools")!r}, {str(ROOT / "tests" / "support")!r}, {str(ROOT / "tests")!r}]
import fuzz, fuzz_mutations
fuzz_mutations.mutate = lambda content, *rest: content
cases, folder = fuzz.make_cases(0)
with folder:
    print("outcomes", *(f"{{cases.family_of(n)}}={{cases.run(n)}}" for n in range(3 * len(cases.families))))
"""
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=580, env=env)
    outcomes = next(line for line in done.stdout.splitlines() if line.startswith("outcomes")).split()[1:]
    assert len(outcomes) > 40 and [one for one in outcomes if not one.endswith("=loaded")] == []


def test_the_same_seed_breaks_a_file_in_the_same_way():
    content = json.dumps({"a": [1, {"b": "c"}], "d": None}).encode()
    first, again, other = (
        [mutate(content, random.Random(f"{seed} {i}"), "x.json", "canary") for i in range(50)] for seed in (1, 1, 2)
    )
    assert first == again != other and len(set(first)) > 40 and content not in first[:1]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\x00", b"a: 1\n"])
@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.yaml", "a.safetensors", "a.csv", "a.pt"])
def test_anything_can_be_broken_further(content, name):
    for i in range(40):
        assert isinstance(mutate(content, random.Random(i), name, "canary"), bytes)


def test_payloads_would_be_seen(tmp_path):
    """The pickles really run when they are unpickled by somebody who should not."""
    import pickle

    canary = tmp_path / "canary"
    pickle.loads(payloads(str(canary))[0])
    assert canary.exists() and len(payloads("x")) >= 8 and len(VALUES) > 40


@pytest.mark.slow
def test_a_violation_is_kept_and_told(tmp_path):
    """A loader that is made to fail, to hang, to run code, to eat memory and to die: five violations."""
    code = f"""
import os, sys
sys.path[:0] = [{str(ROOT / "tests" / "tools")!r}, {str(ROOT / "tests" / "support")!r}, {str(ROOT)!r}]
import fuzz, fuzz_loaders
fuzz.SECONDS = 1
def spoil(place):
    number = int(place.read_text())
    if number == 0: raise KeyError("x")
    if number == 1:
        while True: pass
    if number == 2: os.system("true")
    if number == 3: bytearray(1 << 40)
    if number == 4: os.kill(os.getpid(), 11)
def families(folder):
    numbers = iter(range(FIRST, 100))
    seed = lambda rng: {{"n": str(next(numbers)).encode()}}
    return {{"spoilt": fuzz_loaders.Family(seed, lambda place: spoil(place / "n"))}}
fuzz_loaders.make_families = families
args = __import__("argparse").Namespace(seed=0, family=None, first=FIRST, cases=5, step=1, out={str(tmp_path)!r})
import fuzz_mutations
fuzz_mutations.mutate = lambda content, *rest: content
fuzz.work(args)
""".replace("FIRST", "0")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=500)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    ended = {row["case"]: row["what"] for row in rows if row["outcome"] == "violation"}
    assert [ended[i].split(":")[0].split(" ")[0] for i in range(4)] == ["KeyError", "took", "code", "MemoryError"]
    assert done.returncode == -11 and rows[-1] == {"case": 4, "family": "spoilt", "outcome": "begun"}
    assert (tmp_path / "case-2" / "n").read_text() == "2"
