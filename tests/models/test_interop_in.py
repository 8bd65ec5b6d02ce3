"""Adapters as TRL, LLaMA-Factory and Unsloth leave them, in the folders that they leave: our stages start from them.

The layouts are those of TRL's SFTTrainer (run here), of LLaMA-Factory (`_setup_lora_tuning` in its model/adapter.py,
`run_sft` in train/sft/workflow.py and LogCallback in train/callbacks.py) and of Unsloth (`get_peft_regex` in
unsloth_zoo/peft_utils.py; adapter_config.json files that people have published).
"""

import json
import pickle
import re
from pathlib import Path

import pytest
import torch
import yaml
from catalogue import SETTINGS
from conftest import build_model, build_tokenizer
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from trl import SFTConfig, SFTTrainer

from pipeline.errors import UserError
from pipeline.models.folders import check_given_base

pytest_plugins = ["places"]

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
# What Unsloth asks PEFT for by default, in place of a list of names
PARTS, NAMES = "self_attn|attention|attn|mlp|feed_forward|ffn|dense", "|".join(LINEAR)
REGEX = (
    rf"(?:.*?(?:language|text).*?(?:{PARTS}).*?(?:{NAMES}).*?)"
    rf"|(?:\bmodel\.layers\.[\d]{{1,}}\.(?:{PARTS})\.(?:(?:{NAMES})))"
)
UNSLOTH, FACTORY = "unsloth/tiny-unsloth-bnb-4bit", "/data/models/tiny"


class Trap:
    def __reduce__(self):
        return (Path.touch, (Path("pickle_was_run"),))


def by_trl(place: Path, folder: Path) -> None:
    """TRL's own SFTTrainer on the base, and what its save_model leaves."""
    rows = Dataset.from_list([{"prompt": f"say w{i} =>", "completion": f" It is w{i}."} for i in range(8)])
    args = SFTConfig(
        str(folder),
        use_cpu=True,
        bf16=False,
        max_steps=2,
        save_steps=2,
        per_device_train_batch_size=4,
        learning_rate=0.1,
        report_to="none",
        disable_tqdm=True,
    )
    lora = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    trainer = SFTTrainer(str(place / "base"), args, train_dataset=rows, peft_config=lora)
    trainer.train()
    trainer.save_model()
    assert (folder / "training_args.bin").is_file() and (folder / "checkpoint-2" / CONFIG).is_file()


def by_peft(folder: Path, base: str, **settings) -> None:
    """An adapter that is far from its start, whose settings name `base`."""
    torch.manual_seed(3)
    model = get_peft_model(build_model(), LoraConfig(**{"r": 8, "lora_alpha": 16, "lora_dropout": 0.0} | settings))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05)
    model.save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    change(folder, base_model_name_or_path=base)


def by_llama_factory(place: Path, folder: Path) -> None:
    kinds = {"use_rslora": False, "use_dora": False, "modules_to_save": None, "inference_mode": False}
    by_peft(folder, FACTORY, target_modules=LINEAR, task_type="CAUSAL_LM", **kinds)
    results = {
        "epoch": 3.0,
        "total_flos": 1e9,
        "train_loss": 1.25,
        "train_runtime": 9.5,
        "train_steps_per_second": 1.0,
    }
    for name in ("all_results.json", "train_results.json"):
        (folder / name).write_text(json.dumps(results))
    log = {"current_steps": 10, "total_steps": 30, "loss": 2.5, "lr": 1e-4, "epoch": 1.0, "percentage": 33.33}
    (folder / "trainer_log.jsonl").write_text(
        json.dumps(log | {"elapsed_time": "0:00:03", "remaining_time": "0:06"}) + "\n"
    )
    (folder / "trainer_state.json").write_text(
        json.dumps({"global_step": 30, "log_history": [{"loss": 2.5, "step": 10}]})
    )
    (folder / "training_args.bin").write_bytes(pickle.dumps(Trap()))
    (folder / "training_loss.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (folder / "checkpoint-30").mkdir()
    (folder / "checkpoint-30" / "optimizer.pt").write_bytes(pickle.dumps(Trap()))


def by_unsloth(place: Path, folder: Path) -> None:
    by_peft(folder, UNSLOTH, target_modules=REGEX, task_type="CAUSAL_LM")
    mapping = {"base_model_class": "LlamaForCausalLM", "parent_library": "transformers.models.llama.modeling_llama"}
    change(folder, auto_mapping=mapping | {"unsloth_fixed": True}, inference_mode=True, loftq_config={})


def change(folder: Path, **settings) -> None:
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(config | settings))


