"""The settings of each stage: TRL's own config with our defaults."""

from dataclasses import dataclass, fields
from typing import Any

import torch
from trl import DPOConfig, GRPOConfig, RewardConfig, RLOOConfig, SFTConfig

from pipeline.config.checks import SELECTIVE, WATCH, check, games, is_selective, setting, steps_for, steps_per_update
from pipeline.config.machine import gpu_asked_for, on_gpu, settle_bf16, settle_mixed_precision
from pipeline.config.services import ServerSettings, check_vllm_server, trackers_of
from pipeline.errors import UserError


@dataclass
class StageDefaults:
    """Our defaults for what every TRL config has. Put it before TRL's class: `class C(StageDefaults, SFTConfig)`."""

    output_dir: str | None = setting(None, "Folder for the result. It must not hold anything yet.")
    resume: bool = setting(False, "Go on with the run in output_dir where it was stopped; a new one starts.")
    gradient_checkpointing: bool | None = setting(
        None, "Recompute activations in the backward pass: less memory, about 20%% slower."
    )
    report_to: None | str | list[str] = setting(
        "none", "Trackers: none, tensorboard, trackio, wandb, mlflow; or several."
    )
    logging_steps: float = setting(10, "Log every so many steps.")
    save_strategy: str = setting(
        "steps", "When to write checkpoints: steps (with save_minutes), epoch, best or no (only when it is stopped)."
    )
    save_minutes: float = setting(
        10,
        "Minutes between two checkpoints, besides those of save_steps; more, where writing one takes long; 0: none.",
    )
    save_total_limit: int | None = setting(2, "Keep the newest checkpoints only.")
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
        gpu = on_gpu(self)
        for key in ("fp16", "activation_offloading"):
            good = gpu or not getattr(self, key, False)
            check(good, key, True, "it needs a GPU, and this run has none: leave it out")
        if not self.use_cpu and (asked := gpu_asked_for()) and not torch.accelerator.is_available():
            raise UserError(
                f"a GPU was asked for ({asked}), but torch finds none on this machine: see nvidia-smi, or give "
                "--use_cpu"
            )
        settle_bf16(self)
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
        given = getattr(self, "model_init_kwargs", None)  # its values may be secrets
        check(not given, "model_init_kwargs", ", ".join(given) if isinstance(given, dict) else given, loads)
        if not isinstance(self, SFTConfig):
            check(not is_selective(self), *SELECTIVE)
        settle_mixed_precision(self)


@dataclass
class PolicyDefaults(StageDefaults):
    """Our defaults for the stages that train a language model, over those of every stage."""

    adapter_averaging: float = setting(
        1.0, "How far to go on the line from the adapter at the start to the one at the end; 1: all the way."
    )

    def __post_init__(self):
        check(0 < self.adapter_averaging <= 1, "adapter_averaging", self.adapter_averaging, "above 0, at most 1")
        super().__post_init__()


