"""Processors without units for 16 bits: nothing is computed in them unasked, and who asks is told what it costs."""

import ast
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import toy
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline import config
from pipeline.config import ModelArguments, SFTStage
from pipeline.models import loading as models
from pipeline.models import precision
from pipeline.ppo import PPOConfig
from pipeline.worlds import BaseModelSettings, WorldSettings, field_notes
from pipeline.worlds.base_model import Muon, make_base_model, orthogonal
from rewards import Learned, processor

ROOT = Path(__file__).resolve().parents[2]
# Under these PyTorch multiplies as on a processor with AVX2 alone, and as on one with AVX512 but not its bfloat16
AVX2 = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}
AVX512 = {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE"}
HALVES = (torch.bfloat16, torch.float16)


class Products(TorchDispatchMode):
    """Notes the precision of every product of matrices that is made inside."""

    names = ("mm", "addmm", "bmm", "baddbmm", "mv", "linear", "_scaled_dot_product_flash_attention_for_cpu")

    def __init__(self):
        super().__init__()
        self.seen: set[torch.dtype] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func.overloadpacket.__name__ in self.names:
            self.seen.add((out[0] if isinstance(out, tuple) else out).dtype)
        return out


@pytest.fixture
def no_units(monkeypatch):
    """The processor's own list of what it has is empty."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    config.tell_cost.cache_clear()


@pytest.fixture
def all_units(monkeypatch):
    """As on a processor with AMX, whatever this one has."""
    found = dict.fromkeys(("avx512_bf16", "amx_bf16", "avx512_fp16"), True)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found)
    for name in ("bf16", "fp16"):
        monkeypatch.setattr(torch.ops.mkldnn, f"_is_mkldnn_{name}_supported", lambda: True)
    for variable in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"):
        monkeypatch.delenv(variable, raising=False)
    config.tell_cost.cache_clear()


# ------------------------------------------------------------ what the processor has
@pytest.mark.skipif(platform.machine() != "x86_64", reason="the variables are about x86")
@pytest.mark.parametrize("limit", [AVX2, AVX512], ids=["avx2", "avx512"])
def test_the_variables_that_keep_pytorch_from_newer_instructions_are_heeded(limit):
    code = (
        "import runpy, torch\n"
        f"found = runpy.run_path({str(ROOT / 'rewards/processor.py')!r})\n"
        "print(*(found['has_units'](getattr(torch, x)) for x in ('bfloat16', 'float16', 'float32')))\n"
        "print(found['note']('dtype: bfloat16', torch.bfloat16))"
    )
    done = subprocess.run([sys.executable, "-c", code], env=os.environ | limit, capture_output=True, text=True)
    has, note = done.stdout.splitlines()
    assert has == "False False True", done.stderr
    pattern = (
        r"note: dtype: bfloat16: this processor has no bfloat16 units, and a product of matrices takes \d+ times as "
        r"long as in float32 \(measured now\)"
    )
    assert re.fullmatch(pattern, note)


def test_what_the_chip_has_counts(all_units, monkeypatch):
    assert all(processor.has_units(dtype) for dtype in (*HALVES, torch.float32, torch.float64))
    assert processor.note("dtype: bfloat16", torch.bfloat16) is None
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_f": True, "avx512_bf16": False})
    assert not any(processor.has_units(dtype) for dtype in HALVES)


# ------------------------------------------------------------ base models
def base_model(folder: Path, **settings) -> set[torch.dtype]:
    """The precisions of the products while a small base is made in `folder`."""
    rows = dict.fromkeys(("sft_rows", "preference_rows", "preference_heldout_rows", "prompt_rows", "heldout_rows"), 5)
    world = WorldSettings(**rows, pretraining_texts=64)
    texts = field_notes.pretraining_texts(world, field_notes.make_data(world))
    sizes = {"vocab_size": 400, "hidden_size": 64, "intermediate_size": 64, "num_layers": 1, "num_heads": 2}
    folder.mkdir()
    with Products() as products:
        make_base_model(folder, texts, BaseModelSettings(**sizes, **settings), seed=1)
    return products.seen


def test_a_base_is_made_without_a_product_in_16_bits(tmp_path, no_units, capsys):
    assert base_model(tmp_path / "base") == {torch.float32}
    assert "no bfloat16 units" not in capsys.readouterr().out


def test_with_units_the_passes_are_in_16_bits_and_the_optimizer_is_not(tmp_path, all_units):
    assert base_model(tmp_path / "base") == {torch.float32, torch.bfloat16}
    assert base_model(tmp_path / "exact", pretraining_bf16=False) == {torch.float32}


def test_who_asks_for_16_bits_has_them_and_is_told(tmp_path, no_units, capsys):
    assert torch.bfloat16 in base_model(tmp_path / "base", pretraining_bf16=True)
    assert capsys.readouterr().out.startswith("note: pretraining_bf16: true: this processor has no bfloat16 units")


def test_muon_steps_as_pytorchs_does():
    """The same up to the rounding of bfloat16, which keeps eight bits; wide, tall and square matrices, three steps."""
    torch.manual_seed(0)
    ours = [torch.nn.Parameter(torch.randn(shape)) for shape in ((24, 8), (8, 24), (16, 16))]
    theirs = [torch.nn.Parameter(p.detach().clone()) for p in ours]
    starts = [p.detach().clone() for p in ours]
    settings = {"lr": 0.02, "weight_decay": 0.1, "momentum": 0.9}
    optimizers = Muon(ours, **settings), torch.optim.Muon(theirs, **settings, adjust_lr_fn="match_rms_adamw")
    for _ in range(3):
        for mine, other in zip(ours, theirs, strict=True):
            mine.grad = torch.randn(mine.shape)
            other.grad = mine.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    for mine, other, start in zip(ours, theirs, starts, strict=True):
        assert (mine - other).norm() < 0.02 * (other - start).norm()
        assert not torch.equal(mine, other)


@pytest.mark.parametrize("shape", [(5, 3), (3, 5), (4, 4)])
def test_orthogonal_does_to_singular_values_what_the_polynomial_says(shape):
    """s <- a s + b s³ + c s⁵, five times, from s over the norm of the matrix (Jordan's post on Muon)."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = np.random.default_rng(0).normal(size=shape)
    left, values, right = np.linalg.svd(x, full_matrices=False)
    values = values / np.linalg.norm(x)
    for _ in range(5):
        values = a * values + b * values**3 + c * values**5
    found = orthogonal(torch.tensor(x), (a, b, c), 5, 1e-7)
    assert found.dtype == torch.float64
    np.testing.assert_allclose(found, left @ np.diag(values) @ right, atol=1e-12)


# ------------------------------------------------------------ what is loaded
@pytest.fixture
def saved_in_16_bits(tmp_path):
    folder = tmp_path / "half"
    toy.build_model().to(torch.bfloat16).save_pretrained(folder)
    toy.tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("dtype", ["auto", "float32", "bfloat16", "float16"])
def test_four_bits_are_computed_in_32_where_16_are_slow(no_units, dtype):
    pytest.importorskip("bitsandbytes")
    args = ModelArguments(model_name_or_path="x", load_in_4bit=True, dtype=dtype)
    assert precision.quantization(args).bnb_4bit_compute_dtype == torch.float32


def test_four_bits_are_computed_in_16_where_there_are_units(all_units):
    pytest.importorskip("bitsandbytes")
    args = ModelArguments(model_name_or_path="x", load_in_4bit=True, dtype="bfloat16")
    assert precision.quantization(args).bnb_4bit_compute_dtype == torch.bfloat16


def test_a_base_in_16_bits_is_had_by_asking_only(saved_in_16_bits, no_units, capsys):
    plain = models.load_base(ModelArguments(model_name_or_path=saved_in_16_bits))
    assert plain.dtype == torch.float32 and capsys.readouterr().out == ""
    for _ in range(2):  # a stage loads its base twice, and says it once
        half = models.load_base(ModelArguments(model_name_or_path=saved_in_16_bits, dtype="bfloat16"))
        assert half.dtype == torch.bfloat16
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 1 and said[0].startswith("note: dtype: bfloat16: this processor has no bfloat16 units")


def test_with_units_nothing_is_said(saved_in_16_bits, all_units, capsys):
    models.load_base(ModelArguments(model_name_or_path=saved_in_16_bits, dtype="bfloat16"))
    assert capsys.readouterr().out == ""


def test_ppo_by_the_name_of_a_model_that_was_saved_in_16_bits(saved_in_16_bits, no_units, tmp_path):
    trainer = toy.make_trainer(tmp_path, saved_in_16_bits, peft_config=toy.lora(), bf16=None)
    with Products() as products:
        trainer.train()
    assert products.seen == {torch.float32}


def test_with_units_ppo_takes_the_model_as_it_was_saved(saved_in_16_bits, all_units, tmp_path):
    trainer = toy.make_trainer(tmp_path, saved_in_16_bits, peft_config=toy.lora(), bf16=None)
    assert trainer.model.get_base_model().dtype == torch.bfloat16


def classifier(folder: Path) -> str:
    from transformers import LlamaForSequenceClassification

    torch.manual_seed(0)
    model = LlamaForSequenceClassification(toy.build_model().config)
    model.config.num_labels = 1
    model.score = torch.nn.Linear(16, 1, bias=False)
    model.to(torch.bfloat16).save_pretrained(folder)
    toy.tokenizer().save_pretrained(folder)
    return str(folder)


def test_a_reward_that_was_saved_in_16_bits(tmp_path, no_units, caplog):
    reward = Learned(path=classifier(tmp_path / "reward"), device="cpu")
    with Products() as products:
        reward(["a"], ["bc"])
    assert products.seen == {torch.float32} and caplog.messages == []
    reward = Learned(path=str(tmp_path / "reward"), device="cpu", dtype="bfloat16")
    reward.prepare()
    with Products() as products:
        reward(["a"], ["bc"])
    assert products.seen == {torch.bfloat16}
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith(
        "note: reward 'learned', dtype bfloat16: this processor has no bfloat16 units"
    )


# ------------------------------------------------------------ autocast
def test_autocast_on_a_cpu_is_had_by_asking_only(no_units, monkeypatch, capsys):
    # what an accelerate file for GPUs says reaches the processes by this variable
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    for kind in (SFTStage, PPOConfig):
        settings = kind("out", use_cpu=True)
        assert (settings.bf16, settings.mixed_precision) == (False, "no")
    assert capsys.readouterr().out == ""
    settings = SFTStage("out", use_cpu=True, bf16=True)
    assert (settings.bf16, settings.mixed_precision) == (True, "bf16")
    assert capsys.readouterr().out.startswith("note: bf16: true: this processor has no bfloat16 units")


# ------------------------------------------------------------ threads
def openmp(*code: str, **variables: str) -> str | None:
    """The spin count that OpenMP itself says it has after `code`, with these variables set."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_"))} | variables
    env |= {"OMP_DISPLAY_ENV": "verbose", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", "\n".join(code)], env=env, capture_output=True, text=True, check=True)
    found = re.search(r"GOMP_SPINCOUNT = '(\w+)'", done.stderr)
    return found and found[1]


def test_threads_that_wait_go_to_sleep_soon_unless_somebody_set_it_otherwise():
    if openmp("import torch") is None:
        pytest.skip("this torch has another OpenMP")
    assert openmp("import pipeline, torch") == "10000"
    assert openmp("import pipeline, torch", GOMP_SPINCOUNT="7") == "7"
    assert openmp("import pipeline, torch", OMP_WAIT_POLICY="passive") == "0"


@pytest.mark.parametrize(
    "recipe", sorted(path.name for path in (ROOT / "recipes").glob("*.py") if path.name != "launch.py")
)
def test_every_recipe_imports_the_pipeline_before_anything_that_loads_torch(recipe):
    tree = ast.parse((ROOT / "recipes" / recipe).read_text(encoding="utf-8"))
    imports = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    names = [node.module if isinstance(node, ast.ImportFrom) else node.names[0].name for node in imports]
    roots = [name.split(".")[0] for name in names]
    before = roots[: roots.index("pipeline")] if "pipeline" in roots else roots
    assert set(before) <= sys.stdlib_module_names | {"yaml"}
