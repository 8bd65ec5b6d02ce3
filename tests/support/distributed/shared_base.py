"""Run by test_shared_base.py on several processes under FSDP: each kind of run, and what the base takes meanwhile."""

import os
import sys
from pathlib import Path

import shared_runs
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch.distributed.tensor import DTensor

from pipeline.models.adapters import POLICY
from pipeline.models.structure import trunk_of

folder, kinds = Path(sys.argv[1]), sys.argv[2].split(",")
world, rank = int(os.environ["WORLD_SIZE"]), int(os.environ["RANK"])


def base_bytes(model) -> int:
    """Of every storage that holds weights of the base on this process at this moment: what is whole, this process's
    part of each layer, and what has been gathered ahead."""
    held = [p for n, p in model.named_parameters() if "lora_" not in n and "value_head" not in n]
    held = [p for p in held if not isinstance(p, DTensor)]
    for layer in trunk_of(model).layers:
        for group in layer._get_fsdp_state()._fsdp_param_groups:
            held += [part._sharded_param_data for part in group.fsdp_params]
            held += [] if group._all_gather_result is None else [group._all_gather_result.all_gather_output]
    storages = [x.untyped_storage() for x in held]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def watch(trainer) -> dict:
    """What is held between passes, and the most that is while a layer runs, forward or backward."""
    model = trainer.model
    seen = {"at rest": base_bytes(model), "most": 0}

    def look(*call):
        seen["most"] = max(seen["most"], base_bytes(model))

    for layer in trunk_of(model).layers:
        layer.mlp.register_forward_hook(look)
        layer.mlp.register_full_backward_hook(look)
    return seen


gathered = [0]
plain = dist.all_gather_single


def counted(output, *args, **kwargs):
    gathered[0] += output.nbytes
    return plain(output, *args, **kwargs)


dist.all_gather_single = counted
found = {}
for kind in kinds:
    trainer = shared_runs.trainer_of(folder, kind, world)
    start, seen = shared_runs.toy.learned(trainer), watch(trainer) if kind == "ppo" else {}
    gathered[0] = 0
    trainer.train()
    whole = {n: p for n, p in trainer.model.named_parameters() if not isinstance(p, DTensor)}
    found[kind] = {"start": start, "end": shared_runs.toy.learned(trainer), "seen": seen, "gathered": gathered[0]}
    found[kind]["adapters whole"] = all(n in whole for n, _ in trainer.model.named_parameters() if "lora_" in n)
    found[kind]["log"] = {k: v for k, v in trainer.state.log_history[-2].items() if isinstance(v, float)}
trainer.model.save_pretrained(folder / f"sent{rank}", selected_adapters=[POLICY])
found["sent"] = load_file(folder / f"sent{rank}" / "adapter_model.safetensors")
torch.save(found, folder / f"rank{rank}of{world}.pt")
trainer.accelerator.wait_for_everyone()
dist.destroy_process_group()