THEIRS = {"trl": by_trl, "llama-factory": by_llama_factory, "unsloth": by_unsloth}


def launch(door, place: Path, stage: str, **changes):
    """Runs a stage by a YAML with the two lines of docs/interop.md; it moves the weights by next to nothing."""
    settings = SETTINGS[stage] | {"adapter_path": "theirs", "learning_rate": 1e-30} | changes
    settings = {key: value for key, value in settings.items() if value is not None}
    (place / "run.yaml").write_text(yaml.safe_dump(settings))
    return door(stage, ["--config", "run.yaml"], place)


def lora(folder: Path) -> dict[str, torch.Tensor]:
    return {name: weight for name, weight in load_file(folder / WEIGHTS).items() if "lora_" in name}


@pytest.mark.parametrize("stage", ["sft", "reward", "ppo"])
@pytest.mark.parametrize("maker", THEIRS)
def test_every_stage_starts_from_it(door, place, maker, stage):
    THEIRS[maker](place, place / "theirs")
    done = launch(door, place, stage)
    assert done.code == 0, done.err[-3000:]
    theirs, ours = lora(place / "theirs"), lora(place / "out")
    assert theirs.keys() == ours.keys() and all(weight.abs().max() > 0 for weight in theirs.values())
    for name, weight in theirs.items():
        torch.testing.assert_close(ours[name], weight, atol=1e-6, rtol=0)
    named = f"note: the adapter in theirs names the base {UNSLOTH}; it is put on base"
    assert (named in done.out) == (maker == "unsloth")
    # what it leaves names the base that it stands on: the next stage needs no model_name_or_path
    assert json.loads((place / "out" / CONFIG).read_text())["base_model_name_or_path"] == "base"
    assert not (place / "pickle_was_run").exists()


def test_the_next_stage_needs_no_base(door, place):
    by_unsloth(place, place / "theirs")
    assert launch(door, place, "sft").code == 0
    done = launch(door, place, "ppo", model_name_or_path=None, adapter_path="out", output_dir="next")
    assert done.code == 0, done.err[-3000:]
    assert json.loads((place / "next" / CONFIG).read_text())["base_model_name_or_path"] == "base"


@pytest.mark.parametrize(
    ("maker", "says"),
    [
        (by_unsloth, f"{UNSLOTH} as a folder here, and the Hub does not give it"),
        (by_llama_factory, f"belongs on the base {FACTORY}, which is not there.*model_name_or_path"),
    ],
)
def test_a_base_that_is_not_here_and_not_given_is_refused_in_a_sentence(door, place, maker, says):
    maker(place, place / "theirs")
    assert re.search(says, launch(door, place, "sft", model_name_or_path=None).error)


def test_a_reward_model_of_llama_factory_is_no_adapter_with_a_head(door, place):
    """Its value head lies beside the adapter of a language model, in a file that PEFT does not know."""
    by_llama_factory(place, place / "theirs")
    save_file({"v_head.summary.weight": torch.zeros(1, 32)}, place / "theirs" / "value_head.safetensors")
    rewards = [{"name": "learned", "path": "theirs"}]
    error = launch(door, place, "ppo", adapter_path="sft", rewards=rewards).error
    assert "'theirs' is an adapter of type CAUSAL_LM" in error and "recipes/reward.py" in error


@pytest.mark.parametrize(
    ("named", "given", "fits"),
    [
        ("unsloth/Qwen2.5-0.5B-Instruct-unsloth-bnb-4bit", "Qwen/Qwen2.5-0.5B-Instruct", True),
        ("unsloth/qwen2.5-0.5b-instruct-bnb-4bit", "Qwen/Qwen2.5-0.5B-Instruct", True),
        ("unsloth/Qwen2.5-0.5B", "Qwen/Qwen2.5-0.5B-Instruct", False),
        ("Qwen/Qwen2.5-0.5B-Instruct", "Qwen/Qwen2.5-0.5B-Instruct", True),
        ("org/model-8bit-4bit", "other/model", False),
        (None, "Qwen/Qwen2.5-0.5B-Instruct", True),
    ],
)
def test_which_hub_names_are_the_same_model(tmp_path, capsys, named, given, fits):
    (tmp_path / CONFIG).write_text(json.dumps({"base_model_name_or_path": named}))
    if not fits:
        with pytest.raises(UserError, match=f"was trained on the base {named}, not on {given}"):
            check_given_base(given, str(tmp_path))
        return
    check_given_base(given, str(tmp_path))
    assert ("note: the adapter in" in capsys.readouterr().out) == (named not in (None, given))
