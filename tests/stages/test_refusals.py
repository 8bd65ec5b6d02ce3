"""What TRL, PEFT and transformers do not take is said in one sentence before a model is trained or measured."""

import json
from pathlib import Path

import pytest
import torch
from conftest import build_model, build_tokenizer
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, MambaConfig, MambaForCausalLM
from trl import SFTConfig, SFTTrainer

from pipeline.config import DataArguments, ModelArguments, RewardStage, SFTStage
from pipeline.data import loading as data
from pipeline.errors import UserError
from pipeline.exam.exam import RewardArguments
from pipeline.stages import ppo as ppo_stage
from pipeline.stages import reward_model, sft, trl_stage
from pipeline.stages.refusals import in_one_sentence

CPU = {"use_cpu": True, "bf16": False, "report_to": "none", "save_strategy": "no"}
ROLLOUT = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "max_completion_length": 4}
CHAT = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
CONFIGS = {
    "sft": (SFTStage, {"max_length": 64}),
    "reward": (RewardStage, {"max_length": 64}),
    "ppo": (ppo_stage.PPOStage, ROLLOUT),
    "grpo": (trl_stage.GRPOStage, ROLLOUT | {"num_generations": 2}),
    "rloo": (trl_stage.RLOOStage, ROLLOUT | {"num_generations": 2}),
}


@pytest.fixture
def place(tmp_path, tiny_model_folder, monkeypatch):
    """The current folder, with data; whatever begins to train or to measure fails the test."""
    monkeypatch.chdir(tmp_path)
    rows = [
        {"prompt": f"{a}{b} =>", "completion": b, "chosen": f"{a}.", "rejected": f"{b}!"} for a in "abc" for b in "def"
    ]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def too_late(*args, **kwargs):
        pytest.fail("it came too late")

    for kind in (sft.SFT, reward_model.Reward, trl_stage.CountedGRPO, trl_stage.CountedRLOO, ppo_stage.PPOTrainer):
        monkeypatch.setattr(kind, "train", too_late)
        monkeypatch.setattr(kind, "evaluate", too_late)
    monkeypatch.setattr("pipeline.exam.exam.Exam.take", too_late)
    return tiny_model_folder


def run(name: str, base, model=None, rows=None, **settings):
    config, own = CONFIGS[name]
    if rows is not None:
        Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = ModelArguments(**{"model_name_or_path": str(base), "lora_r": 2, "dtype": "float32"} | (model or {}))
    held_out = {"eval_fraction": settings.pop("eval_fraction", 0.0 if rows else 0.3)}
    made = config(**own | CPU | {"output_dir": "out"} | settings)
    args = [arguments, DataArguments("rows.jsonl", **held_out)]
    if name in ("sft", "reward"):
        return (sft if name == "sft" else reward_model).run(*args, made)
    rewards = RewardArguments(rewards=[{"name": "length", "max": 3}], show_samples=0)
    return (ppo_stage if name == "ppo" else trl_stage).run(*args, rewards, made)


def refused(words: str, *args, **kwargs) -> None:
    with pytest.raises(UserError, match=words) as caught:
        run(*args, **kwargs)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 800
    assert not Path("out").exists()


# ------------------------------------------------------------ LoRA where it cannot be
@pytest.mark.parametrize("name", ["sft", "ppo", "grpo", "rloo"])
@pytest.mark.parametrize("targets", [["lm_head"], ["q_proj", "lm_head"]])
def test_lora_on_the_output_layer(place, name, targets):
    refused("lora_target_modules: lm_head is the model's output layer", name, place, {"lora_target_modules": targets})


def test_an_output_layer_that_is_tied_to_the_embeddings(place):
    build_model(tie_word_embeddings=True).save_pretrained("tied")
    build_tokenizer().save_pretrained("tied")
    refused("lm_head is the model's output layer", "sft", "tied", {"lora_target_modules": ["q_proj", "lm_head"]})


@pytest.mark.parametrize("name", ["sft", "ppo", "grpo"])
def test_an_adapter_from_elsewhere_with_lora_on_the_output_layer(place, name):
    model = AutoModelForCausalLM.from_pretrained(place)
    get_peft_model(model, LoraConfig(r=2, target_modules=["lm_head"], task_type="CAUSAL_LM")).save_pretrained("theirs")
    refused("theirs adapts lm_head too, which TRL does not train", name, place, {"adapter_path": "theirs"})