@dataclass
class RolloutDefaults(ServerSettings, PolicyDefaults):
    """Our defaults for the stages that sample completions."""

    logging_steps: float = setting(0, "Optimizer steps between two logs; 0 means once an update (rollout).")
    watch: str = setting(
        "warn", "Watchers of what usually goes wrong: warn, stop (save and end the run at the first warning), 'off'."
    )
    sample_every: int = setting(10, "Updates (rollouts) between two samples in the terminal; 0: none.")
    environment: dict[str, Any] | str | None = setting(
        None,
        "Game of several turns, as module:Class in TRL's form (docs/turns.md); or a mapping of such by name, of which "
        "each row's column `environment` names one. PPO only.",
    )
    tools: list[str] = setting(
        [], "Functions that the model may call, each as module:function (docs/turns.md). PPO only."
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
        check_vllm_server(self)
        self.environment = games(self.environment)
        if self.log_completions is None:
            self.log_completions = bool(trackers_of(self.report_to))
        super().__post_init__()
        check(not self.remove_unused_columns, "remove_unused_columns", True, "the rewards read the columns")


@dataclass
class SFTStage(PolicyDefaults, SFTConfig):
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
    ensemble: int = setting(
        1, "Reward models to train, each on pairs drawn anew; `learned` can then take off what they disagree about."
    )
    ddp_find_unused_parameters: bool | None = setting(False, "Every LoRA weight is used in every step.")

    def __post_init__(self):
        check(
            self.max_length is None or self.max_length >= 2, "max_length", self.max_length, "a whole number from 2 up"
        )
        check(self.ensemble >= 1, "ensemble", self.ensemble, "a whole number from 1 up, such as 4")
        coefficient = self.center_rewards_coefficient
        check(coefficient is None or coefficient >= 0, "center_rewards_coefficient", coefficient, "a number from 0 up")
        super().__post_init__()


# What TRL looks at in the first step only, or not at all
DPO_LOSSES = (
    *("sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot", "aot_unpaired"),
    *("apo_zero", "apo_down", "discopop", "sft", "sigmoid_norm"),
)
DIVERGENCES = ("reverse_kl", "forward_kl", "js_divergence", "alpha_divergence")
SMOOTHED = {"robust", "exo_pair", "aot", "aot_unpaired"}  # losses that read label_smoothing


@dataclass
class DPOStage(PolicyDefaults, DPOConfig):
    """Settings of DPO: TRL's `DPOConfig` with our defaults."""

    learning_rate: float = setting(1e-5, "Learning rate of AdamW.")
    max_completion_length: int = setting(256, "Longest answer to a held-out prompt, tokens.")
    temperature: float = setting(1.0, "Of the sampled answers to held-out prompts.")
    ddp_find_unused_parameters: bool | None = setting(False, "Every LoRA weight is used in every step.")

    def __post_init__(self):
        length, longest = self.max_length, self.max_completion_length
        check(length is None or length >= 2, "max_length", length, "a whole number from 2 up")
        check(longest >= 1, "max_completion_length", longest, "a whole number from 1 up")
        check(self.temperature > 0, "temperature", self.temperature, "a number above 0; greedy answers come besides")
        check(self.beta > 0, "beta", self.beta, "a number above 0")
        super().__post_init__()
        for each in self.loss_type:
            check(each in DPO_LOSSES, "loss_type", each, f"one or several of {', '.join(DPO_LOSSES)}")
        kind, smoothing = self.f_divergence_type, self.label_smoothing
        check(kind in DIVERGENCES, "f_divergence_type", kind, f"one of {', '.join(DIVERGENCES)}")
        check(0 <= smoothing < 0.5, "label_smoothing", smoothing, "from 0 to below 0.5, where labels say nothing")
        used = not smoothing or bool(SMOOTHED & set(self.loss_type))
        check(used, "label_smoothing", smoothing, f"only {', '.join(sorted(SMOOTHED))} of loss_type read it")


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
        None, "Score units subtracted from a completion that was cut at max_completion_length."
    )

    def __post_init__(self):
        for key in ("environment", "tools"):
            value = getattr(self, key)
            check(
                not value,
                key,
                value,
                "games of several turns are for PPO (make ppo); TRL's trainers take them in Python",
            )
        episodes, penalty = self.total_episodes, self.missing_eos_penalty
        check(episodes is None or episodes > 0, "total_episodes", episodes, "a number above 0")
        check(penalty is None or penalty >= 0, "missing_eos_penalty", penalty, "a number from 0 up")
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
        if once_an_update:
            self.logging_steps = steps_per_update(self)
        if self.total_episodes is not None:
            steps = steps_per_update(self)
            self.max_steps = steps_for(self.total_episodes, self.generation_batch_size, steps, self.max_steps)


@dataclass
class GRPOStage(GroupStage, GRPOConfig):
    """Settings of GRPO: TRL's `GRPOConfig` with our defaults."""


@dataclass
class RLOOStage(GroupStage, RLOOConfig):
    """Settings of RLOO: TRL's `RLOOConfig` with our defaults."""
