"""A frozen base shared out over processes: FSDP 2 (torch's `fully_shard`) for what does not learn, DDP for what does.

Each process keeps a part of every decoder layer, and the whole of a layer only while it runs. Adapters, heads, norms
and embeddings outside of the layers stay whole everywhere. So nothing has to be gathered to save, to resume, or to let
a reward model or a critic stand on the base, and a trainer sees plain data parallelism: Accelerate's own FSDP would
divide adapters and optimizer too, and its wrapper gathers only where the model's own forward pass begins.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from typing import NamedTuple

import torch
import torch.distributed as dist
from accelerate import Accelerator
from peft import PeftModel
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from transformers import PreTrainedConfig, PreTrainedModel

from pipeline.errors import UserError
from pipeline.models import structure
from pipeline.models.lockstep import Lockstep, in_lockstep, lockstep_of
from pipeline.models.sharding import launcher_of
from pipeline.safety.console import say

# id of a tensor -> it and what it has become, for those that stand in several places
Spread = dict[int, tuple[torch.Tensor, torch.Tensor]]


def load_shared(read: Callable[[], PreTrainedModel], config) -> PreTrainedModel:
    """The base as `read` reads it, shared out where the run is under FSDP: then only the first process of a machine
    reads it into its host's memory, and hands each layer on."""
    if not _shares(config):
        return read()
    model = read() if config.local_process_index == 0 else None
    plan = [_Plan.of(model) if config.process_index == 0 else None]
    dist.broadcast_object_list(plan, src=0)
    if model is None and (model := plan[0].build()) is None:
        model = read()
    share_out(model, config)
    return model


class _Plan(NamedTuple):
    """A base without its weights."""

    kind: type[PreTrainedModel] | None  # None: it cannot be made without them
    config: PreTrainedConfig
    dtypes: dict[str, torch.dtype]

    @classmethod
    def of(cls, model: PreTrainedModel) -> "_Plan":
        ours = type(model).__module__.startswith("transformers.models.")
        plain = ours and getattr(model, "quantization_method", None) is None
        return cls(type(model) if plain else None, model.config, {name: x.dtype for name, x in _tensors(model)})

    def build(self) -> PreTrainedModel | None:
        """It on the meta device."""
        if self.kind is None:
            return None
        with torch.device("meta"):
            model = self.kind(self.config)
        for name, x in _tensors(model):
            x.data = x.data.to(self.dtypes[name])
        return model.eval()


