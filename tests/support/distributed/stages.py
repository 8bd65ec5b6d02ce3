"""One stage as its recipe runs it; each process writes a digest of the weights that it has trained. With KILL_AFTER
each is killed at the end of that optimizer step, before its checkpoint.

`accelerate launch --config_file recipes/accelerate/cpu2.yaml stages.py ppo --config some.yaml`
"""

import hashlib
import os
import runpy
import signal
import sys
from pathlib import Path

from transformers import TrainerCallback
from transformers.trainer import DEFAULT_CALLBACKS


class Digest(TrainerCallback):
    def on_train_end(self, args, state, control, model=None, **kwargs):
        digest = hashlib.sha256()
        for _, weight in sorted(
            (n.removeprefix("module."), p) for n, p in model.named_parameters() if p.requires_grad
        ):
            digest.update(weight.detach().cpu().float().numpy().tobytes())
        # a file each: what two processes print into one pipe may stand in the middle of each other's lines
        file = f"{Path(args.output_dir).name}.rank{os.environ['RANK']}of{args.world_size}"
        Path(file).write_text(digest.hexdigest(), encoding="utf-8")


class Kill(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == int(os.environ.get("KILL_AFTER", "0")):
            os.kill(os.getpid(), signal.SIGKILL)


DEFAULT_CALLBACKS.extend([Digest, Kill])
stage = sys.argv.pop(1)
runpy.run_path(str(Path(__file__).resolve().parents[3] / "recipes" / f"{stage}.py"), run_name="__main__")
