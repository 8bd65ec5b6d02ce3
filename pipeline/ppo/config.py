"""Settings of PPO. What TRL has keeps TRL's name and meaning; what only PPO has keeps TRL 1.12's name."""

from dataclasses import dataclass, field
from typing import Any

from trl import GRPOConfig

from pipeline.config import RolloutDefaults, check, setting, settle_bf16, settle_mixed_precision, steps_for
from pipeline.errors import UserError
from pipeline.ppo.math import KL_ESTIMATORS
from pipeline.ppo.setup import advantage_estimator

# Settings of GRPOConfig that would do nothing here, or would bias the log-probabilities, with what to use instead.
_REFUSED = {
    "beta": "the KL penalty of PPO is kl_coef",
    "loss_type": "PPO averages its loss over all tokens of a mini-batch",
    "scale_rewards": "advantages are whitened; multi_objective_aggregation scales each reward by itself",
    "importance_sampling_level": "PPO's ratio is per token",
    "delta": "PPO has no two-sided clipping",
    "use_bias_correction_kl": "the KL penalty is part of the reward here",
    "sync_ref_model": "the reference is the frozen start of the policy",
    "ref_model_mixup_alpha": "the reference is the frozen start of the policy",
    "ref_model_sync_steps": "the reference is the frozen start of the policy",
    "mask_truncated_completions": "use missing_eos_penalty",
    "off_policy_mask_threshold": "PPO clips the ratio instead",
    "top_entropy_quantile": "PPO trains on every sampled token",
    "use_adaptive_entropy": "use a fixed entropy_coef",
    "entropy_coef_min": "use a fixed entropy_coef",
    "entropy_coef_max": "use a fixed entropy_coef",
    "entropy_coef_delta": "use a fixed entropy_coef",
    "entropy_target": "use a fixed entropy_coef",
    "sapo_temperature_neg": "it belongs to a loss of GRPO",
    "sapo_temperature_pos": "it belongs to a loss of GRPO",
    "vespo_k_pos": "it belongs to a loss of GRPO",
    "vespo_lambda_pos": "it belongs to a loss of GRPO",
    "vespo_k_neg": "it belongs to a loss of GRPO",
    "vespo_lambda_neg": "it belongs to a loss of GRPO",
    "top_p": "a truncated distribution is not the one that log-probabilities are computed of; use temperature",
    "top_k": "a truncated distribution is not the one that log-probabilities are computed of; use temperature",
    "min_p": "a truncated distribution is not the one that log-probabilities are computed of; use temperature",
    "repetition_penalty": "it changes the distribution that is sampled; use a repetition reward",
    "use_vllm": "TRL's own way to vLLM does not install beside this trainer; vllm_server names a running one",
    "disable_dropout": "rollout and update must see the same policy, so dropout is always off",
}
SUM, NORMALIZE = AGGREGATIONS = ("sum_then_normalize", "normalize_then_sum")  # TRL's names
ALGORITHMS = ("ppo", "a2c", "reinforce")
BASELINES = ("none", "moving_average", "leave_one_out")
# What an algorithm leaves out: setting -> why. A value other than the default (or none) contradicts it.
_ONE_EPOCH = {"num_iterations": "it makes one epoch over each rollout"}
_NO_CLIPPING = dict.fromkeys(("epsilon", "epsilon_high", "cliprange_value"), "it clips nothing")
_NO_CRITIC = dict.fromkeys(
    ("advantage", "lam", "vf_coef", "critic_path", "critic_layers", "critic_warmup", "critic_learning_rate"),
    "it has no critic",
)
_CONTRADICTS = {
    "ppo": {},
    "a2c": _ONE_EPOCH | _NO_CLIPPING,
    "reinforce": _ONE_EPOCH | _NO_CLIPPING | _NO_CRITIC,
}
# Generation settings that leave the sampled distribution alone.
_NEUTRAL_GENERATION = {"use_cache", "max_time", "cache_config", "cache_implementation", "prefill_chunk_size"}


