"""What large data sets cost before training: time and memory of loading, checking, splitting and showing them.

    python tests/tools/large_data.py

Makes 160,000 preference pairs (dialogues, about 230 MB) and 500,000 prompts (about 100 MB) in a temporary folder and
takes each through what a stage does with them, in a process of its own.
"""

import argparse
import json
import multiprocessing
import random
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # as a script, and in the new processes
from pipeline.config import DataArguments
from pipeline.data.loading import load, show_examples
from tests.conftest import build_tokenizer

WORDS = "river lantern quiet seven garden below winter answer paper morning under bright stone carries letter".split()


class Cost(NamedTuple):
    """Bytes of the file, seconds of the processor, and GiB at the peak above what the imports take."""

    size: int
    loading: float
    showing: float
    memory: float


def pairs(count: int) -> Iterator[dict]:
    """Dialogues of four turns, as long as HH's; the two answers differ."""
    rng = random.Random(0)
    for i in range(count):
        turns = [" ".join(rng.choices(WORDS, k=rng.randint(5, 60))) for _ in range(5)]
        shared = f"\n\nHuman: ({i}) {turns[0]}?\n\nAssistant: {turns[1]}.\n\nHuman: {turns[2]}?\n\nAssistant:"
        yield {"chosen": f"{shared} {turns[3]}.", "rejected": f"{shared} {turns[4]}!"}


def prompts(count: int) -> Iterator[dict]:
    """Short prompts with two columns for rewards."""
    rng = random.Random(0)
    for i in range(count):
        said = rng.sample(WORDS, 9)
        yield {"prompt": f"{i}: {' '.join(said)} =>", "reference": f"{' '.join(said[:5])}.", "keywords": said[:2]}


KINDS = {"preference": pairs, "prompts": prompts}


def cost(kind: str, count: int, folder: str) -> Cost:
    """Of `count` rows of a kind; in a process that has done nothing else."""
    path = Path(folder, f"{kind}.jsonl")
    with path.open("w") as file:
        file.writelines(json.dumps(row) + "\n" for row in KINDS[kind](count))
    before, start = _peak(), time.process_time()
    train, heldout = load(DataArguments(dataset=str(path), eval_fraction=0.02), kind)
    loaded = time.process_time()
    show_examples(train, heldout, build_tokenizer(), kind, 4096, log=lambda line: None)
    shown = time.process_time()
    return Cost(path.stat().st_size, loaded - start, shown - loaded, (_peak() - before) / 2**20)


def apart(kind: str, count: int) -> Cost:
    """`cost` in a new process."""
    with tempfile.TemporaryDirectory() as folder, multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(cost, (kind, count, folder))


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB on Linux


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=160_000)
    parser.add_argument("--prompts", type=int, default=500_000)
    args = parser.parse_args()
    for kind, count in (("preference", args.pairs), ("prompts", args.prompts)):
        size, loading, showing, memory = apart(kind, count)
        print(
            f"{kind}: {count:,} rows, {size / 1e6:.0f} MB: loaded, checked and split in {loading:.0f} s, "
            f"shown in {showing:.0f} s, {memory:.2f} GiB more memory at the peak",
            flush=True,
        )
