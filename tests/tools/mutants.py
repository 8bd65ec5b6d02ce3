"""Small wrong edits to our code, one at a time in a scratch copy: does a fast test catch each of them? `make mutants`

Prints a line for each, writes the table of tests/tools/MUTATIONS.md, and ends with exit code 1 when one survives.

    python tests/tools/mutants.py            all of tests/tools/mutants.yaml
    python tests/tools/mutants.py 3 17       only these (the table is left alone)

The libraries are imported once; each mutant is tried in a fork of this process, so that it costs seconds.
"""

import contextlib
import io
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
TABLE = HERE / "MUTATIONS.md"
# Quick ones first: a mutant is done with at the first test that fails.
TESTS = (
    "ppo_math second_opinion algorithms estimator critic adapters traps_rollout traps ppo_trainer ppo_logs "
    "ppo_config aggregation own_loop replay rewards_asking traps_runs equivalences"
).split()
SURVIVED, BROKEN = "survived", "the tests fail without any edit"


def main(chosen: list[int]) -> int:
    mutants = read_mutants()
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch) / "plumbline"
        shutil.copytree(ROOT, copy, ignore=_left_out)
        _import_libraries()
        if not chosen and (failed := first_failure(copy)) is not None:
            print(f"{BROKEN}: {failed}")
            return 1
        rows = []
        for number, mutant in enumerate(mutants, start=1):
            if chosen and number not in chosen:
                continue
            started = time.perf_counter()
            caught = try_out(copy, **mutant)
            rows.append((number, mutant["file"], mutant["what"], caught))
            seconds = time.perf_counter() - started
            print(f"{number:>3} {caught or SURVIVED.upper():<60} {mutant['what']} {seconds:.0f} s", flush=True)
    survivors = [row for row in rows if row[3] is None]
    print(f"{len(rows) - len(survivors)} of {len(rows)} caught")
    if not chosen:
        TABLE.write_text(table(rows), encoding="utf-8")
    return 1 if survivors else 0


def _left_out(folder: str, names: list[str]) -> list[str]:
    """What a copy of the tree goes without: what is hidden, results and builds. pipeline/runs is neither."""
    at_the_top = ("runs", "dist") if Path(folder) == ROOT else ()
    return [name for name in names if name.startswith(".") or name in at_the_top]


def read_mutants() -> list[dict[str, str]]:
    """The edits of tests/tools/mutants.yaml. SystemExit with a sentence where one no longer fits the code."""
    mutants = yaml.safe_load((HERE / "mutants.yaml").read_text(encoding="utf-8"))
    for mutant in mutants:
        path = edited_file(ROOT, mutant["file"])
        count = path.read_text(encoding="utf-8").count(mutant["old"])
        if count != 1:
            where = f"tests/tools/mutants.yaml, '{mutant['what']}': {path.relative_to(ROOT)}"
            raise SystemExit(f"error: {where} has {mutant['old']!r} {count} times; it must stand there once.")
    return mutants


def edited_file(root: Path, name: str) -> Path:
    """`ppo/math.py` lies in pipeline/, `rewards/base.py` beside it."""
    return root / name if name.startswith("rewards/") else root / "pipeline" / name


def try_out(copy: Path, what: str, file: str, old: str, new: str, first: str | None = None) -> str | None:
    """The first test that fails with the edit, or None. `first`: the test file to begin with, to save time."""
    path = edited_file(copy, file)
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace(old, new), encoding="utf-8")
    try:
        return first_failure(copy, first)
    finally:
        path.write_text(text, encoding="utf-8")


def first_failure(copy: Path, first: str | None = None) -> str | None:
    """Runs the fast tests of PPO in a fork, in `copy`; the id of the first one that fails."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        name = "the test run itself broke down"
        with contextlib.suppress(BaseException):
            name = _run_tests(copy, first)
        os.write(writer, name.encode()[:4000])
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, encoding="utf-8") as pipe:
        name = pipe.read()
    os.waitpid(child, 0)
    return name or None


def _run_tests(copy: Path, begin: str | None) -> str:
    import pytest

    class First:
        failed = ""

        def pytest_runtest_logreport(self, report):
            if report.failed and not self.failed:
                self.failed = report.nodeid

        def pytest_collectreport(self, report):
            if report.failed and not self.failed:
                self.failed = f"{report.nodeid} (import)"

    os.chdir(copy)
    os.environ["PYTHONPATH"] = str(copy)  # of the processes that tests start
    ours = {str(ROOT), *(str(folder) for folder in (ROOT / "tests").rglob("*"))}
    sys.path[:] = [str(copy), *(p for p in sys.path if p not in ours)]  # pytest puts the folders of the copy there
    first = First()
    names = dict.fromkeys([*filter(None, [begin]), *TESTS])
    files = [str(next(copy.glob(f"tests/*/test_{name}.py")).relative_to(copy)) for name in names]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        status = pytest.main(["-x", "-q", "-m", "not slow", "-p", "no:cacheprovider", *files], plugins=[first])
    if status not in (0, 1) and not first.failed:
        return f"pytest ended with {status!r}"
    return first.failed.rpartition("/")[2]


def _import_libraries() -> None:
    """Only what is not ours: the edited copy of pipeline/ and rewards/ is imported in the fork."""
    import datasets  # noqa: F401
    import hypothesis  # noqa: F401
    import peft  # noqa: F401
    import pytest  # noqa: F401
    import sacrebleu  # noqa: F401
    import torch
    import transformers  # noqa: F401
    from trl import GRPOTrainer  # noqa: F401

    torch.set_num_threads(1)  # a thread pool would not survive the fork


def table(rows: list[tuple[int, str, str, str | None]]) -> str:
    caught = sum(row[3] is not None for row in rows)
    lines = [
        "# Wrong edits that the tests must catch",
        "",
        "`make mutants` applies the edits of `mutants.yaml` one at a time in a scratch copy, runs the quick",
        f"tests of PPO until one fails, and writes this table. Caught: {caught} of {len(rows)}.",
        "",
        "| | in `pipeline/`, or in `rewards/` | wrong edit | first test that fails |",
        "|--|--|--|--|",
        *(f"| {n} | `{file}` | {what} | {f'`{test}`' if test else SURVIVED} |" for n, file, what, test in rows),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"
    sys.exit(main([int(number) for number in sys.argv[1:]]))