@dataclass
class PPOConfig(GRPOConfig):
    """Settings of [`PPOTrainer`], on top of `trl.GRPOConfig`.

    One *update* is one rollout of `per_device_train_batch_size x gradient_accumulation_steps x num_mini_batches`
    completions on each process, then `num_iterations` epochs over it with one optimizer step a mini-batch. `max_steps`
    and the learning-rate schedule count optimizer steps: `num_iterations x num_mini_batches` of them an update.

    Raises:
        UserError: for a value out of range, or a GRPO setting that PPO has no use for; the message names the key.
    """

    # -- defaults that differ from GRPO's
    num_generations: int | None = field(default=1, metadata={"help": "Completions per prompt in one rollout."})
    num_generations_eval: int | None = field(default=1, metadata={"help": "Completions per prompt in evaluation."})
    num_iterations: int | None = field(  # type: ignore[assignment]  # a number when __post_init__ is through
        default=None, metadata={"help": "Epochs over each rollout; none: 4 for ppo, 1 for a2c and reinforce."}
    )
    learning_rate: float = field(default=1e-5, metadata={"help": "Initial learning rate of AdamW."})
    scale_rewards: str = field(default="none", metadata={"help": "Not used by PPO."})
    loss_type: str = field(default="dapo", metadata={"help": "Not used by PPO."})
    disable_dropout: bool = field(
        default=True, metadata={"help": "No dropout: rollout and update must see the same policy (ratio 1 at first)."}
    )
    gradient_checkpointing: bool = field(
        default=False, metadata={"help": "Recompute activations in the backward pass: less memory, about 20%% slower."}
    )
    logging_steps: float = field(
        default=0, metadata={"help": "Optimizer steps between two logs; 0 means once an update (rollout)."}
    )
    vllm_importance_sampling_mode: str = field(
        default="token_truncate",
        metadata={
            "help": "With vllm_server: how π_ours/π_sampler weighs the loss, token_truncate, token_mask, "
            "sequence_truncate or sequence_mask."
        },
    )
    ddp_find_unused_parameters: bool | None = field(
        default=False, metadata={"help": "Must stay off: the critic's pass goes around the DDP wrapper."}
    )

    # -- what only PPO has
    algorithm: str = field(
        default="ppo",
        metadata={
            "help": "ppo (critic, clipping, several epochs), a2c (critic, no clipping, one epoch) or reinforce "
            "(reward-to-go, no critic, one epoch)."
        },
    )
    baseline: str = field(
        default="none",
        metadata={
            "help": "Baseline besides the critic: none, leave_one_out (of the completions of a prompt) or, for "
            "reinforce, moving_average."
        },
    )
    total_episodes: int | None = field(
        default=None, metadata={"help": "Completions to train on in all, rounded up to whole updates; sets max_steps."}
    )
    num_mini_batches: int = field(default=1, metadata={"help": "Optimizer steps in one epoch over a rollout."})
    replay: int = field(
        default=0,
        metadata={
            "help": "Of the num_iterations epochs of an update, how many go over earlier rollouts, not the new one."
        },
    )
    kl_coef: float = field(default=0.05, metadata={"help": "β of the per-token KL penalty against the reference."})
    kl_estimator: str = field(default="k1", metadata={"help": "Estimator of the KL penalty: k1, k2 or k3."})
    kl_target: float | None = field(
        default=None, metadata={"help": "Nats per sequence; given, kl_coef adapts so that the KL stays near it."}
    )
    kl_horizon: float = field(default=10000, metadata={"help": "Episodes in which the adaptive kl_coef reacts."})
    gamma: float = field(default=1.0, metadata={"help": "Discount per token."})
    lam: float = field(default=0.95, metadata={"help": "λ of generalised advantage estimation."})
    vf_coef: float = field(default=0.1, metadata={"help": "Weight of the value loss."})
    cliprange_value: float | None = field(
        default=None,
        metadata={
            "help": "Clip range of the values around the old ones, in score units; none: no clip, a cold critic "
            "has far to go (TRL 1.12 had 0.2)."
        },
    )
    advantage: str = field(
        default="gae",
        metadata={
            "help": "Advantage estimator: gae, or module:function of your own (pipeline/ppo/math.py has the contract)."
        },
    )
    whiten_advantages: bool | None = field(
        default=None, metadata={"help": "Whiten advantages over all processes; none: yes, but not for reinforce."}
    )
    whiten_rewards: bool = field(
        default=False, metadata={"help": "Divide the token rewards by their standard deviation (usually harmful)."}
    )
    multi_objective_aggregation: str = field(
        default=SUM,
        metadata={
            "help": "sum_then_normalize: the weighted scores are added as they are; normalize_then_sum: each reward's "
            "scores are normalised first, over the completions of a prompt, or the rollout if there is one of each."
        },
    )
    missing_eos_penalty: float | None = field(
        default=None,
        metadata={"help": "Score units subtracted from a completion that was cut at max_completion_length."},
    )
    critic_path: str | None = field(
        default=None,
        metadata={"help": "Reward-stage or critic folder that the critic starts from; none: the base, head at 0."},
    )
    critic_layers: int | None = field(
        default=None,
        metadata={
            "help": "Upper layers on which the critic is trained; below them it stays as it starts, and each rollout "
            "goes through those layers once. None: all layers."
        },
    )
    critic_warmup: int = field(
        default=0,
        metadata={"help": "Updates at the start that train the critic alone, before the policy follows it."},
    )
    critic_learning_rate: float | None = field(
        default=None, metadata={"help": "Learning rate of critic adapter and value head; none: learning_rate."}
    )

    def __post_init__(self) -> None:
        self._validate()
        given = {name: getattr(self, name) for name in ("steps_per_generation", "generation_batch_size")}
        self.generation_batch_size, self.steps_per_generation = None, self.micro_batches_per_rollout
        if self.logging_steps == 0:
            self.logging_steps = self.steps_per_update
        # GRPO insists on groups of two or more. PPO has none, so its check is shown one group per process.
        num_generations = self.num_generations or 1
        self.num_generations = self.per_device_train_batch_size * self.micro_batches_per_rollout
        settle_bf16(self)
        super().__post_init__()  # type: ignore[no-untyped-call]
        settle_mixed_precision(self)
        self.num_generations = num_generations
        for name, value in given.items():  # a run's own config.yaml, which has both, can be given again
            if value not in (None, getattr(self, name)):
                raise UserError(
                    f"{name} is {value}, but PPO derives it: it is {getattr(self, name)} here "
                    f"({self._batch_arithmetic()}). Remove it."
                )
        completions = self.completions_per_rollout
        if completions % num_generations:
            raise UserError(
                f"num_generations is {num_generations}, but a rollout has {completions} completions "
                f"({self._batch_arithmetic()}), which it does not divide."
            )
        if self.use_transformers_continuous_batching and (self.bf16 or self.fp16):
            raise UserError(
                "use_transformers_continuous_batching with bf16 or fp16 rounds adapters and value head to 16 bits for "
                "good: set bf16 and fp16 to false, or leave it out."
            )
        if self.kl_target is not None and self.kl_horizon < completions:
            raise UserError(
                f"kl_horizon is {self.kl_horizon}, shorter than the {completions} episodes of one "
                "update: kl_coef would leap, even below 0. Raise kl_horizon."
            )
        if self.total_episodes is not None:
            self.max_steps = steps_for(self.total_episodes, completions, self.steps_per_update, self.max_steps)
        if self.critic_warmup * self.steps_per_update >= self.max_steps > 0:
            raise UserError(
                f"critic_warmup is {self.critic_warmup}, but the run has {self.max_steps // self.steps_per_update} "
                "updates in all (max_steps or total_episodes): the policy would never learn. Lower it."
            )

    @property
    def micro_batches_per_rollout(self) -> int:
        """On each process; TRL calls it steps_per_generation."""
        return self.gradient_accumulation_steps * self.num_mini_batches

    @property
    def completions_per_rollout(self) -> int:
        """Over all processes; TRL calls it generation_batch_size."""
        return self.per_device_train_batch_size * self.micro_batches_per_rollout * int(self.world_size)

    @property
    def epochs(self) -> int:
        """Passes over each rollout: `num_iterations`, or what the algorithm makes of none."""
        if self.num_iterations is None:
            return 4 if self.algorithm == "ppo" else 1
        return self.num_iterations

    @property
    def steps_per_update(self) -> int:
        """Optimizer steps over one rollout."""
        return self.epochs * self.num_mini_batches

    def _batch_arithmetic(self) -> str:
        return (
            f"per_device_train_batch_size {self.per_device_train_batch_size} x gradient_accumulation_steps "
            f"{self.gradient_accumulation_steps} x num_mini_batches {self.num_mini_batches} x processes "
            f"{self.world_size}"
        )

    def _validate(self) -> None:
        defaults = type(self).__dataclass_fields__
        for name, instead in _REFUSED.items():
            value, default = getattr(self, name), defaults[name].default
            if value != default and not (name == "beta" and value == 0):
                raise UserError(f"{name} is {value!r}, but PPO has no such setting: {instead}. Remove it.")
        self.beta = 0.0
        if isinstance(self.generation_kwargs, dict) and set(self.generation_kwargs) - _NEUTRAL_GENERATION:
            names = ", ".join(sorted(set(self.generation_kwargs) - _NEUTRAL_GENERATION))
            raise UserError(f"generation_kwargs has {names}, which would change the sampled distribution. Remove it.")
        for name, choices in (("kl_estimator", KL_ESTIMATORS), ("multi_objective_aggregation", AGGREGATIONS)):
            if getattr(self, name) not in choices:
                raise UserError(f"{name} is {getattr(self, name)!r}; choose one of {', '.join(choices)}.")
        self._validate_algorithm()
        advantage_estimator(self.advantage)
        counts = "num_iterations num_mini_batches num_generations gradient_accumulation_steps max_completion_length"
        for name in counts.split():
            if getattr(self, name) is None or getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; it must be 1 or more.")
        if self.critic_layers is not None and self.critic_layers < 1:
            raise UserError(f"critic_layers is {self.critic_layers}; give the number of upper layers, from 1 up.")
        if self.critic_warmup < 0:
            raise UserError(f"critic_warmup is {self.critic_warmup}; give the number of updates, from 0 up.")
        if not 0 <= self.replay < self.epochs:
            raise UserError(
                f"replay is {self.replay}, but of num_iterations {self.num_iterations} epochs at least one goes over "
                "the new rollout: give a number from 0 up, below num_iterations."
            )
        if self.ddp_find_unused_parameters:
            raise UserError(
                "ddp_find_unused_parameters is True, but the critic's pass goes around the DDP wrapper, which would "
                "take its weights for unused. Remove it."
            )
        self.ddp_find_unused_parameters = False
        if self.per_device_train_batch_size * self.gradient_accumulation_steps * self.num_mini_batches < 2:
            raise UserError(
                "A rollout of one completion per process has nothing to compare: raise per_device_train_batch_size, "
                "gradient_accumulation_steps or num_mini_batches so that their product is 2 or more."
            )
        for name in ("gamma", "lam"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name} is {getattr(self, name)}; it must lie between 0 and 1.")
        rates = "learning_rate max_grad_norm epsilon epsilon_high kl_coef vf_coef entropy_coef missing_eos_penalty"
        for name in rates.split():
            value = getattr(self, name)
            if value is not None and not value >= 0:  # nan neither
                raise UserError(f"{name} is {value}; it must not be negative.")
        above_zero = "temperature cliprange_value kl_target kl_horizon total_episodes critic_learning_rate"
        for name in above_zero.split():
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise UserError(f"{name} is {value}; it must be greater than 0.")

    def _validate_algorithm(self) -> None:
        """Refuses what contradicts the algorithm, and fills in what follows from it."""
        fields = type(self).__dataclass_fields__
        for name, choices in (("algorithm", ALGORITHMS), ("baseline", BASELINES)):
            if getattr(self, name) not in choices:
                raise UserError(f"{name} is {getattr(self, name)!r}; choose one of {', '.join(choices)}.")
        for name, why in _CONTRADICTS[self.algorithm].items():
            value = getattr(self, name)
            fits = (fields[name].default, None, 1 if name == "num_iterations" else None)
            if value not in fits:
                raise UserError(
                    f"{name} is {value!r}, which contradicts algorithm {self.algorithm}: {why}. Remove it."
                )
        if self.algorithm != "ppo":
            self.cliprange_value = None
        self.num_iterations = self.epochs
        if self.whiten_advantages is None:
            self.whiten_advantages = self.algorithm != "reinforce"
        if self.baseline == "moving_average" and self.algorithm != "reinforce":
            raise UserError(
                f"baseline is moving_average, which {self.algorithm} has no use for: its critic knows more. Take "
                "leave_one_out, or leave it out."
            )
        if self.baseline != "none" and self.replay:
            raise UserError(
                f"baseline is {self.baseline}, and replay is {self.replay}: an earlier rollout would be learned from "
                "without its baseline. Leave one of the two out."
            )
        if self.baseline == "moving_average" and self.whiten_advantages:
            raise UserError(
                "baseline is moving_average, which whiten_advantages takes away again: set whiten_advantages to false."
            )
        if self.baseline == "leave_one_out" and (self.num_generations or 0) < 2:
            raise UserError(
                f"baseline is leave_one_out, which compares completions of one prompt, but num_generations is "
                f"{self.num_generations}: set it to 2 or more."
            )

    def to_dict(self) -> dict[str, Any]:
        settings: dict[str, Any] = super().to_dict()  # type: ignore[no-untyped-call]
        if settings["gradient_checkpointing_kwargs"]:
            # what the trainer puts there besides settings is code, which no log or JSON file can take
            for name in ("gradient_checkpointing_kwargs", "activation_checkpointing_kwargs"):
                settings[name] = {k: v for k, v in settings[name].items() if not callable(v)}
        return settings


@dataclass
class PPOStage(RolloutDefaults, PPOConfig):  # type: ignore[misc]  # none of a default is filled in by __post_init__
    """Settings of the PPO stage: TRL's `GRPOConfig` and PPO's own, with our defaults."""

    rollout_ahead: int = setting(
        0, "1: a vLLM server samples the next rollout while this one is learned from, by the policy of one update ago."
    )

    def __post_init__(self) -> None:
        check(self.rollout_ahead in (0, 1), "rollout_ahead", self.rollout_ahead, "0 or 1")
        if self.rollout_ahead:
            beside = "a vLLM server samples beside the training: set vllm_server"
            check(bool(self.vllm_server), "rollout_ahead", 1, beside)
            weighed = "what an older policy has sampled must be weighed: leave vllm_importance_sampling_correction on"
            check(self.vllm_importance_sampling_correction, "rollout_ahead", 1, weighed)
        super().__post_init__()  # type: ignore[no-untyped-call]
