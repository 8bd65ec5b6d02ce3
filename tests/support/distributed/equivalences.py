"""Run by test_equivalences.py on two processes, and on one by `accelerate launch`; each writes the adapters that it
ended with."""

import os
import sys
from pathlib import Path

import equal_runs as runs
import torch

folder, world = Path(sys.argv[1]), int(os.environ.get("WORLD_SIZE", "1"))
if world == 1:
    found = {"start and end": runs.seeded(folder)}
else:
    found = {
        f"{kind} {size} x {accumulation}": runs.train(folder, kind, **runs.cut(size, accumulation))
        for kind, size, accumulation in runs.TWICE
    }
torch.save(found, folder / f"rank{os.environ.get('RANK', '0')}of{world}.pt")
if world > 1:
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
