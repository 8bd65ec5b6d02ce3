"""Each setting out of range is refused by name, and our defaults are what the documentation says."""

import pytest
import torch

from pipeline.config import DataArguments, ModelArguments, RewardStage, SFTStage
from pipeline.errors import UserError


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"dtype": "float8"}, "dtype"),
        ({"attn_implementation": "flash"}, "attn_implementation"),
        ({"lora_r": 0}, "lora_r"),
        ({"lora_alpha": 0}, "lora_alpha"),
        ({"lora_dropout": 1.0}, "lora_dropout"),
        ({"lora_dropout": -0.1}, "lora_dropout"),
        ({"lora_target_modules": []}, "lora_target_modules"),
        ({"load_in_4bit": True, "load_in_8bit": True}, "load_in_8bit"),
        ({"load_in_4bit": True, "use_peft": False}, "use_peft"),
        ({"load_in_8bit": True, "use_peft": False}, "use_peft"),
    ],
)
def test_model_settings_out_of_range(settings, key):
    with pytest.raises(UserError, match=rf"^{key}: "):
        ModelArguments(**settings)


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"eval_fraction": 1.0}, "eval_fraction"),
        ({"eval_fraction": -0.1}, "eval_fraction"),
        ({"eval_fraction": 0.1, "eval_dataset": "x.jsonl"}, "eval_fraction"),
        ({"eval_fraction": 0.1, "eval_split": "test"}, "eval_fraction"),
        ({"max_rows": 0}, "max_rows"),
        ({"prompt_template": 5}, "prompt_template"),
        ({"completion_template": {"target": None}}, "completion_template"),
    ],
)
def test_data_settings_out_of_range(settings, key):
    with pytest.raises(UserError, match=rf"^{key}: "):
        DataArguments(**settings)


@pytest.mark.parametrize("kind", [SFTStage, RewardStage])
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("learning_rate", -1.0),
        ("weight_decay", -1.0),
        ("max_grad_norm", -1.0),
        ("num_train_epochs", 0),
        ("per_device_train_batch_size", 0),
        ("per_device_eval_batch_size", 0),
        ("gradient_accumulation_steps", 0),
        ("max_length", 1),
    ],
)
def test_stage_settings_out_of_range(kind, key, value):
    with pytest.raises(UserError, match=rf"^{key}: "):
        kind(output_dir="x", **{key: value})


def test_reward_settings_out_of_range():
    with pytest.raises(UserError, match="^center_rewards_coefficient: "):
        RewardStage(output_dir="x", center_rewards_coefficient=-1.0)


@pytest.mark.parametrize("kind", [SFTStage, RewardStage])
def test_defaults(kind):
    config = kind(output_dir="x", use_cpu=True)
    assert config.bf16 is False and config.fp16 is False  # TRL alone takes bf16, also on a CPU
    assert config.gradient_checkpointing is False
    assert config.report_to in ([], ["none"])
    assert config.logging_steps == 10
    assert config.dataloader_pin_memory is False


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_bf16_is_taken_on_a_gpu():
    assert SFTStage(output_dir="x").bf16 is True


def test_bf16_on_a_cpu_when_asked_for():
    assert SFTStage(output_dir="x", use_cpu=True, bf16=True).bf16 is True


def test_gradient_checkpointing_under_its_old_name_makes_no_warning(recwarn):
    config = SFTStage(output_dir="x", gradient_checkpointing=True)
    assert config.gradient_checkpointing is True and config.activation_checkpointing is True
    assert not [w for w in recwarn if "gradient_checkpointing" in str(w.message)]


def test_a_single_target_module_may_be_given_as_text():
    assert ModelArguments(lora_target_modules="all-linear").lora_target_modules == ["all-linear"]
