"""Merging: the whole model says what the adapter says, lies in a folder that plain Transformers reads, and nothing is
ever overwritten."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from conftest import build_model, build_tokenizer
from finished_runs import make_run
from safetensors.torch import load_file
from saved import make_adapter
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, GenerationConfig

from pipeline.config import ModelArguments
from pipeline.errors import UserError
from pipeline.models import loading as models
from pipeline.stages import merge as merging
from pipeline.stages.merge import MergeArguments, merge, prepare_generation, run_arguments

IDS = torch.randint(3, 259, (3, 20), generator=torch.Generator().manual_seed(1))


def make_project(base=None, kind="sft", config=None, **settings) -> Path:
    """runs/x/base and runs/x/run in the working directory, as a stage leaves it."""
    (base or build_model()).save_pretrained("runs/x/base")
    build_tokenizer().save_pretrained("runs/x/base")
    run = make_run(Path("runs/x/run"), kind, config={"output_dir": "runs/x/run"} | (config or {}))
    make_adapter("runs/x/base", run, value=0.05, scores=kind == "reward", **settings)
    build_tokenizer().save_pretrained(run)
    return run


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def to(output="runs/x/merged", **settings):
    return MergeArguments(run="runs/x/run", output=output, **settings)


@torch.no_grad()
def logprobs(model) -> torch.Tensor:
    """Of the tokens after the first, (N, T - 1); of a reward model the scores."""
    logits = model.eval()(input_ids=IDS).logits.float()
    if logits.dim() == 2:
        return logits
    each = torch.log_softmax(logits[:, :-1].double(), dim=-1)
    return torch.stack([each[:, t][range(len(IDS)), IDS[:, t + 1]] for t in range(IDS.shape[1] - 1)], dim=1)


def with_adapter(kind="causal", **settings):
    model = models.load_base(ModelArguments(**settings), kind, base="runs/x/base", tokenizer=build_tokenizer())
    return models.load_adapter(model, "runs/x/run")


def test_a_policy_becomes_a_whole_model(here, capsys):
    make_project()
    found = merge(to())
    model, adapter = AutoModelForCausalLM.from_pretrained("runs/x/merged"), with_adapter()
    wanted = logprobs(adapter)
    assert (logprobs(model) - wanted).abs().max() < 1e-5
    with adapter.disable_adapter():
        assert (logprobs(adapter) - wanted).abs().max() > 0.01  # without the adapter it would show
    assert found.dtype == torch.float32 and found.difference < 1e-5
    names = {path.name for path in Path("runs/x/merged").iterdir()}
    assert names == {"README.md", "config.json", "curves.png", "generation_config.json", "model.safetensors"} | {
        "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"
    }  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained("runs/x/merged")
    assert tokenizer("say red")["input_ids"] == build_tokenizer()("say red")["input_ids"]
    generation = GenerationConfig.from_pretrained("runs/x/merged")
    assert (generation.eos_token_id, generation.pad_token_id) == (2, 0)
    text = Path("runs/x/merged/README.md").read_text()
    assert "this is a whole model" in text and "transformers.AutoModelForCausalLM" in text and "peft" not in text[:200]
    assert "by at\nmost" in capsys.readouterr().out


def test_the_weights_by_hand(here):
    """W' = W + lora_alpha / r · B A; here alpha 32, r 4."""
    make_project()
    merge(to())
    layer = "model.layers.1.mlp.down_proj"
    before, after = load_file("runs/x/base/model.safetensors"), load_file("runs/x/merged/model.safetensors")
    adapter = load_file("runs/x/run/adapter_model.safetensors")
    a, b = (adapter[f"base_model.model.{layer}.lora_{x}.weight"].double() for x in "AB")
    wanted = before[f"{layer}.weight"].double() + 32 / 4 * b @ a
    assert torch.allclose(after[f"{layer}.weight"].double(), wanted, atol=1e-6)
    assert torch.equal(after["model.norm.weight"], before["model.norm.weight"]) and after.keys() == before.keys()


def test_a_reward_model_becomes_a_sequence_classifier(here):
    make_project(build_model(pad_token_id=None), kind="reward")
    merge(to())
    model = AutoModelForSequenceClassification.from_pretrained("runs/x/merged")
    assert (logprobs(model) - logprobs(with_adapter("scores"))).abs().max() < 1e-5
    assert model.config.num_labels == 1 and model.config.pad_token_id == 0
    adapter = load_file("runs/x/run/adapter_model.safetensors")
    assert torch.equal(model.score.weight, adapter["base_model.model.score.weight"])


def test_an_output_layer_that_is_the_embeddings(here):
    """The adapter changes the output layer alone; merged, the embeddings must stay as they are."""
    make_project(build_model(tie_word_embeddings=True), lora_target_modules=["lm_head", "q_proj"])
    merge(to())
    model = AutoModelForCausalLM.from_pretrained("runs/x/merged")
    assert (logprobs(model) - logprobs(with_adapter())).abs().max() < 1e-5
    embeddings = load_file("runs/x/base/model.safetensors")["model.embed_tokens.weight"]
    assert torch.equal(model.get_input_embeddings().weight, embeddings)
    assert not torch.equal(model.lm_head.weight, embeddings)


