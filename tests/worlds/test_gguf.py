"""A base read from a GGUF file: the same model as the one that was written, checked before it counts as made."""

import dataclasses
import hashlib
import zipfile
from pathlib import Path

import pytest
import torch
from gguf import GGUFWriter
from llama_converter import interleaved
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from pipeline.errors import UserError
from pipeline.worlds.base import BaseModelSettings, WorldSettings
from pipeline.worlds.gguf import GGUFSettings, read_base
from pipeline.worlds.prepare import prepare

LETTERS = [chr(i) for i in range(33, 127)] + ["Ġ", "Ċ"]  # bytes as GPT-2's tokenizer writes them
TOKENS = ["<end>", *LETTERS, "ab"]


def small_model(seed: int = 0) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(TOKENS),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=False,
        rms_norm_eps=1e-5,
    )
    return LlamaForCausalLM(config).eval()


def write_gguf(model: LlamaForCausalLM, path: Path) -> Path:
    config, weights = model.config, model.state_dict()
    writer = GGUFWriter(str(path), "llama")
    writer.add_name("small")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(TOKENS)
    writer.add_token_types([3] + [1] * (len(TOKENS) - 1))  # control, normal
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    writer.add_pad_token_id(0)
    names = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}
    names["lm_head.weight"] = "output.weight"
    layer = {
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
    }
    for i in range(config.num_hidden_layers):
        names |= {f"model.layers.{i}.{ours}.weight": f"blk.{i}.{theirs}.weight" for ours, theirs in layer.items()}
    for ours, theirs in names.items():
        weight = weights[ours]
        if "attn_q" in theirs:
            weight = interleaved(weight, config.num_attention_heads)
        if "attn_k" in theirs:
            weight = interleaved(weight, config.num_key_value_heads)
        writer.add_tensor(theirs, weight.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return write_gguf(small_model(), tmp_path_factory.mktemp("gguf") / "small.gguf")


def settings(file, **others) -> GGUFSettings:
    return GGUFSettings(gguf=str(file), max_perplexity=10_000, save_dtype="float32", **others)


def test_a_file_of_ones_own_gives_the_model_that_it_was_written_from(file, tmp_path):
    package = {"gguf_package": "other==1", "gguf_sha256": "0" * 64, "gguf_license": "mit", "parameters": 7}
    said = read_base(tmp_path, settings(file, **package))  # what the recipe says of its package is not of this file
    found = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    ids = torch.randint(1, len(TOKENS), (2, 40), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(found(ids).logits, small_model()(ids).logits, rtol=0, atol=1e-5)
    assert "0.1 M parameters" in said
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.decode(tokenizer("a plumb line")["input_ids"]) == "a plumb line"
    assert not hasattr(found.config, "quantization_config")  # its weights are not packed any more
    assert (tmp_path / "model.safetensors").is_file()
    assert not list(tmp_path.glob("download*"))
    card = (tmp_path / "README.md").read_text()
    assert 'license: "unknown"' in card
    assert "other==1" not in card
    assert "small.gguf" in card


def test_bfloat16_is_half_as_large(file, tmp_path):
    for dtype in ("float32", "bfloat16"):
        (tmp_path / dtype).mkdir()
        read_base(tmp_path / dtype, GGUFSettings(gguf=str(file), max_perplexity=10_000, save_dtype=dtype))
    sizes = [(tmp_path / dtype / "model.safetensors").stat().st_size for dtype in ("float32", "bfloat16")]
    assert sizes[1] < 0.6 * sizes[0]
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "bfloat16")
    assert loaded.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("others", "words"),
    [
        ({"parameters": 7}, "parameters, not 7"),
        ({"max_perplexity": 1.5}, "above max_perplexity 1.5"),
    ],
)
def test_a_model_that_is_not_the_one_wanted_is_refused(file, index, tmp_path, others, words):
    package = {"gguf_package": "carrier==1.0", "gguf_sha256": wheel(index, file), "max_perplexity": 10_000}
    base = tmp_path / "base"
    base.mkdir()
    with pytest.raises(UserError, match=words):
        read_base(base, GGUFSettings(**package | others))
    assert not (base / "model.safetensors").exists()