def _tensors(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    return chain(model.named_parameters(), model.named_buffers())


def _shares(config) -> bool:
    return launcher_of(config) == "FSDP" and config.world_size > 1


def share_out(model: PreTrainedModel | PeftModel, config) -> None:
    """Shares the layers of the base out, if the run is under FSDP; a base that is shared already stays as it is.

    Call it on every process, with the base as it was read: one on the meta device gets its weights from the first
    process. Afterwards the model is on the run's device.

    Raises:
        UserError: a model without a list of layers.
    """
    if not _shares(config) or lockstep_of(model) is not None:
        return
    base, trunk = structure.base_of(model), structure.trunk_of(model)
    if getattr(base, "quantization_method", None) is not None:
        say("note: a quantised base stays whole on each process, under FSDP as under DDP")
        return
    mesh = init_device_mesh(config.device.type, (config.world_size,), mesh_dim_names=("fsdp",))
    spread: Spread = {}
    for layer in _layers(model):
        _spread(layer, config.device, spread)
        own = {p for name, p in layer.named_parameters() if "lora_" in name}
        for parameter in set(layer.parameters()) - own:
            parameter.requires_grad_(False)
        fully_shard(layer, mesh=mesh, reshard_after_forward=True, ignored_params=own)
        spread.clear()
    _spread(model, config.device, spread)
    # the root: it lets the layers be gathered ahead, in every pass that goes through the decoder
    fully_shard(trunk, mesh=mesh, ignored_params={p for p in trunk.parameters() if not isinstance(p, DTensor)})
    trunk.lockstep = Lockstep(trunk, config.ddp_timeout)
    say(f"The base is shared out over {config.world_size} processes.")


def _layers(model: PreTrainedModel | PeftModel) -> nn.ModuleList:
    """The list of modules with most weights. Found without a pass: not every process has read the weights."""
    lists = [module for module in structure.trunk_of(model).modules() if isinstance(module, nn.ModuleList)]
    if not lists:
        raise UserError(f"{structure.kind_of(model)} has no list of layers to share out: use DDP (gpus.yaml)")
    return max(lists, key=lambda layers: sum(p.numel() for p in layers.parameters()))


@torch.no_grad()
def _spread(module: nn.Module, device: torch.device, done: Spread) -> None:
    """Puts everything in `module` that is whole on `device`, as the first process has it."""
    for owner in module.modules():
        for tensors in (owner._parameters, owner._buffers):
            for name, x in tensors.items():
                if x is None or isinstance(x, DTensor):
                    continue
                if id(x) not in done:
                    value = torch.empty_like(x, device=device) if x.is_meta else x.data.to(device)
                    dist.broadcast(value, src=0)
                    if isinstance(x, nn.Parameter) and not x.is_meta:
                        x.data = value
                        value = x
                    elif isinstance(x, nn.Parameter):
                        value = nn.Parameter(value, requires_grad=x.requires_grad)
                    done[id(x)] = done[id(value)] = (x, value)
                tensors[name] = done[id(x)][1]


class SharesBase:
    """Mixed into a Trainer, before its class: under FSDP it trains adapters on a base that `share_out` has shared out.

    The trainer itself sees plain processes, whose gradients DDP averages.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        if (sample := getattr(self, "rollout_func", None)) is not None and lockstep_of(self.model) is not None:
            self.rollout_func = lambda prompts, trainer: self._in_lockstep(sample, prompts, trainer)

    def _generate_single_turn(self, *args, **kwargs):
        if self.use_vllm:  # no passes here; and the processes speak with each other
            return super()._generate_single_turn(*args, **kwargs)
        return self._in_lockstep(super()._generate_single_turn, *args, **kwargs)

    def _tool_call_loop(self, *args, **kwargs):
        return self._in_lockstep(super()._tool_call_loop, *args, **kwargs)

    def _in_lockstep(self, sample: Callable, *args, **kwargs):
        """Samples end at other tokens on each process."""
        with in_lockstep(self.model):
            return sample(*args, **kwargs)

    def create_accelerator_and_postprocess(self) -> None:
        with _without_plugin(self.args):
            super().create_accelerator_and_postprocess()

    def _move_model_to_device(self, model: nn.Module, device: torch.device) -> None:
        if lockstep_of(_language_model(model)) is None:  # else it is there already
            super()._move_model_to_device(model, device)

    def _wrap_model(self, model: nn.Module, training: bool = True, dataloader=None) -> nn.Module:
        wrapped = super()._wrap_model(model, training, dataloader)
        if not training or wrapped is not self.model or lockstep_of(_language_model(model)) is None:
            return wrapped
        return _data_parallel(self.accelerator, model)


def _language_model(model: nn.Module) -> nn.Module:
    return getattr(model, "lm", model)  # of ILQL's network


def _data_parallel(accelerator: Accelerator, model: nn.Module) -> DistributedDataParallel:
    """What Accelerate makes of a model under DDP; it refuses one with shared parameters, which DDP can pass over."""
    accelerator.prepare_model(model, evaluation_mode=True)  # autocast
    shared = [name for name, parameter in model.named_parameters() if isinstance(parameter, DTensor)]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, shared)
    device = None if accelerator.device.type == "cpu" else [accelerator.device.index]
    settings = accelerator.ddp_handler.to_kwargs() if accelerator.ddp_handler else {}
    return DistributedDataParallel(model, device_ids=device, **settings)


@contextmanager
def _without_plugin(args) -> Iterator[None]:
    """Inside, Accelerate finds no FSDP to take over with."""
    asked, plugin = os.environ.pop("ACCELERATE_USE_FSDP", None), args.fsdp_plugin_args
    args.fsdp_plugin_args = None
    try:
        yield
    finally:
        args.fsdp_plugin_args = plugin
        if asked is not None:
            os.environ["ACCELERATE_USE_FSDP"] = asked
