"""One stage as its recipe runs it, under any launcher on the CPU; each process writes what was sharded and sent.

Accelerate 1.15 leaves FSDP and DeepSpeed out on a CPU and runs DDP in their place, whatever the file says. torch's own
FSDP 2 and DeepSpeed do run there (gloo), so what Accelerate does on a GPU is put in place here.

`ACCELERATE_USE_CPU=true accelerate launch --config_file recipes/accelerate/fsdp.yaml --mixed_precision no
tests/support/distributed/on_cpu.py sft --config some.yaml`
"""

import json
import os
import runpy
import sys
from collections import Counter
from pathlib import Path

import torch.distributed as dist
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel
from transformers import TrainerCallback
from transformers.trainer import DEFAULT_CALLBACKS

from pipeline.models import sharding

_init = AcceleratorState.__init__


def _with_plugins(self, *args, fsdp_plugin=None, deepspeed_plugin=None, **kwargs):
    _init(self, *args, fsdp_plugin=fsdp_plugin, deepspeed_plugin=deepspeed_plugin, **kwargs)
    if self.distributed_type != DistributedType.MULTI_CPU:
        return
    if deepspeed_plugin is not None:
        plugins = list(deepspeed_plugin.values()) if isinstance(deepspeed_plugin, dict) else [deepspeed_plugin]
        for plugin in plugins:
            plugin.set_mixed_precision("no")
        plugins[0].select(_from_accelerator_state=True)
        self.deepspeed_plugins, self.distributed_type = deepspeed_plugin, DistributedType.DEEPSPEED
    elif fsdp_plugin is not None:
        self.fsdp_plugin, self.distributed_type = fsdp_plugin, DistributedType.FSDP
    PartialState._shared_state["distributed_type"] = self.distributed_type


# ---------------------------------------------------------------- bytes that are exchanged
sent: Counter = Counter()  # whole sizes of what is reduced, gathered and scattered


def _counted(name: str, whole: int):
    """`torch.distributed`'s function of that name, counted; `whole`: which argument has the whole size."""
    plain, key = getattr(dist, name), ("output_tensor", "input")[whole]

    def count(*args, **kwargs):
        sent[name] += (args[whole] if len(args) > whole else kwargs[key]).nbytes
        return plain(*args, **kwargs)

    setattr(dist, name, count)


def _count_buckets(self, *args, **kwargs):
    def hook(group, bucket):
        sent["all_reduce"] += bucket.buffer().nbytes
        return allreduce_hook(group, bucket)

    _ddp_init(self, *args, **kwargs)
    self.register_comm_hook(None, hook)


class Tell(TrainerCallback):
    """Between the first step and the last one; evaluations before and after are not training."""

    before = None

    def on_step_begin(self, args, state, control, **kwargs):
        if self.before is None:
            self.before = Counter(sent)

    def on_train_end(self, args, state, control, model=None, **kwargs):
        told = {
            "sharded": sum(hasattr(p, "to_local") or hasattr(p, "ds_id") for p in model.parameters()),
            "kind": PartialState().distributed_type.value,
            "steps": state.global_step,
            **{name: sent[name] - self.before[name] for name in sent},
        }
        name = f"{Path(args.output_dir).name}.rank{args.process_index}.json"
        Path(args.output_dir).parent.joinpath(name).write_text(json.dumps(told), encoding="utf-8")


_ddp_init, DistributedDataParallel.__init__ = DistributedDataParallel.__init__, _count_buckets
_counted("all_gather_single", 0)
_counted("reduce_scatter_single", 1)
AcceleratorState.__init__ = _with_plugins
DEFAULT_CALLBACKS.append(Tell)
sharding.shards_on_a_cpu = lambda: True
os.environ.setdefault("DS_ACCELERATOR", "cpu")
stage = sys.argv.pop(1)
runpy.run_path(str(Path(__file__).resolve().parents[3] / "recipes" / f"{stage}.py"), run_name="__main__")
