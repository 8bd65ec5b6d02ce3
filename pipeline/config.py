"""The settings of each stage: one dataclass for the model, one for the data, and TRL's own config with our defaults.

Every check names the setting that is wrong. YAML values bypass argparse's `choices`, so the checks live here.
"""

import importlib.util
import json
import os
from dataclasses import dataclass, field, fields
from math import ceil
from typing import Any
from urllib.parse import urlsplit

import torch
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK
from trl import GRPOConfig, RewardConfig, RLOOConfig, SFTConfig

from pipeline.errors import UserError, shortened

DTYPES = ("auto", "float32", "bfloat16", "float16")
WATCH = ("warn", "stop", "off")
TRACKERS = {"tensorboard": ("tensorboard", "tensorboardX"), "trackio": ("trackio",), "wandb": ("wandb",)}  # packages
ATTENTION = ("eager", "sdpa", "flash_attention_2", "flash_attention_3")
CHAT_TEMPLATE = (
    "Chat template in place of the tokenizer's own: a .jinja file, or a folder or Hub name whose tokenizer has it. "
    "Later stages find it beside the adapter."
)
CHAT_TEMPLATE_KWARGS = (
    "What the chat template is given besides, e.g. '{\"enable_thinking\": false}'; a row's column of that name goes "
    "before it."
)


def setting(default: Any, text: str) -> Any:
    """A dataclass field with a help text."""
    if isinstance(default, list | dict):
        return field(default_factory=lambda: type(default)(default), metadata={"help": text})
    return field(default=default, metadata={"help": text})


def steps_for(total_episodes: int, per_update: int, steps_per_update: int, max_steps: int) -> int:
    """Optimizer steps of `total_episodes` completions in whole updates; `max_steps`, unless -1, must agree."""
    steps = ceil(total_episodes / per_update) * steps_per_update
    if max_steps not in (-1, steps):
        raise UserError(
            f"max_steps is {max_steps}, but total_episodes {total_episodes} makes it {steps}: give one of them."
        )
    return steps


def check(good: bool, key: str, value: Any, wants: str) -> None:
    """Raises `UserError` naming the setting unless `good`."""
    if not good:
        raise UserError(f"{key}: {shortened(repr(value))} will not do: {wants}")


def say_once(ours: Any, theirs: Any, key: str) -> None:
    """One word for a setting that stands in TRL's config too: a flag or YAML key sets both, but in Python it may be
    given to either."""
    setattr(ours, key, getattr(ours, key) or getattr(theirs, key, None))


