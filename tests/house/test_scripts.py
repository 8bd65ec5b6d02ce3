"""Scripts for a shell: no pipe that breaks when its reader has seen enough."""

import re
import subprocess

import pytest
from house import ROOT, tracked_files

# These go before their input ends; with pipefail the script then ends with SIGPIPE (141), now and then.
LEAVES_EARLY = re.compile(
    r"\|&?\s*(head\b|sed\b[^|]*\b\d*q\b|grep\b[^|]*\s(-\w*q\w*|-\w*m\s*\d+|--quiet|--max-count)|awk\b[^|]*exit|read\b)"
)


def scripts():
    for path in tracked_files():
        if path.suffix in (".sh", ".sbatch", ".yml") or path.name in ("Makefile", "run"):
            yield path
        elif path.suffix in ("", ".py", ".md", ".yaml") and "pipefail" in path.read_text("utf-8", "replace"):
            yield path


@pytest.mark.parametrize("line", ["x | head -n 1", "x | grep -q y", "x | sed -n '1p;1q'", "x | awk '{print; exit}'"])
def test_what_breaks_a_pipe_is_recognised(line):
    assert LEAVES_EARLY.search(line)
    assert not LEAVES_EARLY.search("x | tail -n 1 | grep y | sed -n 1p")


def test_no_script_has_a_pipe_that_breaks():
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in scripts()
        if path.name != "test_scripts.py"
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1)
        if LEAVES_EARLY.search(line.split(" # ")[0])
    ]
    assert not found


def test_bash_reads_every_script():
    for path in scripts():
        if path.read_text("utf-8").startswith(("#!/bin/bash", "#!/usr/bin/env bash")):
            subprocess.run(["bash", "-n", str(path)], check=True)
