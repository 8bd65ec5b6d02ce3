"""PPOConfig: what it refuses, in words, and what it derives."""

import dataclasses
import json

import pytest
from toy import config

from pipeline.errors import UserError
from pipeline.ppo import PPOConfig

NOT_THE_DEFAULT = {
    "use_vllm": True,
    "beta": 0.1,
    "loss_type": "grpo",
    "scale_rewards": "batch",
    "importance_sampling_level": "sequence",
    "delta": 2.0,
    "use_bias_correction_kl": False,
    "sync_ref_model": True,
    "ref_model_mixup_alpha": 0.5,
    "ref_model_sync_steps": 1,
    "mask_truncated_completions": True,
    "off_policy_mask_threshold": 0.5,
    "top_entropy_quantile": 0.2,
    "use_adaptive_entropy": True,
    "entropy_coef_min": 0.1,
    "entropy_coef_max": 0.5,
    "entropy_coef_delta": 0.1,
    "entropy_target": 0.5,
    "sapo_temperature_neg": 2.0,
    "sapo_temperature_pos": 2.0,
    "vespo_k_pos": 1.0,
    "vespo_lambda_pos": 1.0,
    "vespo_k_neg": 1.0,
    "vespo_lambda_neg": 1.0,
    "top_p": 0.9,
    "top_k": 50,
    "min_p": 0.1,
    "repetition_penalty": 1.1,
    "disable_dropout": False,
}


@pytest.mark.parametrize("name", NOT_THE_DEFAULT)
def test_settings_that_ppo_has_no_use_for(name):
    with pytest.raises(UserError, match=f"^{name} is .* Remove it") as error:
        config(**{name: NOT_THE_DEFAULT[name]})
    assert "\n" not in str(error.value)


def test_every_refused_setting_is_tried():
    from pipeline.ppo.config import _REFUSED

    assert set(NOT_THE_DEFAULT) == set(_REFUSED)


@pytest.mark.parametrize(
    "name, value",
    [(n, v) for n in ("num_mini_batches", "num_generations") for v in (0, -1, None)]
    + [
        ("num_iterations", 0),
        ("num_iterations", -1),
        ("replay", -1),
        ("replay", 4),
        ("critic_warmup", -1),
        ("algorithm", "trpo"),
        ("baseline", "critic"),
    ]
    + [("gradient_accumulation_steps", 0), ("max_completion_length", 0)]
    + [("gamma", 1.01), ("gamma", -0.1), ("lam", 1.5), ("lam", -1)]
    + [(n, -0.1) for n in ("learning_rate", "max_grad_norm", "epsilon", "epsilon_high", "kl_coef", "vf_coef")]
    + [("entropy_coef", -1.0), ("missing_eos_penalty", -1.0)]
    + [(n, 0) for n in ("temperature", "cliprange_value", "kl_target", "kl_horizon", "total_episodes")]
    + [("critic_learning_rate", 0.0), ("kl_estimator", "k4"), ("ddp_find_unused_parameters", True)],
)
def test_values_out_of_range(name, value):
    with pytest.raises(UserError, match=f"^{name} is {value!r}"):
        config(**{name: value})


def test_a_rollout_of_one_completion():
    with pytest.raises(UserError, match="nothing to compare"):
        config(per_device_train_batch_size=1, gradient_accumulation_steps=1)


def test_generations_that_do_not_divide_a_rollout():
    with pytest.raises(UserError, match="num_generations is 3, but a rollout has 8 completions"):
        config(per_device_train_batch_size=4, gradient_accumulation_steps=2, num_generations=3)


def test_a_critic_that_warms_up_to_the_end():
    # 16 completions are two updates of 8
    assert config(total_episodes=16, critic_warmup=1).critic_warmup == 1
    with pytest.raises(UserError, match="critic_warmup is 2, but the run has 2 updates in all"):
        config(total_episodes=16, critic_warmup=2)


def test_a_horizon_shorter_than_an_update():
    # 1 + 0.2 x 64 / 8 = 2.6, 1 - 0.2 x 64 / 8 = -0.6: the coefficient would become negative
    with pytest.raises(UserError, match="kl_horizon"):
        config(per_device_train_batch_size=64, gradient_accumulation_steps=1, kl_target=1.0, kl_horizon=8)


def test_derived_numbers():
    args = config(
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        num_mini_batches=3,
        num_iterations=5,
        total_episodes=49,
    )
    # a rollout: 4 x 2 x 3 = 24; 49 episodes are three rollouts; each has 5 x 3 optimizer steps
    assert (args.steps_per_generation, args.generation_batch_size) == (6, 24)
    assert args.max_steps == 45 and args.logging_steps == 15 and args.num_generations == 1


@pytest.mark.parametrize("derived", [{"steps_per_generation": 7}, {"generation_batch_size": 7}, {"max_steps": 7}])
def test_derived_numbers_are_not_settings(derived):
    [(name, _)] = derived.items()
    with pytest.raises(UserError, match=f"{name} is 7"):
        config(total_episodes=8, per_device_train_batch_size=8, **derived)


def test_resolved_settings_can_be_given_again():
    first = config(per_device_train_batch_size=4, num_mini_batches=2, total_episodes=64, gradient_checkpointing=True)
    given = {f.name: getattr(first, f.name) for f in dataclasses.fields(first) if f.init}
    second = PPOConfig(**given)
    names = "steps_per_generation generation_batch_size max_steps logging_steps num_generations".split()
    assert [getattr(second, n) for n in names] == [getattr(first, n) for n in names]


def test_settings_stay_plain_after_training_with_checkpointing(tmp_path):
    import toy

    trainer = toy.make_trainer(tmp_path, gradient_checkpointing=True)
    assert callable(trainer.args.gradient_checkpointing_kwargs["context_fn"])
    # loggers write the settings as JSON
    written = json.loads(trainer.args.to_json_string())
    assert written["gradient_checkpointing_kwargs"] == {"use_reentrant": False}


def test_continuous_batching_would_round_the_adapters():
    with pytest.raises(UserError, match="16 bits"):
        PPOConfig("out", use_cpu=True, bf16=True, use_transformers_continuous_batching=True)


def test_neutral_generation_settings_pass():
    assert config(generation_kwargs={"use_cache": False}).generation_kwargs == {"use_cache": False}
