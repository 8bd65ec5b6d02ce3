"""Loaders against broken files: `make fuzz ARGS="--cases 20000 --seed 0"`, or `python tests/tools/fuzz.py`.

A case is a set of good files of which one or two were changed (fuzz_mutations.py), given to one of our loaders
(fuzz_loaders.py). It may load, or be refused with one sentence (UserError, RewardError). All else is a
violation: another exception, more than 10 seconds, memory beyond the limit, a process that dies, or code that runs.
The case is then kept in runs/fuzz/case-<number>, and `--only <number>` runs it again.

A worker process takes the cases, so that one that dies is seen. `runs/fuzz/summary.json` has the figures.
"""

import argparse
import faulthandler
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

SECONDS = 10  # of the processor for a case
PATIENCE = 60  # seconds on the clock
MEMORY = 3 << 30  # bytes that a worker may take beyond what it has when all is imported
LONGEST = 3000  # characters of a refusal
RUNS_CODE = ("os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "pickle.find_class", "socket.connect")
ROOT = Path(__file__).resolve().parents[2]
PATHS = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "support")]


class Violation(Exception):
    """A loader did what it must not do."""


class TooSlow(BaseException):
    """Not an Exception, so that no loader takes it for a broken file."""


class Canary:
    """Knows when a case has run code: the file that every payload would make, or what only a payload would do."""

    def __init__(self, path: Path):
        self.path, self.seen, self.watching = path, [], False
        sys.addaudithook(self._hear)

    def _hear(self, event, args):
        if self.watching and event in RUNS_CODE and not self._ours(event, args):
            self.seen.append(f"{event} {args!r:.200}")

    @staticmethod
    def _ours(event, args) -> bool:
        """Whether a reward starts its sandbox or verifier, which is no file's doing."""
        command = args[1] if event == "subprocess.Popen" else None
        return isinstance(command, list) and any(str(part).startswith(f"{ROOT}/rewards/") for part in command)

    def check(self) -> None:
        if self.path.exists():
            self.path.unlink()
            self.seen.append("the canary file was made")
        if self.seen:
            seen, self.seen = self.seen, []
            raise Violation(f"code was run: {seen}")


class Cases:
    """All cases by number; the same seed gives the same ones."""

    def __init__(self, folder: Path, seed: int, families: list[str] | None = None):
        from fuzz_loaders import make_families
        from fuzz_mutations import mutate

        self.folder, self.seed, self.mutate = folder, seed, mutate
        self.canary = Canary(folder / "canary")
        made = make_families(folder)
        self.families = {name: family for name, family in made.items() if not families or name in families}
        self.place = folder / "case"

    def family_of(self, number: int) -> str:
        return list(self.families)[number % len(self.families)]

    def write(self, number: int) -> None:
        """The files of a case into `self.place`."""
        rng = random.Random(f"{self.seed} {number}")
        files = dict(self.families[self.family_of(number)].seed(rng))
        for name in rng.sample(sorted(files), k=min(len(files), rng.choice((1, 1, 1, 2)))):
            files[name] = self.mutate(files[name], rng, name, str(self.canary.path))
        shutil.rmtree(self.place, ignore_errors=True)
        for name, content in files.items():
            path = self.place / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)

    def run(self, number: int) -> str:
        """`loaded` or `refused`; raises `Violation`."""
        from pipeline.errors import UserError
        from rewards import RewardError

        self.write(number)
        self.canary.watching = True
        signal.setitimer(signal.ITIMER_PROF, SECONDS)  # of the processor: the machine may be busy with other work
        signal.setitimer(signal.ITIMER_REAL, PATIENCE)
        faulthandler.dump_traceback_later(2 * PATIENCE, exit=True)  # for what does not come back to Python
        try:
            self.families[self.family_of(number)].load(self.place)
            outcome = "loaded"
        except (UserError, RewardError) as error:
            outcome = "refused"
            if not str(error).strip() or len(str(error)) > LONGEST:
                raise Violation(f"a refusal of {len(str(error))} characters: {str(error)[:300]!r}") from error
        except TooSlow:
            raise Violation(f"took more than {SECONDS} seconds") from None
        except BaseException as error:
            raise Violation(f"{type(error).__name__}: {str(error)[:300]}\n{traceback.format_exc()[-6000:]}") from error
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.setitimer(signal.ITIMER_REAL, 0)
            faulthandler.cancel_dump_traceback_later()
            self.canary.watching = False
        self.canary.check()
        return outcome