def mapping(value: dict[str, Any] | str | None, key: str) -> dict[str, Any] | None:
    """The setting `key` as a mapping; the command line gives it as JSON text."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            pass
    check(isinstance(value, dict | None), key, value, "a mapping; on the command line JSON, such as '{\"a\": false}'")
    return value


@dataclass
class ModelArguments:
    """Which base model, in which precision, and which LoRA adapter goes on it."""

    model_name_or_path: str | None = setting(
        None, "Base model: a folder, a Hub name, or the folder of an earlier stage (then its base and its adapter)."
    )
    adapter_path: str | None = setting(None, "LoRA adapter to start from, e.g. the folder of the SFT stage.")
    model_revision: str | None = setting(None, "Branch, tag or commit when the base comes from the Hub.")
    dtype: str = setting(
        "auto",
        "Precision of the base weights: float32, bfloat16, float16, or auto: bfloat16 under LoRA on a GPU "
        "that has it, otherwise float32.",
    )
    attn_implementation: str | None = setting(None, "eager, sdpa, flash_attention_2 or flash_attention_3.")
    use_peft: bool = setting(True, "Train a LoRA adapter; false trains all weights.")
    lora_r: int = setting(16, "Rank of the LoRA matrices.")
    lora_alpha: int = setting(32, "LoRA scale: the update is multiplied by lora_alpha / lora_r.")
    lora_dropout: float = setting(0.0, "Dropout on the LoRA input.")
    lora_target_modules: list[str] = setting(
        ["all-linear"], "Modules that get LoRA matrices: all-linear, or names such as q_proj v_proj."
    )
    load_in_4bit: bool = setting(False, "Load the base in 4 bits (needs bitsandbytes, and use_peft).")
    load_in_8bit: bool = setting(False, "Load the base in 8 bits (needs bitsandbytes, and use_peft).")
    bnb_4bit_quant_type: str = setting("nf4", "4-bit number format: nf4 or fp4.")
    use_bnb_nested_quant: bool = setting(
        True, "Quantise the 4-bit scales as well, as QLoRA does (saves 0.37 bit a weight)."
    )
    trust_remote_code: bool = setting(False, "Run Python code that comes with the model. Leave it off.")
    chat_template_path: str | None = setting(None, CHAT_TEMPLATE)

    def __post_init__(self):
        if isinstance(self.lora_target_modules, str):
            self.lora_target_modules = [self.lora_target_modules]
        check(self.dtype in DTYPES, "dtype", self.dtype, f"one of {', '.join(DTYPES)}")
        check(
            self.attn_implementation in (None, *ATTENTION),
            "attn_implementation",
            self.attn_implementation,
            f"one of {', '.join(ATTENTION)}",
        )
        check(self.lora_r >= 1, "lora_r", self.lora_r, "a whole number from 1 up")
        check(self.lora_alpha > 0, "lora_alpha", self.lora_alpha, "a number above 0")
        check(0 <= self.lora_dropout < 1, "lora_dropout", self.lora_dropout, "a number from 0 up to, not including, 1")
        check(bool(self.lora_target_modules), "lora_target_modules", self.lora_target_modules, "at least one name")
        check(
            self.bnb_4bit_quant_type in ("nf4", "fp4"), "bnb_4bit_quant_type", self.bnb_4bit_quant_type, "nf4 or fp4"
        )
        check(
            not (self.load_in_4bit and self.load_in_8bit), "load_in_8bit", True, "load_in_4bit is on, only one can be"
        )
        if self.load_in_4bit or self.load_in_8bit:
            key = "load_in_4bit" if self.load_in_4bit else "load_in_8bit"
            check(self.use_peft, "use_peft", False, f"{key} is on, and quantised weights cannot be trained themselves")


@dataclass
class DataArguments:
    """Where the rows come from and which are held out."""

    dataset: str | None = setting(
        None,
        "Training data: a file (.jsonl .json .csv .tsv .parquet, also .gz), a local folder, or a Hub name; or two "
        "files of parallel text, such as train.{en,fi}.",
    )
    dataset_config: str | None = setting(None, "Configuration of a Hub data set.")
    dataset_split: str = setting("train", "Split of a Hub data set or folder to train on.")
    eval_dataset: str | None = setting(None, "Held-out data, in the same forms; without it see eval_fraction.")
    eval_split: str | None = setting(None, "Split of the data set to hold out, e.g. test.")
    eval_fraction: float = setting(0.0, "Part of the training prompts to hold out when no held-out data is named.")
    max_rows: int | None = setting(None, "Use only the first rows of each data set, for a quick look.")
    prompt_template: str | None = setting(None, 'Makes the prompt of other columns, such as "Translate: {source}".')
    completion_template: str | None = setting(None, 'Makes the completion of other columns, such as "{target}".')
    as_messages: bool = setting(
        False,
        "Text becomes messages of user and assistant (HH: turn by turn), for the model's chat template.",
    )
    chat_template_kwargs: dict | str | None = setting(None, CHAT_TEMPLATE_KWARGS)

    def __post_init__(self):
        self.chat_template_kwargs = mapping(self.chat_template_kwargs, "chat_template_kwargs")
        check(
            0 <= self.eval_fraction < 1, "eval_fraction", self.eval_fraction, "a number from 0 up to, not including, 1"
        )
        for key in ("prompt_template", "completion_template"):
            check(isinstance(getattr(self, key), str | None), key, getattr(self, key), "a text in quotes")
        check(self.max_rows is None or self.max_rows >= 1, "max_rows", self.max_rows, "a whole number from 1 up")
        named = self.eval_dataset or self.eval_split
        check(
            not (named and self.eval_fraction),
            "eval_fraction",
            self.eval_fraction,
            f"held-out data is already named ({named}); leave one of the two out",
        )


def _gpu_asked_for() -> str | None:
    """By what the environment asks for a GPU; an accelerate file such as gpu.yaml or gpus.yaml comes as that."""
    devices = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    if devices not in ("", "-1"):
        return f"CUDA_VISIBLE_DEVICES is {devices}"
    precision = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    on_cpu = os.environ.get("ACCELERATE_USE_CPU", "false").lower() in ("true", "1", "yes")
    return f"mixed_precision is {precision} in the accelerate file" if precision != "no" and not on_cpu else None


def trackers_of(report_to: None | str | list[str]) -> list[str]:
    """The trackers that a value of `report_to` names; none for None, "none" and an empty list.

    Raises:
        UserError: there is no such tracker, or its package is not installed.
    """
    names = [report_to] if isinstance(report_to, str) else list(report_to or [])
    names = [name for name in names if name != "none"]
    for name in names:
        if name not in (*INTEGRATION_TO_CALLBACK, "all"):
            known = ", ".join(["none", *TRACKERS, *(k for k in INTEGRATION_TO_CALLBACK if k not in TRACKERS)])
            raise UserError(f"report_to: there is no tracker {name!r}; take one of {known}")
        packages = TRACKERS.get(name, ())
        if packages and not any(importlib.util.find_spec(package) for package in packages):
            raise UserError(f"report_to: {name} needs a package that is not installed: pip install {packages[0]}")
    return names


def use_vllm_server(config) -> None:
    """Sets what TRL calls it: use_vllm, vllm_mode, vllm_server_base_url.

    Raises:
        UserError: what was given is no address, or contradicts other settings of vLLM.
    """
    address = config.vllm_server
    if address is None:
        return
    try:
        parts = urlsplit(address)
        good = parts.scheme in ("http", "https") and parts.hostname and (parts.port is None or parts.port > 0)
        good = good and not (parts.query or parts.fragment or parts.username)
    except ValueError:  # a port that is none
        good = False
    if not good:
        raise UserError(f"vllm_server is {address!r}; give an address such as http://10.0.0.2:8000")
    url = address.rstrip("/")
    if config.vllm_server_base_url not in (None, url):
        raise UserError(
            f"vllm_server is {address}, but vllm_server_base_url is {config.vllm_server_base_url}: give one of them"
        )
    if config.use_transformers_continuous_batching:
        raise UserError(
            "vllm_server and use_transformers_continuous_batching are two ways to sample: give one of them"
        )
    # "colocate" is TRL's default: only together with use_vllm does it say what somebody wanted
    if config.use_vllm and config.vllm_mode != "server":
        raise UserError(
            f"vllm_server is {address}, but vllm_mode is {config.vllm_mode}: set it to server, or leave it out"
        )
    config.use_vllm, config.vllm_mode, config.vllm_server_base_url = True, "server", url


@dataclass
class StageDefaults:
    """Our defaults for what every TRL config has. Put it before TRL's class: `class C(StageDefaults, SFTConfig)`."""

    output_dir: str | None = setting(None, "Folder for the result. It must not hold anything yet.")
    resume: bool = setting(False, "Go on with the run in output_dir where it was stopped; a new one starts.")
    gradient_checkpointing: bool | None = setting(
        None, "Recompute activations in the backward pass: less memory, about 20%% slower."
    )
    report_to: None | str | list[str] = setting("none", "Trackers: none, tensorboard, trackio, wandb; or several.")
    logging_steps: float = setting(10, "Log every so many steps.")
    save_strategy: str = setting(
        "steps", "When to write checkpoints: steps (with save_minutes), epoch, best or no (only when it is stopped)."
    )
    save_minutes: float = setting(
        10,
        "Minutes between two checkpoints, besides those of save_steps; more, where writing one takes long; 0: none.",
    )
    save_total_limit: int | None = setting(2, "Keep the newest checkpoints only.")
    dataloader_pin_memory: bool = setting(True, "Pin host memory (on a GPU; resolved to false on a CPU).")
    log_level: str = setting("warning", "Log level of the trainer.")
    hub_private_repo: bool | None = setting(True, "With push_to_hub: a new repository is private.")

    def __post_init__(self):
        check(self.learning_rate >= 0, "learning_rate", self.learning_rate, "a number from 0 up")
        check(self.weight_decay >= 0, "weight_decay", self.weight_decay, "a number from 0 up")
        check(self.max_grad_norm >= 0, "max_grad_norm", self.max_grad_norm, "a number from 0 up")
        check(self.save_minutes >= 0, "save_minutes", self.save_minutes, "a number from 0 up")
        check(self.num_train_epochs > 0, "num_train_epochs", self.num_train_epochs, "a number above 0")
        for key in ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"):
            check(getattr(self, key) >= 1, key, getattr(self, key), "a whole number from 1 up")
        check(self.dataloader_num_workers >= 0, "dataloader_num_workers", self.dataloader_num_workers, "0 or more")
        check(0 <= self.seed < 2**32, "seed", self.seed, "a whole number from 0 to 4294967295")
        self.report_to = trackers_of(self.report_to)
        self.output_dir = self.output_dir or ""  # of None transformers makes a folder `trainer_output`
        if self.trackio_static_space_id is None:
            self.trackio_static_space_id = False  # else a push of the model would publish trackio's log as well
        gpu = torch.cuda.is_available() and not self.use_cpu
        check(gpu or not self.fp16, "fp16", True, "it needs a GPU, which this run has not; leave it out")
        if not self.use_cpu and (asked := _gpu_asked_for()) and not torch.accelerator.is_available():
            raise UserError(
                f"a GPU was asked for ({asked}), but torch finds none on this machine: see nvidia-smi, or give "
                "--use_cpu"
            )
        if self.bf16 is None:
            # TRL takes bf16 whenever fp16 is off, also on a CPU, where it is slow and less exact.
            self.bf16 = gpu and torch.cuda.is_bf16_supported() and not self.fp16
        self.dataloader_pin_memory = self.dataloader_pin_memory and gpu
        # transformers renamed the setting and warns about the old name, which TRL still has.
        if self.gradient_checkpointing is not None and self.activation_checkpointing is None:
            self.activation_checkpointing, self.gradient_checkpointing = self.gradient_checkpointing, None
        super().__post_init__()
        for each in fields(self):  # a library looks at some of them when the model is there, or in the first step
            value, choices = getattr(self, each.name), each.metadata.get("choices") or ()
            good = not choices or getattr(value, "value", value) in (each.default, *choices)
            check(good, each.name, value, f"one of {', '.join(map(str, choices))}")
        loads = "the model is loaded by settings of its own: dtype, attn_implementation, model_revision, load_in_4bit"
        given = getattr(self, "model_init_kwargs", None)
        check(not given, "model_init_kwargs", given, loads)


