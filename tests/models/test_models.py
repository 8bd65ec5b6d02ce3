"""Model folders, stage folders and adapters: loaded right, or refused with the folder and the reason."""

import json
import shutil

import pytest
import torch
from conftest import build_model, build_tokenizer
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from saved import make_adapter
from transformers import AutoModelForCausalLM

from pipeline.config import ModelArguments
from pipeline.errors import UserError
from pipeline.models import loading as models
from pipeline.models import precision
from pipeline.models.folders import resolve_model, resolve_stage
from pipeline.safety.weights import fingerprint


@pytest.fixture
def project(tmp_path, tiny_model_folder, monkeypatch):
    """A working directory with runs/x/base and an adapter runs/x/sft that names its base by a relative path."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_model_folder, "runs/x/base")
    make_adapter("runs/x/base", "runs/x/sft")
    return tmp_path


IDS = torch.tensor([[5, 6, 7, 8]])


def test_resolve_stage_of_base_adapter_and_hub_name(project):
    assert resolve_stage("runs/x/base") == ("runs/x/base", None)
    assert resolve_stage("runs/x/sft") == ("runs/x/base", "runs/x/sft")
    assert resolve_stage("Qwen/Qwen2.5-0.5B-Instruct") == ("Qwen/Qwen2.5-0.5B-Instruct", None)


def test_a_relative_base_is_found_from_elsewhere_and_after_a_move(project, tmp_path, monkeypatch):
    monkeypatch.chdir("runs")
    assert resolve_stage("x/sft").base == str(project / "runs/x/base")
    monkeypatch.chdir(project)
    shutil.move("runs", "moved-runs")
    (project / "inner").mkdir()
    shutil.move("moved-runs", "inner/runs")
    assert resolve_stage("inner/runs/x/sft").base == str(project / "inner/runs/x/base")


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("runs/x/nothing", "there is no such model folder"),
        ("./nothing", "there is no such model folder"),
        ("a/b/c", "there is no such model folder"),
        ("runs/x", "holds no model"),
        ("runs/x/base/config.json", "is a file"),
    ],
)
def test_paths_without_a_model(project, path, says):
    with pytest.raises(UserError, match=says):
        resolve_stage(path)


def test_a_base_that_is_gone(project):
    shutil.rmtree("runs/x/base")
    with pytest.raises(UserError, match="belongs on the base runs/x/base, which is not there"):
        resolve_stage("runs/x/sft")


def test_pickled_weights_are_refused(project):
    state = load_file("runs/x/base/model.safetensors")
    (project / "runs/x/base/model.safetensors").unlink()
    torch.save(state, "runs/x/base/pytorch_model.bin")
    for act in (resolve_stage, lambda path: models.load_base(ModelArguments(model_name_or_path=path))):
        with pytest.raises(UserError, match=r"weights as a pickle \(pytorch_model.bin\)"):
            act("runs/x/base")
    (project / "runs/x/base/pytorch_model.bin").unlink()
    with pytest.raises(UserError, match="no model weights"):
        resolve_stage("runs/x/base")
    state = load_file("runs/x/sft/adapter_model.safetensors")
    (project / "runs/x/sft/adapter_model.safetensors").unlink()
    torch.save(state, "runs/x/sft/adapter_model.bin")
    with pytest.raises(UserError, match=r"weights as a pickle \(adapter_model.bin\)"):
        resolve_stage("runs/x/sft")


def test_model_and_adapter_together(project):
    args = ModelArguments(model_name_or_path="runs/x/base", adapter_path="runs/x/sft")
    assert resolve_model(args) == ("runs/x/base", "runs/x/sft")
    assert resolve_model(ModelArguments(adapter_path="runs/x/sft")) == ("runs/x/base", "runs/x/sft")
    assert resolve_model(ModelArguments(model_name_or_path="runs/x/sft")) == ("runs/x/base", "runs/x/sft")
    with pytest.raises(UserError, match="model_name_or_path is not set"):
        resolve_model(ModelArguments())
    for base in ("runs/x/base", None):
        with pytest.raises(UserError, match="adapter_path runs/x/base holds no LoRA adapter"):
            resolve_model(ModelArguments(model_name_or_path=base, adapter_path="runs/x/base"))


def test_an_adapter_of_another_base_is_refused(project):
    build_model(seed=1).save_pretrained("runs/y/base")
    args = ModelArguments(model_name_or_path="runs/y/base", adapter_path="runs/x/sft")
    with pytest.raises(UserError, match="trained on the base runs/x/base, not on runs/y/base"):
        resolve_model(args)
    shutil.rmtree("runs/y")
    shutil.copytree("runs/x/base", "runs/y/base")  # the same weights in another place are the same base
    assert resolve_model(args) == ("runs/y/base", "runs/x/sft")


def test_a_base_that_was_trained_again_under_its_adapter_is_noticed(project):
    then = fingerprint("runs/x/base")
    (project / "runs/x/sft/summary.json").write_text(json.dumps({"base_fingerprint": then}))
    assert resolve_model(ModelArguments(adapter_path="runs/x/sft")).adapter == "runs/x/sft"
    build_model(seed=1).save_pretrained("runs/x/base")
    assert fingerprint("runs/x/base") != then
    with pytest.raises(UserError, match="trained on other weights than now lie in its base runs/x/base"):
        resolve_model(ModelArguments(adapter_path="runs/x/sft"))


def test_an_adapter_of_other_shapes_is_refused(project):
    build_model(hidden_size=16, num_hidden_layers=1).save_pretrained("runs/y/base")
    args = ModelArguments(model_name_or_path="runs/y/base")
    with pytest.raises(UserError, match="runs/x/sft does not fit its base runs/y/base"):
        models.load_adapter(models.load_base(args), "runs/x/sft")
    with pytest.raises(UserError, match="runs/x/sft does not fit the base runs/y/base"):
        models.start_score_adapter(models.load_base(args, "scores"), args, "runs/x/sft")


def test_an_adapter_with_weights_missing_is_refused(project):
    path = "runs/x/sft/adapter_model.safetensors"
    state = load_file(path)
    state.pop(sorted(state)[0])
    save_file(state, path)
    with pytest.raises(UserError, match="does not fit its base"):
        models.load_adapter(models.load_base(ModelArguments(model_name_or_path="runs/x/base")), "runs/x/sft")


def test_loading_an_adapter_gives_what_peft_gives(project):
    args = ModelArguments(adapter_path="runs/x/sft")
    ours = models.load_adapter(models.load_base(args), "runs/x/sft")
    theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("runs/x/base"), "runs/x/sft")
    base = models.load_base(args)
    with torch.no_grad():
        assert torch.equal(ours(IDS).logits, theirs(IDS).logits)
        assert not torch.allclose(ours(IDS).logits, base(IDS).logits, atol=1e-3)
    trainable = models.load_adapter(base, "runs/x/sft", trainable=True)
    names = [name for name, parameter in trainable.named_parameters() if parameter.requires_grad]
    assert names and all("lora_" in name for name in names)


def test_the_tokenizer_of_a_stage_is_its_own_or_its_bases(project):
    assert models.load_tokenizer("runs/x/sft").chat_template == build_tokenizer().chat_template
    own = build_tokenizer()
    own.chat_template = "another"
    own.save_pretrained("runs/x/sft")
    assert models.load_tokenizer("runs/x/sft").chat_template == "another"


@pytest.mark.parametrize(("extra", "pad"), [(["<|endoftext|>", "<unk>"], "<|endoftext|>"), ([], "</s>")])
def test_a_missing_pad_token_is_replaced_and_explained(tmp_path, capsys, extra, pad):
    tokenizer = build_tokenizer()
    build_model().save_pretrained(tmp_path)
    tokenizer.pad_token = None
    tokenizer.add_tokens(extra)
    tokenizer.save_pretrained(tmp_path)
    text = (tmp_path / "tokenizer.json").read_text().replace('"<pad>"', '"<nothing>"')
    (tmp_path / "tokenizer.json").write_text(text)
    found = models.load_tokenizer(str(tmp_path))
    assert found.pad_token == pad
    assert f"padding with {pad}" in capsys.readouterr().out


def test_a_tokenizer_without_an_end_token_is_refused(tmp_path):
    build_model().save_pretrained(tmp_path)
    tokenizer = build_tokenizer()
    tokenizer.eos_token = None
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="no end-of-sequence token"):
        models.load_tokenizer(str(tmp_path))


def test_no_tokenizer_at_all(tmp_path):
    build_model().save_pretrained(tmp_path)
    with pytest.raises(UserError, match="no usable tokenizer"):
        models.load_tokenizer(str(tmp_path))


def test_a_tokenizer_larger_than_the_model_is_refused(project):
    tokenizer = build_tokenizer()
    tokenizer.add_tokens(["<new>"])
    with pytest.raises(UserError, match="260 tokens but the model only 259 embeddings"):
        models.load_base(ModelArguments(model_name_or_path="runs/x/base"), tokenizer=tokenizer)


def test_a_broken_config_and_an_unknown_hub_name(project):
    (project / "runs/x/base/config.json").write_text("{")
    with pytest.raises(UserError, match="runs/x/base/config.json is not JSON"):
        models.load_base(ModelArguments(model_name_or_path="runs/x/base"))
    with pytest.raises(UserError, match="no usable model somebody/nothing"):
        models.load_base(ModelArguments(model_name_or_path="somebody/nothing"))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_precision(project, dtype):
    model = models.load_base(ModelArguments(model_name_or_path="runs/x/base", dtype=dtype))
    assert {parameter.dtype for parameter in model.parameters()} == {getattr(torch, dtype)}


def test_auto_precision_on_a_cpu_is_float32(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert precision.resolve_dtype(ModelArguments()) is torch.float32


def test_lora_covers_every_linear_layer_but_the_heads(project):
    wanted = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    for task, for_ in (("CAUSAL_LM", "causal"), ("SEQ_CLS", "scores")):
        args = ModelArguments(model_name_or_path="runs/x/base")
        model = get_peft_model(models.load_base(args, for_), models.lora_config(args, task))
        found = {name.split(".")[-1] for name, module in model.named_modules() if hasattr(module, "lora_A")}
        assert found == wanted
        trainable = {name for name, p in model.named_parameters() if p.requires_grad and "lora_" not in name}
        head = {"base_model.model.score.modules_to_save.default.weight"} if task == "SEQ_CLS" else set()
        assert trainable == head


def test_a_fresh_score_head_gives_small_scores_that_differ(tmp_path):
    build_model(hidden_size=128).save_pretrained(tmp_path)
    torch.manual_seed(0)
    model = models.load_base(ModelArguments(model_name_or_path=str(tmp_path)), "scores", tokenizer=build_tokenizer())
    # Inputs of the head have root mean square 1, so scores have a standard deviation of 0.1 * sqrt(128 / 129)
    assert model.score.weight.std().item() == pytest.approx(0.1 / 129**0.5, rel=0.2)
    with torch.no_grad():
        scores = model(torch.randint(3, 259, (64, 10))).logits.squeeze(-1)
    assert scores.std() < 0.2 and scores.abs().max() < 0.5
    assert len(scores.unique()) == 64


def test_the_score_adapter_starts_as_the_sft_adapter(project):
    args = ModelArguments(adapter_path="runs/x/sft", lora_r=64)  # the rank comes from the adapter, not from here
    model = models.start_score_adapter(models.load_base(args, "scores"), args, "runs/x/sft")
    sft = load_file("runs/x/sft/adapter_model.safetensors")
    state = {name.replace(".default", ""): p for name, p in model.named_parameters() if "lora_" in name}
    assert set(state) == set(sft)
    assert all(torch.equal(state[name], sft[name]) for name in sft)
    assert all(p.requires_grad for p in state.values())


def test_a_reward_model_without_its_head_is_refused(project):
    make_adapter("runs/x/base", "runs/x/reward", scores=True)
    scorer, tokenizer = models.load_scorer("runs/x/reward")
    saved = load_file("runs/x/reward/adapter_model.safetensors")
    assert torch.equal(scorer.base_model.model.score.weight, saved["base_model.model.score.weight"])
    saved.pop("base_model.model.score.weight")
    save_file(saved, "runs/x/reward/adapter_model.safetensors")
    for path in ("runs/x/reward", "runs/x/sft"):
        with pytest.raises(UserError, match=f"{path} is no reward model: .*saved without a score head"):
            models.load_scorer(path)
    with pytest.raises(UserError, match="runs/x/base is no reward model"):
        models.load_scorer("runs/x/base")


def test_scores_do_not_depend_on_padding(project):
    make_adapter("runs/x/base", "runs/x/reward", scores=True)
    scorer, tokenizer = models.load_scorer("runs/x/reward")
    texts = ["a short one</s>", "a rather longer one than that</s>"]
    batch = tokenizer(texts, return_tensors="pt", padding=True)
    keys = ("input_ids", "attention_mask")
    with torch.no_grad():
        both = scorer(**{key: batch[key] for key in keys}).logits.squeeze(-1)
        single = [scorer(tokenizer(text, return_tensors="pt")["input_ids"]).logits.item() for text in texts]
    torch.testing.assert_close(both, torch.tensor(single), atol=1e-5, rtol=1e-5)
    assert single[0] != single[1]


def test_training_weights_are_float32_on_a_16_bit_base(project):
    args = ModelArguments(model_name_or_path="runs/x/base", dtype="bfloat16")
    model = models.start_score_adapter(models.load_base(args, "scores", tokenizer=build_tokenizer()), args, None)
    precision.train_in_float32(model)
    for parameter in model.parameters():
        assert parameter.dtype == (torch.float32 if parameter.requires_grad else torch.bfloat16)
    assert model(IDS).logits.dtype == torch.float32


@pytest.mark.slow
@pytest.mark.parametrize("bits", ["load_in_4bit", "load_in_8bit"])
def test_a_quantised_base(tmp_path, bits):
    pytest.importorskip("bitsandbytes")
    build_model(hidden_size=256, intermediate_size=768, num_hidden_layers=1).save_pretrained(tmp_path)
    args = ModelArguments(model_name_or_path=str(tmp_path), **{bits: True})
    whole = models.load_base(ModelArguments(model_name_or_path=str(tmp_path)))
    quantised = models.load_base(args)
    assert type(quantised.model.layers[0].mlp.up_proj).__module__.startswith("bitsandbytes")
    with torch.no_grad():
        near, exact = quantised(IDS).logits.float().cpu(), whole(IDS).logits
    assert (near - exact).norm() / exact.norm() < 0.2
    scores = models.load_base(args, "scores", tokenizer=build_tokenizer())
    assert isinstance(scores.score, torch.nn.Linear) and scores.score.weight.dtype.is_floating_point


def test_quantisation_without_bitsandbytes_says_what_to_install(monkeypatch):
    import builtins

    real = builtins.__import__
    monkeypatch.setattr(
        builtins,
        "__import__",
        lambda name, *a, **k: (_ for _ in ()).throw(ImportError()) if name == "bitsandbytes" else real(name, *a, **k),
    )
    with pytest.raises(UserError, match="load_in_4bit needs bitsandbytes.*pip install"):
        precision.quantization(ModelArguments(load_in_4bit=True))