def test_trl_itself_would_refuse_it(place, tmp_path):
    with pytest.raises(ValueError, match="adapter to `lm_head` is not supported"):
        SFTTrainer(
            build_model(),
            SFTConfig(str(tmp_path / "trl"), **CPU),
            None,
            data.load(DataArguments("rows.jsonl"), "sft")[0],
            processing_class=build_tokenizer(),
            peft_config=LoraConfig(target_modules=["lm_head"], task_type="CAUSAL_LM"),
        )


@pytest.mark.parametrize("name", ["sft", "reward", "ppo", "grpo"])
def test_modules_that_lora_cannot_be_put_on(place, name):
    words = (
        "peft does not take these settings: Target module .*RMSNorm.* is not supported.*its linear modules are down_"
    )
    refused(words, name, place, {"lora_target_modules": ["input_layernorm"]})


@pytest.mark.parametrize("name", ["sft", "ppo", "grpo", "rloo"])
def test_modules_of_mamba_that_go_around_lora(place, name):
    torch.manual_seed(0)
    config = MambaConfig(
        vocab_size=259, hidden_size=16, state_size=4, num_hidden_layers=2, pad_token_id=0, eos_token_id=2
    )
    MambaForCausalLM(config).save_pretrained("mamba")
    build_tokenizer().save_pretrained("mamba")
    words = "peft does not take these settings: .*'out_proj' is incompatible.*its linear modules are dt_proj, in_"
    refused(words, name, "mamba")


# ------------------------------------------------------------ losses on what the data or the template lack
@pytest.mark.parametrize(
    ("rows", "settings", "words"),
    [
        (
            [{"messages": CHAT}],
            {"assistant_only_loss": True},
            "assistant_only_loss: the tokenizer's chat template does not",
        ),
        ([{"text": "abc"}], {"assistant_only_loss": True}, "assistant_only_loss: the data are text"),
        (
            [{"prompt": "a", "completion": "b"}],
            {"assistant_only_loss": True},
            "assistant_only_loss: the data are text",
        ),
        (
            [{"messages": CHAT[:1]}],
            {"assistant_only_loss": True},
            "assistant_only_loss: no row has a turn of the assis",
        ),
        (
            [{"messages": CHAT}],
            {"assistant_only_loss": True, "completion_only_loss": True},
            "leave one of the two out",
        ),
        ([{"text": "abc"}], {"completion_only_loss": True}, "completion_only_loss: the data are whole texts"),
    ],
)
def test_a_loss_on_what_is_not_there(place, rows, settings, words):
    refused(words, "sft", place, rows=rows, **settings)


