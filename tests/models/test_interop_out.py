"""An adapter that a stage of ours has trained, taken by TRL, by PEFT and by llama.cpp: the code of docs/interop.md."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import llama_converter
import pytest
import torch
from datasets import Dataset
from gguf import GGUFReader
from peft import AutoPeftModelForCausalLM
from safetensors.torch import load_file
from short_runs import noisy, prompts_file, run_ppo
from transformers import AutoModelForCausalLM

PAGE = Path(__file__).parents[2] / "docs" / "interop.md"
IDS = torch.tensor([[10, 20, 30, 40, 50, 60]])
ROWS = [{"prompt": f"say w{i} =>\n", "completion": f" It is w{i}."} for i in range(8)]
WEIGHTS = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def runs(tmp_path_factory, tiny_model_folder) -> Path:
    """A folder with runs/tiny/base, and runs/tiny/ppo and runs/tiny/other: adapters that PPO has trained on it."""
    place = tmp_path_factory.mktemp("interop")
    shutil.copytree(tiny_model_folder, place / "runs/tiny/base")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        for name, seed in (("ppo", 3), ("other", 4)):
            rewards = [{"name": noisy}]  # whatever it learns, it moves
            run_ppo(Path("runs/tiny", name), Path("runs/tiny/base"), prompts_file(place), rewards, None, seed=seed)
    return place


@pytest.fixture
def here(runs, monkeypatch, tmp_path) -> Path:
    shutil.copytree(runs, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "runs/tiny"


def block(title: str, **names):
    """Runs the Python of one section of the page; what it has named after that."""
    section = PAGE.read_text("utf-8").split(f"\n## {title}\n")[1].split("\n## ")[0]
    for code in re.findall(r"```python\n(.*?)```", section, re.DOTALL):
        exec(code, names)
    return names


@torch.no_grad()
def logits(model) -> torch.Tensor:
    return model.eval()(IDS).logits


def same(found, wanted) -> None:
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)


def moved(folder: Path, start: Path) -> set[str]:
    """Names of the saved weights that are not those that training began with."""
    old, new = load_file(start / WEIGHTS), load_file(folder / WEIGHTS)
    assert old.keys() == new.keys()
    return {name for name in old if not torch.equal(old[name], new[name])}


def test_the_adapter_does_something(here):
    """Else nothing below would show anything."""
    whole, bare = (kind.from_pretrained(path) for kind, path in (
        (AutoPeftModelForCausalLM, here / "ppo"), (AutoModelForCausalLM, here / "base")
    ))  # fmt: skip
    assert (logits(whole) - logits(bare)).abs().max() > 1e-3


def test_trl_goes_on_with_sft(here):
    found = block("On with TRL's SFTTrainer", rows=Dataset.from_list(ROWS))
    assert moved(here / "trl-sft", here / "ppo")
    same(logits(AutoPeftModelForCausalLM.from_pretrained("runs/tiny/trl-sft")), logits(found["trainer"].model))
    base = load_file(here / "base" / "model.safetensors")
    inside = dict(found["trainer"].model.get_base_model().named_parameters())
    for name, weight in base.items():  # what is shared by all adapters stayed as it was
        own = inside.get(name, inside.get(name.replace(".weight", ".base_layer.weight")))
        assert torch.equal(own, weight), name


def test_trl_goes_on_with_grpo(here):
    rows = Dataset.from_list([{"prompt": row["prompt"]} for row in ROWS])
    found = block("On with TRL's GRPOTrainer", rows=rows)
    assert moved(here / "trl-grpo", here / "ppo")
    logged = [row for row in found["trainer"].state.log_history if "reward" in row]
    assert logged and all(row["reward"] == row["reward"] for row in logged)


def test_peft_merges_it(here):
    found = block("Merged by PEFT")
    same(logits(AutoModelForCausalLM.from_pretrained("runs/tiny/whole")), logits(
        AutoPeftModelForCausalLM.from_pretrained("runs/tiny/ppo")
    ))  # fmt: skip
    assert not hasattr(found["whole"], "peft_config")


def test_peft_adds_two_with_weights(here):
    """By hand: the weight of a layer is W + 0.7 s B₁A₁ + 0.3 s B₂A₂ with s = α/r."""
    found = block("Two adapters added with weights")
    name = "model.layers.0.self_attn.q_proj"
    weights = [load_file(here / which / WEIGHTS) for which in ("ppo", "other")]
    config = found["model"].peft_config["default"]
    wanted = load_file(here / "base" / "model.safetensors")[f"{name}.weight"].clone()
    for part, each in zip((0.7, 0.3), weights, strict=True):
        a, b = (each[f"base_model.model.{name}.lora_{x}.weight"] for x in "AB")
        assert b.abs().max() > 0
        wanted += part * config.lora_alpha / config.r * b @ a
    whole = found["model"].merge_and_unload()
    same(whole.get_submodule(name).weight, wanted)


def test_llama_cpp_converts_it(here):
    """The matrices of the GGUF are ours; in a Llama llama.cpp has another order of the rows of query and key."""
    command = [sys.executable, str(llama_converter.converter()), "--base", "runs/tiny/base", "--outfile", "ppo.gguf"]
    done = subprocess.run([*command, "runs/tiny/ppo"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    read = GGUFReader("ppo.gguf")
    config = AutoPeftModelForCausalLM.from_pretrained("runs/tiny/ppo").peft_config["default"]
    assert read.fields["adapter.lora.alpha"].contents() == config.lora_alpha
    found = {tensor.name: torch.from_numpy(tensor.data.copy()) for tensor in read.tensors}
    ours = load_file(here / "ppo" / WEIGHTS)
    assert len(found) == len(ours) > 0
    layers = {"self_attn.q_proj": ("attn_q", 4), "self_attn.k_proj": ("attn_k", 2), "self_attn.v_proj": ("attn_v", 0)}
    layers |= {"self_attn.o_proj": ("attn_output", 0), "mlp.down_proj": ("ffn_down", 0), "mlp.up_proj": ("ffn_up", 0)}
    for i in range(2):
        for name, (theirs, heads) in layers.items():
            a, b = (ours[f"base_model.model.model.layers.{i}.{name}.lora_{x}.weight"] for x in "AB")
            product = llama_converter.interleaved(b @ a, heads) if heads else b @ a
            a, b = (found[f"blk.{i}.{theirs}.weight.lora_{x}"] for x in "ab")
            same(b @ a, product)
