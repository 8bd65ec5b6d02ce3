"""What PPO does to the model, and asks of model and data, before it trains."""

import copy
import importlib
import os
import sys
from pathlib import Path
from typing import Any, TypeVar

import torch
from datasets import Dataset, IterableDataset
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from torch import nn
from torch.optim import Optimizer
from transformers import AutoModelForCausalLM, PreTrainedModel, TrainingArguments
from trl import GRPOConfig

from pipeline.config import on_gpu
from pipeline.errors import UserError
from pipeline.models.adapter_files import check_settings
from pipeline.models.adapters import CRITIC, POLICY, base_of, checkpoint_contexts
from pipeline.models.quantized import never_repack
from pipeline.models.structure import name_trunk
from pipeline.ppo import math
from pipeline.safety.weights import ADAPTER_CONFIG
from rewards.processor import suited

Settings = TypeVar("Settings", bound=TrainingArguments)


def with_policy_adapter(
    model: str | PreTrainedModel | PeftModel, peft_config: PeftConfig | None, args: GRPOConfig
) -> PeftModel:
    """The model with the adapter that PPO trains: its own one, or a new one of `peft_config`."""
    if isinstance(model, str):
        if (Path(model) / ADAPTER_CONFIG).exists():
            raise UserError(
                f"model is {model}, a LoRA adapter; load it first: "
                f"AutoPeftModelForCausalLM.from_pretrained({model!r}, is_trainable=True)."
            )
        options = {"dtype": "auto", **_mapping(args.model_init_kwargs)}
        model = AutoModelForCausalLM.from_pretrained(model, **options)
        if options["dtype"] == "auto" and not on_gpu(args):
            suited(model)
        args.model_init_kwargs = None
    never_repack(model)
    name_trunk(base_of(model))
    if isinstance(model, PeftModel):
        if peft_config is not None:
            raise UserError("model has a LoRA adapter already, and peft_config would be a second: give one of them.")
        if list(model.peft_config) != [POLICY]:
            raise UserError(
                f"model has the adapters {', '.join(model.peft_config)}; PPO starts from a model with one, "
                f"called {POLICY!r}."
            )
        check_settings(model.peft_config[POLICY].to_dict())
        return model
    peft_config = peft_config or LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    check_settings(peft_config.to_dict())
    return get_peft_model(model, peft_config)


def advantage_estimator(name: str) -> math.AdvantageEstimator:
    """The function that the setting `advantage` names: `gae`, or the user's own `module:function` (contract: math.py).

    Raises:
        UserError: there is no such function, or what it returns of a small batch is not two tensors of its shape.
    """
    if name == "gae":
        return math.gae
    module, _, attribute = name.partition(":")
    if not (module and attribute.isidentifier()):
        raise UserError(f"advantage is {name!r}; give gae, or a function of your own as module:function")
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.append(os.getcwd())  # a launched script has its own folder on the path, not the current one
    try:
        function: math.AdvantageEstimator = getattr(importlib.import_module(module), attribute)
        zeros = torch.zeros(2, 3)
        found = function(zeros, zeros, torch.ones(2, 3), 1.0, 0.95)
    except Exception as error:
        raise UserError(f"advantage is {name!r}, which fails: {type(error).__name__}: {error}") from error
    if not (isinstance(found, tuple) and [getattr(x, "shape", None) for x in found] == [zeros.shape] * 2):
        raise UserError(
            f"advantage is {name!r}, which must return two tensors of the shape (B, T) of the rewards: advantages and "
            "returns (pipeline/ppo/math.py has the contract)"
        )
    return function


def _mapping(settings: dict[str, Any] | str | None) -> dict[str, Any]:
    """A setting that holds settings; a text was read as one when the config was made."""
    return settings if isinstance(settings, dict) else {}


def check_prompts(dataset: Dataset | IterableDataset, prompts: int) -> None:
    """Refuses a data set with fewer than the `prompts` that one rollout takes."""
    if hasattr(dataset, "__len__") and len(dataset) < prompts:
        raise UserError(
            f"train_dataset has {len(dataset)} prompts, but one rollout takes {prompts}. Give more prompts, or lower "
            "per_device_train_batch_size, gradient_accumulation_steps or num_mini_batches."
        )


def checkpoint_through_adapters(args: Settings, model: PeftModel) -> Settings:
    """A copy of the settings (the caller's stay plain values) in which recomputation sees the right adapter."""
    args = copy.copy(args)
    args.gradient_checkpointing_kwargs = args.activation_checkpointing_kwargs = {
        **_mapping(args.gradient_checkpointing_kwargs),
        "use_reentrant": False,
        "context_fn": checkpoint_contexts(model),
    }
    return args


def switch_dropout_off(model: nn.Module) -> None:
    """Also where a module keeps it as a number (OPT's dropout, Llama's attention_dropout), which TRL passes over; and
    the noise of routers (Mixtral's jitter). PhiMoE's router_jitter_noise is none: it weighs experts by it at any time.
    """
    for module in model.modules():
        for name, value in list(vars(module).items()):
            noise = "drop" in name or ("jitter" in name and name != "router_jitter_noise")
            if noise and isinstance(value, float):
                setattr(module, name, 0.0)


def with_critic_rate(optimizer: Optimizer, model: nn.Module, rate: float | None) -> Optimizer:
    """The optimizer with the critic (adapter and value head) in groups of its own, at the learning rate `rate`."""
    if rate is not None and len(optimizer.param_groups) <= 2:
        names = {CRITIC, "value_head"}
        critic = {id(p) for n, p in model.named_parameters() if names & set(n.split("."))}
        for group in list(optimizer.param_groups):
            theirs = [p for p in group["params"] if id(p) in critic]
            group["params"] = [p for p in group["params"] if id(p) not in critic]
            optimizer.param_groups.append({**group, "params": theirs, "lr": rate})
    return optimizer