@dataclass
class RolloutDefaults(StageDefaults):
    """Our defaults for the stages that sample completions, over those of every stage."""

    logging_steps: float = setting(0, "Optimizer steps between two logs; 0 means once an update (rollout).")
    watch: str = setting(
        "warn", "Watchers of what usually goes wrong: warn, stop (save and end the run at the first warning), 'off'."
    )
    sample_every: int = setting(10, "Updates (rollouts) between two samples in the terminal; 0: none.")
    vllm_server: str | None = setting(
        None, "Address of a vLLM server that samples the rollouts, such as http://10.0.0.2:8000 (docs/scale.md)."
    )
    log_completions: bool | None = setting(
        None, "Keep every completion in the run folder and send a table to the trackers; none: if there is a tracker."
    )
    num_completions_to_print: int | None = setting(
        0, "Completions in TRL's own table in the terminal, with log_completions only; none: all."
    )

    def __post_init__(self):
        check(self.sample_every >= 0, "sample_every", self.sample_every, "a whole number from 0 up")
        check(self.watch in WATCH, "watch", self.watch, f"one of {', '.join(WATCH)}")
        use_vllm_server(self)
        if self.log_completions is None:
            self.log_completions = bool(trackers_of(self.report_to))
        super().__post_init__()
        check(not self.remove_unused_columns, "remove_unused_columns", True, "the rewards read the columns")