def test_rows_in_which_no_assistant_speaks_are_left_out(tmp_path, tiny_model_folder, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("marked.jinja").write_text(
        "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content + eos_token }}"
        "{% endgeneration %}{% else %}{{ m.content }}{% endif %}{% endfor %}"
    )
    template, rows = {"chat_template_path": "marked.jinja"}, [{"messages": CHAT}, {"messages": CHAT[:1]}]
    summary = run("sft", tiny_model_folder, template, rows, assistant_only_loss=True, num_train_epochs=1)
    assert summary["rows"] == 1
    assert "1 rows dropped: no turn of the assistant in them" in capsys.readouterr().out


@pytest.mark.parametrize("margin", [None, "much", True, [1.0]])
def test_margins_that_are_no_numbers(place, margin):
    rows = [{"prompt": f"{w} ", "chosen": "a", "rejected": "b", "margin": margin} for w in "abcdefgh"]
    refused(
        "training pairs, row 1: margin is .* give a number in every row", "reward", place, rows=rows, eval_fraction=0.3
    )


# ------------------------------------------------------------ settings that nobody would follow
@pytest.mark.parametrize(
    ("name", "settings", "words"),
    [
        (
            "sft",
            {"model_init_kwargs": {"attn_implementation": "eager"}},
            "model_init_kwargs: .* settings of its own: dtype",
        ),
        ("reward", {"model_init_kwargs": {"dtype": "float32"}}, "model_init_kwargs: .* settings of its own: dtype"),
        ("ppo", {"model_init_kwargs": {"dtype": "float32"}}, "model_init_kwargs: .* settings of its own: dtype"),
        ("grpo", {"model_init_kwargs": {"dtype": "float32"}}, "model_init_kwargs: .* settings of its own: dtype"),
        ("sft", {"dataset_text_field": "content"}, "dataset_text_field: 'content' is not valid: rename that column"),
        ("sft", {"dataset_kwargs": {"skip_prepare_dataset": True}}, "dataset_kwargs: .* every row is prepared"),
        ("sft", {"truncation_mode": "middle"}, "truncation_mode: 'middle' is not valid: one of keep_end, keep_start"),
        (
            "sft",
            {"packing_strategy": "tetris", "packing": True},
            "packing_strategy: 'tetris' .* one of bfd, bfd_split",
        ),
        ("sft", {"loss_type": "mse"}, "loss_type: 'mse' is not valid: one of nll, dft"),
        ("sft", {"packing": True, "max_length": None}, "packing: True is not valid: it wants max_length"),
        ("sft", {"padding_free": True}, "padding_free: True is not valid: without packing"),
        (
            "ppo",
            {"remove_unused_columns": True},
            "remove_unused_columns: True is not valid: the rewards read the columns",
        ),
        (
            "rloo",
            {"remove_unused_columns": True},
            "remove_unused_columns: True is not valid: the rewards read the columns",
        ),
        ("grpo", {"loss_type": "ppo"}, "loss_type: 'ppo' is not valid: one of grpo, dapo"),
        ("grpo", {"importance_sampling_level": "word"}, "importance_sampling_level: 'word' is not valid"),
        ("grpo", {"scale_rewards": "std"}, "scale_rewards: 'std' is not valid"),
        ("grpo", {"multi_objective_aggregation": "max"}, "multi_objective_aggregation: 'max' is not valid"),
    ],
)
def test_settings_that_are_refused_as_they_are_read(place, name, settings, words):
    refused(words, name, place, **settings)


@pytest.mark.parametrize(
    ("name", "settings", "words"),
    [
        ("sft", {"router_aux_loss_coef": 0.1}, "trl does not take these settings: .*not a Mixture-of-Experts"),
        ("grpo", {"router_aux_loss_coef": 0.1}, "trl does not take these settings: .*not a Mixture-of-Experts"),
        (
            "ppo",
            {"eval_strategy": "steps", "eval_steps": 1},
            "transformers does not take these settings: .*eval_dataset",
        ),
        ("sft", {"eval_strategy": "epoch", "eval_fraction": 0.0}, "transformers does not take .*eval_dataset"),
        ("grpo", {"sync_ref_model": True, "beta": 0.1}, "trl does not take these settings: .*sync_ref_model=True"),
        ("rloo", {"sync_ref_model": True}, "trl does not take these settings: .*sync_ref_model=True"),
        ("sft", {"optim": "lomo"}, "transformers does not take these settings: .*lomo"),
        ("ppo", {"optim": "galore_adamw"}, "transformers does not take these settings: .*galore"),
        ("reward", {"lr_scheduler_type": "cosine_with_min_lr"}, "transformers does not take these settings: .*min_lr"),
        ("ppo", {"lr_scheduler_kwargs": {"wiggle": 1}}, "lr_scheduler_kwargs .*wiggle.* is not valid"),
        *((name, {"use_liger_kernel": True}, "use_liger_kernel: the package liger-kernel") for name in CONFIGS),
    ],
)
def test_settings_that_the_libraries_refuse_once_the_model_is_there(place, name, settings, words):
    refused(words, name, place, **settings)


# ------------------------------------------------------------ and nothing else
def test_an_error_of_ours_or_of_torch_keeps_its_trace():
    def ours():
        raise ValueError("a bug")

    for act in (ours, lambda: torch.ones(2) @ torch.ones(3), lambda: build_tokenizer().decode([None])):
        with pytest.raises((ValueError, RuntimeError, TypeError)) as caught, in_one_sentence():
            act()
        assert not isinstance(caught.value, UserError)


def test_a_users_error_goes_through_as_it_is():
    with pytest.raises(UserError, match="^as it is$"), in_one_sentence():
        raise UserError("as it is")
