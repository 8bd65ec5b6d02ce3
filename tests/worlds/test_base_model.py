"""The base model made on the spot: an ordinary model folder, the same bits each time, kept for the next run."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from pipeline.errors import UserError
from pipeline.worlds import BaseModelSettings, WorldSettings, field_notes
from pipeline.worlds.base_model import Row, _collate, make_base_model
from pipeline.worlds.prepare import prepare

WORLD = {
    "sft_rows": 5,
    "preference_rows": 5,
    "preference_heldout_rows": 5,
    "prompt_rows": 5,
    "heldout_rows": 5,
    "pretraining_texts": 128,
}
SIZES = {"vocab_size": 400, "hidden_size": 64, "intermediate_size": 64, "num_layers": 1, "num_heads": 2}


@pytest.fixture(scope="module")
def texts():
    world = WorldSettings(**WORLD)
    return field_notes.pretraining_texts(world, field_notes.make_data(world))


@pytest.fixture(scope="module")
def base(tmp_path_factory, texts):
    folder = tmp_path_factory.mktemp("base")
    return folder, make_base_model(folder, texts, BaseModelSettings(**SIZES), seed=1)


def test_an_ordinary_folder_with_three_special_tokens(base):
    folder, made = base
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"} <= {
        p.name for p in folder.iterdir()
    }
    assert (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 2)
    for config in (model.config, model.generation_config):
        assert (config.pad_token_id, config.bos_token_id, config.eos_token_id) == (0, 1, 2)
    assert model.config.vocab_size == len(tokenizer) == 400
    # by hand: embedding 400*64, one layer of 4*64*64 + 3*64*64 and two norms, one last norm
    assert made["parameters"] == model.num_parameters() == 400 * 64 + 7 * 64 * 64 + 3 * 64
    assert made["documents"] == 128


def test_the_tokens_of_a_prompt_begin_the_tokens_of_the_whole(base):
    tokenizer = AutoTokenizer.from_pretrained(base[0])
    for row in field_notes.make_data(WorldSettings(**WORLD))["sft_train"]:
        prompt = tokenizer(row["prompt"])["input_ids"]
        whole = tokenizer(row["prompt"] + row["completion"])["input_ids"]
        assert whole[: len(prompt)] == prompt
        assert not {0, 1, 2} & set(whole)


@pytest.mark.parametrize("text", ["", "At dusk.", " two  spaces\n", "水獺 🦦 café", "<pad"])
def test_any_text_survives_the_tokenizer(base, text):
    tokenizer = AutoTokenizer.from_pretrained(base[0])
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_it_learns(base, texts, tmp_path):
    longer = make_base_model(tmp_path, texts, BaseModelSettings(**SIZES, pretraining_epochs=6), seed=1)
    assert longer["loss"] < base[1]["loss"] < math.log(400) + 0.5
    assert longer["loss"] < 4.5  # log(400) = 5.99 knows nothing


def test_the_same_seed_makes_the_same_bits_and_touches_no_global_state(base, texts, tmp_path):
    torch.manual_seed(123)
    expected = torch.rand(3)
    torch.manual_seed(123)
    make_base_model(tmp_path, texts, BaseModelSettings(**SIZES), seed=1)
    assert torch.equal(torch.rand(3), expected)
    assert (tmp_path / "model.safetensors").read_bytes() == (base[0] / "model.safetensors").read_bytes()
    assert (tmp_path / "tokenizer.json").read_bytes() == (base[0] / "tokenizer.json").read_bytes()
    (tmp_path / "other").mkdir()
    make_base_model(tmp_path / "other", texts, BaseModelSettings(**SIZES), seed=2)
    first, second = (load_file(f / "model.safetensors") for f in (base[0], tmp_path / "other"))
    assert any(not torch.equal(first[name], second[name]) for name in first)


def test_pads_are_on_the_right_and_neither_they_nor_the_prompt_are_learned():
    ids, labels = _collate([Row([5, 6, 2], 1), Row([7, 0, 8, 2], 0)], pad=0)
    assert ids.tolist() == [[5, 6, 2, 0], [7, 0, 8, 2]]
    assert labels.tolist() == [[-100, 6, 2, -100], [7, 0, 8, 2]]  # a real token that equals the pad id still counts


def test_four_bit_loads(base):
    pytest.importorskip("bitsandbytes")
    from transformers import BitsAndBytesConfig

    quantized = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    model = AutoModelForCausalLM.from_pretrained(base[0], quantization_config=quantized, device_map="cpu")
    plain = AutoModelForCausalLM.from_pretrained(base[0])
    ids = torch.tensor([[10, 20, 30, 40]])
    with torch.no_grad():
        difference = (model(input_ids=ids).logits.float() - plain(input_ids=ids).logits).abs().max()
    assert 0 < difference < 1.0


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("hidden_size", 100, "multiple of 64"),
        ("intermediate_size", 0, "multiple of 64"),
        ("vocab_size", 258, "at least 300"),
        ("num_heads", 3, "even whole number"),
        ("num_layers", 0, "above 0"),
        ("pretraining_epochs", -1.0, "above 0"),
    ],
)
def test_sizes_that_cannot_be(key, value, message):
    with pytest.raises(UserError, match=message):
        BaseModelSettings(**{key: value})


def test_a_document_longer_than_the_context_is_refused(tmp_path, texts):
    with pytest.raises(UserError, match="raise context_length"):
        make_base_model(tmp_path, texts, BaseModelSettings(**SIZES, context_length=8), seed=1)


def test_prepare_makes_keeps_and_refuses(tmp_path, capsys):
    output = tmp_path / "runs" / "tiny"
    world, sizes = WorldSettings(output_dir=str(output), **WORLD), BaseModelSettings(**SIZES)
    (output / ".base.part").mkdir(parents=True)  # a run that was killed half-way
    (output / ".base.part" / "model.safetensors").write_text("torn")

    prepare(world, sizes)
    assert {p.name for p in output.iterdir()} == {"base", "data"}
    names = "sft_train preferences_train preferences_heldout prompts_train prompts_heldout".split()
    assert {p.name for p in (output / "data").glob("*.jsonl")} == {f"{name}.jsonl" for name in names}
    assert len((output / "data" / "sft_train.jsonl").read_text("utf-8").splitlines()) == 5
    before = {p: p.stat().st_mtime_ns for p in output.rglob("*")}

    prepare(world, sizes)
    assert "kept" in capsys.readouterr().out
    assert {p: p.stat().st_mtime_ns for p in output.rglob("*")} == before

    with pytest.raises(
        UserError, match=r"base exists and was made with other settings.*remove or rename.*--output_dir"
    ):
        prepare(world, BaseModelSettings(**SIZES, pretraining_epochs=2))
    with pytest.raises(UserError, match="data exists and was made with other settings"):
        prepare(WorldSettings(output_dir=str(output), **WORLD, seed=7), sizes)
    assert {p: p.stat().st_mtime_ns for p in output.rglob("*")} == before


def test_prepare_rebuilds_only_what_is_gone(tmp_path):
    world, sizes = WorldSettings(output_dir=str(tmp_path), **WORLD), BaseModelSettings(**SIZES)
    prepare(world, sizes)
    bits = (tmp_path / "base" / "model.safetensors").read_bytes()
    data_before = (tmp_path / "data" / "sft_train.jsonl").stat().st_mtime_ns
    for path in (tmp_path / "base").iterdir():
        path.unlink()
    prepare(world, sizes)
    assert (tmp_path / "base" / "model.safetensors").read_bytes() == bits
    assert (tmp_path / "data" / "sft_train.jsonl").stat().st_mtime_ns == data_before
    assert json.loads((tmp_path / "base" / "config.json").read_text())["model_type"] == "llama"


def test_prepare_names_a_missing_data_file(tmp_path):
    with pytest.raises(UserError, match="data_path .*nowhere.csv: No such file"):
        prepare(
            WorldSettings(world="e2e", data_path=str(tmp_path / "nowhere.csv"), output_dir=str(tmp_path)),
            BaseModelSettings(),
        )
    assert not list(tmp_path.iterdir())