@dataclass
class SFTStage(StageDefaults, SFTConfig):
    """Settings of the SFT stage: TRL's `SFTConfig` with our defaults."""

    learning_rate: float = setting(2e-4, "Learning rate of AdamW (2e-4 suits LoRA; take 2e-5 for all weights).")
    ddp_find_unused_parameters: bool | None = setting(False, "Every LoRA weight is used in every step.")

    def __post_init__(self):
        check(
            self.max_length is None or self.max_length >= 2, "max_length", self.max_length, "a whole number from 2 up"
        )
        super().__post_init__()
        field_ = self.dataset_text_field
        check(field_ == "text", "dataset_text_field", field_, "rename that column of the data to text")
        check(not self.dataset_kwargs, "dataset_kwargs", self.dataset_kwargs, "every row is prepared; leave it out")
        packs = self.packing or bool(self.eval_packing)
        check(not packs or self.max_length is not None, "packing", True, "it wants max_length, the length of a pack")
        unpacked = self.padding_free and not self.packing and self.max_length is not None
        check(
            not unpacked, "padding_free", True, "without packing it cuts nothing: set max_length to none, or packing"
        )


@dataclass
class RewardStage(StageDefaults, RewardConfig):
    """Settings of the reward-model stage: TRL's `RewardConfig` with our defaults."""

    learning_rate: float = setting(1e-4, "Learning rate of AdamW.")
    center_rewards_coefficient: float | None = setting(
        0.01, "Weight of the pull that keeps the mean score near 0 (arXiv 2312.09244, Eq. 2)."
    )
    ddp_find_unused_parameters: bool | None = setting(False, "Every LoRA weight is used in every step.")
    heldout_fraction: float = setting(0.1, "Part of the prompts to hold out when the data settings name none.")

    def __post_init__(self):
        check(
            self.max_length is None or self.max_length >= 2, "max_length", self.max_length, "a whole number from 2 up"
        )
        check(0 < self.heldout_fraction < 1, "heldout_fraction", self.heldout_fraction, "a number between 0 and 1")
        coefficient = self.center_rewards_coefficient
        check(coefficient is None or coefficient >= 0, "center_rewards_coefficient", coefficient, "a number from 0 up")
        super().__post_init__()