def make_cases(seed: int, families: list[str] | None = None) -> tuple[Cases, tempfile.TemporaryDirectory]:
    """The cases of this process, in a folder of their own, with limits on time and memory set."""

    def too_slow(*_):
        raise TooSlow

    temporary = tempfile.TemporaryDirectory(prefix="fuzz-")
    os.chdir(temporary.name)  # paths in broken files are looked for here
    cases = Cases(Path(temporary.name), seed, families)
    for number in (signal.SIGALRM, signal.SIGPROF):
        signal.signal(number, too_slow)
    return cases, temporary


def work(args: argparse.Namespace) -> None:
    """The worker: a line of JSON for each case."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a loader prints is not an answer
    cases, temporary = make_cases(args.seed, args.family)
    pages = int(Path("/proc/self/statm").read_text().split()[0]) if Path("/proc/self/statm").exists() else None
    if pages is not None:
        limit = pages * resource.getpagesize() + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    with temporary:
        for number in range(args.first, args.cases, args.step):
            row = {"case": number, "family": cases.family_of(number)}
            print(json.dumps(row | {"outcome": "begun"}), file=answers, flush=True)
            try:
                row["outcome"] = cases.run(number)
            except Violation as violation:
                row |= {"outcome": "violation", "what": str(violation)}
                kept = Path(args.out, f"case-{number}")
                shutil.rmtree(kept, ignore_errors=True)
                shutil.copytree(cases.place, kept)
            print(json.dumps(row), file=answers, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cases", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--family", action="append", help="only these loaders; may be given several times")
    parser.add_argument("--only", type=int, help="this one case")
    parser.add_argument("--keep-going", action="store_true", help="do not stop at the first violation")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "fuzz")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--first", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--step", type=int, default=1, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.only is not None:
        args.first, args.cases = args.only, args.only + 1
    args.out = args.out.absolute()
    if args.worker:
        work(args)
        return 0
    return supervise(args)


def supervise(args: argparse.Namespace) -> int:
    """Starts the worker, again after a case that killed it, and counts; the exit code."""
    args.out.mkdir(parents=True, exist_ok=True)
    counts: Counter[tuple[str, str]] = Counter()
    violations: list[dict] = []
    started, first = time.monotonic(), args.first
    while first < args.cases and (args.keep_going or not violations):
        command = [sys.executable, __file__, "--worker", f"--first={first}", f"--cases={args.cases}"]
        command += [f"--seed={args.seed}", f"--out={args.out}", *(f"--family={name}" for name in args.family or [])]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(PATHS), "HF_HUB_OFFLINE": "1"}
        environment |= {"OMP_NUM_THREADS": "1", "HF_DATASETS_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as worker:
            row = None
            for row in map(json.loads, worker.stdout):
                if row["outcome"] == "begun":
                    continue
                counts[row["family"], row["outcome"]] += 1
                if row["outcome"] == "violation":
                    violations.append(row)
                    print(f"case {row['case']} ({row['family']}): {row['what']}", file=sys.stderr)
                    if not args.keep_going:
                        worker.terminate()
                        break
                done = sum(counts.values())
                if done % 1000 == 0:
                    print(f"{done} cases, {time.monotonic() - started:.0f} s", flush=True)
        if row is None:
            print("error: the worker did not start; its reason stands above", file=sys.stderr)
            return 2
        if row["outcome"] == "begun":
            what = f"the process died with code {worker.returncode}"
            violations.append(row | {"outcome": "violation", "what": what})
            counts[row["family"], "violation"] += 1
            print(f"case {row['case']} ({row['family']}): {what}", file=sys.stderr)
        first = row["case"] + 1
    return tell(args, counts, violations, time.monotonic() - started)


def tell(args: argparse.Namespace, counts: Counter, violations: list[dict], seconds: float) -> int:
    families = sorted({family for family, _ in counts})
    outcomes = ("loaded", "refused", "violation")
    table = {family: {outcome: counts[family, outcome] for outcome in outcomes} for family in families}
    print(f"{'loader':<14}{'loaded':>9}{'refused':>9}{'violation':>11}")
    for family, row in table.items():
        print(f"{family:<14}{row['loaded']:>9}{row['refused']:>9}{row['violation']:>11}")
    total = sum(counts.values())
    print(f"{total} cases in {seconds:.0f} s, {len(violations)} violations (seed {args.seed})")
    summary = {"cases": total, "seed": args.seed, "seconds": round(seconds, 1), "loaders": table}
    text = json.dumps(summary | {"violations": violations}, indent=2) + "\n"
    (args.out / "summary.json").write_text(text, encoding="utf-8")
    for row in violations[:3]:
        number = row["case"]
        print(
            f"again: python tests/tools/fuzz.py --seed {args.seed} --only {number} (files: {args.out}/case-{number})"
        )
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main())
