"""`make test-latest`: the fast tests with the newest Hugging Face libraries, in an environment of its own.

It tells whether the ranges of pyproject.toml can be raised. pip is given the project's dependencies by name, without
the ranges. What pyproject.toml names and FREE does not stays pinned as in constraints.txt, torch before
all; what only they need is free, because a newer transformers may want a newer huggingface_hub.
Arguments go to pytest. The exit status is pytest's, or 2 where the libraries do not install.
"""

import json
import re
import subprocess
import sys
import tomllib
import xml.etree.ElementTree as ElementTree
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
VENV = ROOT / ".venv-latest"
PYTHON = VENV / "bin" / "python"
LIBRARIES = ("trl", "transformers", "peft", "accelerate", "datasets")
FREE = (*LIBRARIES, "huggingface-hub", "httpx2")  # the first five, and what a newer one of them may want newer
EXTRAS = ("dev", "quant", "ja")


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def dependencies(pyproject: dict) -> list[str]:
    """Names of what the project and its EXTRAS need, without versions."""
    project = pyproject["project"]
    wanted = project["dependencies"] + [line for extra in EXTRAS for line in project["optional-dependencies"][extra]]
    return sorted({canonical(re.match(r"[\w.-]+", line).group()) for line in wanted})


def pinned(constraints: str) -> dict[str, str]:
    """Name -> version of every `name==version` line."""
    pairs = re.findall(r"^([\w.-]+)==(\S+)", constraints, re.MULTILINE)
    return {canonical(name): version for name, version in pairs}


def describe(found: dict[str, str], pins: dict[str, str], newest: dict[str, str]) -> str:
    """`trl 1.17.0 (pin 1.16.0), peft 0.21.2 (as pinned)`; says so where a newer version exists but was not taken."""
    parts = []
    for name in LIBRARIES:
        pin = "as pinned" if found[name] == pins[name] else f"pin {pins[name]}"
        # without an answer of the index, nothing is said of newer versions
        behind = "" if newest.get(name, found[name]) == found[name] else f", held back: {newest[name]} exists"
        parts.append(f"{name} {found[name]} ({pin}{behind})")
    return ", ".join(parts)


def tally(junit: Path) -> str:
    """`118 passed, 2 failed, 1 skipped` out of pytest's report file; errors count as failed."""
    if not junit.exists():
        return "pytest did not get as far as a report"
    [suite] = ElementTree.parse(junit).getroot().iter("testsuite")
    tests, failures, errors, skipped = (int(suite.get(n)) for n in ("tests", "failures", "errors", "skipped"))
    return f"{tests - failures - errors - skipped} passed, {failures + errors} failed, {skipped} skipped"


def install(pins: dict[str, str]) -> bool:
    if not PYTHON.exists():
        subprocess.run([sys.executable, "-m", "venv", VENV], check=True)
    names = dependencies(tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8")))
    kept = VENV / "constraints.txt"
    kept.write_text("".join(f"{n}=={pins[n]}\n" for n in names if n in pins and n not in FREE), encoding="utf-8")
    pip = [PYTHON, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    steps = [*pip, "--upgrade", "-c", kept, *names], [*pip, "--no-deps", "-e", ROOT]
    return all(subprocess.run(step).returncode == 0 for step in steps)


def installed() -> dict[str, str]:
    listed = subprocess.run([PYTHON, "-m", "pip", "list", "--format", "json"], capture_output=True, check=True)
    return {canonical(row["name"]): row["version"] for row in json.loads(listed.stdout)}


def newest_versions() -> dict[str, str]:
    """What the package index has; without what it did not answer for."""
    answers = {}
    for name in LIBRARIES:
        command = [PYTHON, "-m", "pip", "index", "versions", name]
        found = re.match(r"\S+ \((\S+)\)", subprocess.run(command, capture_output=True, text=True).stdout)
        answers |= {name: found.group(1)} if found else {}
    return answers


def main(arguments: list[str]) -> int:
    pins = pinned((ROOT / "constraints.txt").read_text(encoding="utf-8"))
    print(f"Installing the newest {', '.join(LIBRARIES)} into {VENV.name} (a few minutes the first time)", flush=True)
    if not install(pins):
        print("test-latest: FAILED, the newest libraries do not install; pip's reason stands above")
        return 2
    versions = describe(installed(), pins, newest_versions())
    print(f"Testing with {versions}", flush=True)
    junit = VENV / "report.xml"
    junit.unlink(missing_ok=True)
    command = [PYTHON, "-m", "pytest", "-m", "not slow", "-p", "no:cacheprovider", f"--junitxml={junit}", *arguments]
    status = subprocess.run(command, cwd=ROOT).returncode
    print(f"test-latest: {'ok' if status == 0 else 'FAILED'}, {tally(junit)}; {versions}")
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