@pytest.mark.parametrize(("dtype", "tolerance"), [("bfloat16", 0.1), ("float16", 0.01)])
def test_16_bit(here, dtype, tolerance):
    make_project(config={"dtype": dtype})
    (summary := Path("runs/x/run/summary.json")).write_text(
        json.dumps({**json.loads(summary.read_text()), "dtype": dtype})
    )
    found = merge(to())
    model = AutoModelForCausalLM.from_pretrained("runs/x/merged")
    assert model.dtype == found.dtype == getattr(torch, dtype)
    assert (logprobs(model) - logprobs(with_adapter(dtype=dtype))).abs().max() < tolerance
    # what was trained in 16 bits can be merged in 32
    assert merge(to("runs/x/fine", dtype="float32")).dtype == torch.float32
    assert load_file("runs/x/fine/model.safetensors")["lm_head.weight"].dtype == torch.float32


@pytest.mark.parametrize("bits", ["load_in_4bit", "load_in_8bit"])
def test_a_quantized_base_is_dequantized_with_a_warning(here, capsys, bits):
    bitsandbytes = pytest.importorskip("bitsandbytes")
    base = build_model(hidden_size=256, intermediate_size=768, num_hidden_layers=1)
    make_project(base, config={bits: True})
    merge(to())
    assert "warning: the base was quantized in training" in capsys.readouterr().out
    model = AutoModelForCausalLM.from_pretrained("runs/x/merged")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert "quantization_config" not in json.loads(Path("runs/x/merged/config.json").read_text())
    # quantized layers also round what goes through them, to 8 or 16 bits, so the two are not equal to more digits
    assert (logprobs(model) - logprobs(with_adapter(**{bits: True}))).abs().max() < 0.05
    if bits == "load_in_4bit":
        layer, adapter = "model.layers.0.mlp.up_proj", load_file("runs/x/run/adapter_model.safetensors")
        coarse = models.load_base(ModelArguments(load_in_4bit=True), base="runs/x/base").get_submodule(layer).weight
        wanted = bitsandbytes.functional.dequantize_4bit(coarse.data, coarse.quant_state).double()
        a, b = (adapter[f"base_model.model.{layer}.lora_{x}.weight"].double() for x in "AB")
        merged = load_file("runs/x/merged/model.safetensors")[f"{layer}.weight"].double()
        assert torch.allclose(merged, wanted + 32 / 4 * b @ a, atol=1e-6)


def test_nothing_is_overwritten(here):
    make_project()
    Path("runs/x/merged").mkdir()
    Path("runs/x/merged/mine.txt").write_text("mine")
    with pytest.raises(UserError, match="already holds results and is never overwritten"):
        merge(to())
    assert [path.name for path in Path("runs/x/merged").iterdir()] == ["mine.txt"]
    with pytest.raises(UserError, match="never overwritten"):
        merge(to("runs/x/run"))


def test_what_differs_is_not_kept(here, monkeypatch):
    make_project()
    monkeypatch.setitem(merging.TOLERANCE, torch.float32, -1.0)
    with pytest.raises(RuntimeError, match="it was not kept"):
        merge(to())
    assert {path.name for path in Path("runs/x").iterdir()} == {"base", "run"}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda: {"run": "runs/x/base"}, "holds no adapter"),
        (lambda: {"run": "runs/x/nothing"}, "there is no such model folder"),
        (lambda: {"run": None}, "run is not set"),
        (lambda: {"output": None}, "output is not set"),
        (lambda: critic(), "is an adapter for TOKEN_CLS"),
    ],
)
def test_what_cannot_be_merged(here, change, says):
    make_project()
    with pytest.raises(UserError, match=says):
        merge(MergeArguments(**{"run": "runs/x/run", "output": "runs/x/merged"} | change()))
    assert not Path("runs/x/merged").exists()


def critic() -> dict:
    path = Path("runs/x/run/adapter_config.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"task_type": "TOKEN_CLS"}))
    return {}


def test_a_dtype_that_does_not_exist():
    with pytest.raises(UserError, match="^dtype: 'float8'"):
        MergeArguments(dtype="float8")


def test_a_runs_own_settings_cannot_switch_on_code_from_a_model(tmp_path):
    settings = {"trust_remote_code": True, "load_in_8bit": True, "dtype": "bfloat16"}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings))
    found = run_arguments(tmp_path, MergeArguments())
    assert not found.trust_remote_code and found.load_in_8bit and found.dtype == "bfloat16"
    assert run_arguments(tmp_path, MergeArguments(trust_remote_code=True)).trust_remote_code


def test_generation_stops_where_the_tokenizer_says():
    model, tokenizer = build_model(), build_tokenizer()
    model.generation_config = GenerationConfig(eos_token_id=7, do_sample=False, temperature=0.6)
    prepare_generation(model, tokenizer)
    found = model.generation_config
    assert (found.eos_token_id, found.pad_token_id, found.temperature) == ([2, 7], 0, 0.6)
    found.validate(strict=True)