def test_files_that_are_no_gguf_are_refused(tmp_path):
    with pytest.raises(UserError, match="there is no such file"):
        read_base(tmp_path, settings(tmp_path / "none.gguf"))
    (tmp_path / "text.gguf").write_text("hello")
    with pytest.raises(UserError, match="is not a GGUF file"):
        read_base(tmp_path, settings(tmp_path / "text.gguf"))


def test_a_damaged_file_is_refused_in_one_sentence(file, tmp_path):
    (tmp_path / "half.gguf").write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(UserError, match=r"half\.gguf cannot be read as a language model"):
        read_base(tmp_path, settings(tmp_path / "half.gguf"))
    (tmp_path / "head.gguf").write_bytes(b"GGUF" + b"\x07" * 60)
    with pytest.raises(UserError, match=r"head\.gguf cannot be read as a language model"):
        read_base(tmp_path, settings(tmp_path / "head.gguf"))


# --- from a package -------------------------------------------------------------------------------------------------
def wheel(folder: Path, *files: Path) -> str:
    """A package `carrier` with `files` in it, in `folder`. Returns the SHA-256 of its wheel."""
    path = folder / "carrier-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for i, file in enumerate(files):
            archive.write(file, f"carrier/{i}-{file.name}")
        archive.writestr("carrier-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: carrier\nVersion: 1.0\n")
        archive.writestr("carrier-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr("carrier-1.0.dist-info/RECORD", "")
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A folder that stands in for the package index: pip finds wheels in it and nowhere else."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    return folder


def from_package(sha256: str) -> GGUFSettings:
    return GGUFSettings(gguf_package="carrier==1.0", gguf_sha256=sha256, max_perplexity=10_000)


def test_a_package_says_where_it_is_from_and_under_which_license(file, index, tmp_path):
    base = tmp_path / "base"
    base.mkdir()
    said = {"gguf_license": "apache-2.0", "gguf_source": "maker/small", "parameters": small_model().num_parameters()}
    read_base(base, dataclasses.replace(from_package(wheel(index, file)), **said))
    card = (base / "README.md").read_text()
    assert 'license: "apache-2.0"' in card
    assert "Source: maker/small." in card


def test_a_package_is_downloaded_and_only_its_file_is_read(file, index, tmp_path):
    base = tmp_path / "base"
    base.mkdir()
    read_base(base, from_package(wheel(index, file)))
    assert (base / "model.safetensors").is_file()
    assert not (base / "download").exists()
    assert "carrier==1.0" in (base / "README.md").read_text()


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("none", "the package index has none, or is out of reach"),
        ("other", "is not the file that gguf_sha256 names"),
        ("two", "holds 2 GGUF files"),
    ],
)
def test_what_a_package_lacks_is_said_in_one_sentence_and_nothing_is_left(file, index, tmp_path, case, words):
    sha256 = "0" * 64
    if case != "none":
        found = wheel(index, file, file) if case == "two" else wheel(index, file)
        sha256 = found if case == "two" else sha256
    world = WorldSettings(world="instructions", output_dir=str(tmp_path / "run"))
    with pytest.raises(UserError, match=words):
        prepare(world, BaseModelSettings(), from_package(sha256))
    assert not (tmp_path / "run" / "base").exists()
    assert not (tmp_path / "run" / "data").exists()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"gguf_package": "b"}, "name==version"),
        ({"gguf_package": "b==1"}, "gguf_sha256"),
        ({"gguf_package": "b==1", "gguf_sha256": "abc"}, "64 hexadecimal digits"),
        ({"save_dtype": "int8"}, "float32 or bfloat16"),
        ({"max_perplexity": 0.5}, "above 1"),
    ],
)
def test_settings_that_cannot_be_meant(given, words):
    with pytest.raises(UserError, match=words):
        GGUFSettings(**given)


def test_a_world_that_trains_no_base_asks_for_one(tmp_path):
    with pytest.raises(UserError, match="gguf_package"):
        prepare(WorldSettings(world="instructions", output_dir=str(tmp_path)), BaseModelSettings(), GGUFSettings())