# What TRL looks at in the first step only
_KNOWN = {
    "loss_type": ("grpo", "dapo", "dr_grpo", "bnpo", "cispo", "luspo", "sapo", "vespo"),
    "importance_sampling_level": ("token", "sequence"),
    "multi_objective_aggregation": ("sum_then_normalize", "normalize_then_sum"),
    "scale_rewards": ("group", "batch", "none", True, False),
    "vllm_importance_sampling_mode": ("token_truncate", "token_mask", "sequence_truncate", "sequence_mask"),
}


@dataclass
class GroupStage(RolloutDefaults):
    """What GRPO and RLOO have in common with each other here, over TRL's own settings."""

    total_episodes: int | None = setting(
        None, "Completions to train on in all, rounded up to whole updates; sets max_steps."
    )
    missing_eos_penalty: float | None = setting(
        None, "Score units taken off a completion that was cut at max_completion_length."
    )

    def __post_init__(self):
        for key in ("total_episodes", "missing_eos_penalty"):
            value = getattr(self, key)
            check(value is None or value > 0, key, value, "a number above 0")
        # a run's own config.yaml has both, of which TRL takes one
        given = self.generation_batch_size
        if self.steps_per_generation is not None:
            self.generation_batch_size = None
        for key, known in _KNOWN.items():
            value = getattr(self, key, known[0])
            check(value in known, key, value, f"one of {', '.join(map(str, known))}")
        once_an_update = self.logging_steps == 0
        self.logging_steps = self.logging_steps or 1
        super().__post_init__()
        if given not in (None, self.generation_batch_size):
            raise UserError(
                f"generation_batch_size is {given}, but steps_per_generation {self.steps_per_generation} makes it "
                f"{self.generation_batch_size}: give one of them."
            )
        steps_per_update = self.steps_per_generation * self.num_iterations // self.gradient_accumulation_steps
        if once_an_update:
            self.logging_steps = max(1, steps_per_update)
        if self.total_episodes is not None:
            self.max_steps = steps_for(
                self.total_episodes, self.generation_batch_size, steps_per_update, self.max_steps
            )


@dataclass
class GRPOStage(GroupStage, GRPOConfig):
    """Settings of GRPO: TRL's `GRPOConfig` with our defaults."""


@dataclass
class RLOOStage(GroupStage, RLOOConfig):
    """Settings of RLOO: TRL's `RLOOConfig` with our defaults."""
