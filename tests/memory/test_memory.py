"""The memory estimate: against pencil, against what autograd keeps, and against measured peaks of real runs."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import peak_memory
import pytest
import torch
from quantizable import build
from transformers import LlamaConfig, Qwen2Config

from pipeline.memory import estimate as memory
from pipeline.memory import report as memory_report
from pipeline.memory.estimate import Adapter, Architecture, Batch, Estimate, Precision
from pipeline.models.attention import SHORT_ROWS, use_short_rows
from pipeline.models.lean import lean

ROOT = Path(__file__).resolve().parents[2]
# hidden 8 = 2 heads of 4, one kv head: a layer has 64 + 32 + 32 + 64 + 3 x 128 = 576 in linear layers, 16 in norms
SMALL = Architecture.of(
    LlamaConfig(
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        vocab_size=10,
    )
)
RANK2, BATCH = Adapter(2), Batch(rows=3, prompt=4, completion=6)  # 30 tokens


def test_what_stays_by_pencil():
    assert (SMALL.in_linears, SMALL.parameters) == (1152, 1352)  # 2 x 592 + the last norm 8 + 2 x 80
    assert memory.base(SMALL, Precision(weights=4)) == 5408
    assert memory.base(SMALL, Precision(weights=2)) == 2704
    # 200 numbers as they are; 1152 of half a byte; 18 blocks with a float32, or with a byte and 1/256 of a float32
    assert memory.base(SMALL, Precision(weights=4, bits=4)) == 800 + 576 + 72
    assert memory.base(SMALL, Precision(weights=4, bits=4, nested=True)) == 800 + 576 + 18
    assert memory.base(SMALL, Precision(weights=2, bits=8)) == 400 + 1152 + 4 * 128
    # inputs + outputs of a layer: 16 + 12 + 12 + 16 + 3 x 24 = 128
    assert RANK2.parameters(SMALL) == 2 * 2 * 128
    assert Adapter(2, ("q_proj", "v_proj")).parameters(SMALL) == 2 * 2 * (16 + 12)
    assert memory.optimizer(512) == 512 * 12
    assert memory.optimizer(512, "paged_adamw_8bit") == 512 * 4 + 2 * (512 + 8)
    assert memory.optimizer(512, "sgd", size=2) == 1024


def test_what_comes_and_goes_by_pencil():
    # a token: norms 2 (32 + 4), attention 4 x 4 x 8 + 4 x 2 + a row of the mask 40, SwiGLU 3 x 64, LoRA's inputs
    # 4 (8 + 8 + 16) and 7 x 4 x 2 between A and B
    token = 72 + 176 + 192 + 128 + 56
    around = 30 * 4 * (8 + 2 * 4)
    assert memory.saved(SMALL, Precision(), RANK2, BATCH) == 2 * 30 * token + around
    assert memory.saved(SMALL, Precision(), RANK2, BATCH, checkpointing=True) == 30 * (2 * 32 + 36) + around
    assert memory.kv_cache(SMALL, Precision(), BATCH) == 2 * 2 * 1 * 4 * 4 * 30
    assert memory.head(SMALL, Precision(), BATCH, cuda=False) == 30 * 10 * (4 + 33) + 4 * 30 * 8
    assert memory.head(SMALL, Precision(), BATCH, cuda=True) == 18 * 32768 * 4 + 4 * 18 * 8  # completions alone
    first = 30 * (3 * 16 + 2 * 8) * 4
    assert memory.layer_backward(SMALL, Precision(), BATCH) == first
    kept = memory.saved(SMALL, Precision(), RANK2, BATCH)
    assert memory.training(SMALL, Precision(), RANK2, BATCH, False, False) == kept + 12060
    assert memory.training(SMALL, Precision(), RANK2, BATCH, False, False, trunks=2) == 2 * kept + first
    # two learn, one is frozen, and a head of 8 + 1
    found = memory.estimate(SMALL, Precision(), RANK2, BATCH, learning=2, frozen=1, heads=1, rollout=BATCH)
    assert found.stays == {"base": 5408, "adapters": 4 * (3 * 512 + 9), "gradients and optimizer": 12 * (2 * 512 + 9)}
    assert found.total == 5408 + 4 * 1545 + 12 * 1033 + kept + 12060
    # all weights learn: no adapter, and everything has a gradient and two moments
    found = memory.estimate(SMALL, Precision(), None, BATCH)
    assert found.stays == {"base": 5408, "gradients and optimizer": 12 * 1352}


@pytest.mark.parametrize(
    "config, parameters",
    [
        (
            Qwen2Config(
                hidden_size=896,
                intermediate_size=4864,
                num_hidden_layers=24,
                num_attention_heads=14,
                num_key_value_heads=2,
                vocab_size=151936,
                tie_word_embeddings=True,
            ),
            494_032_768,
        ),
        (LlamaConfig(), 6_738_415_616),
        (
            LlamaConfig(
                hidden_size=8192,
                intermediate_size=28672,
                num_hidden_layers=80,
                num_attention_heads=64,
                num_key_value_heads=8,
            ),
            68_976_648_192,
        ),
    ],
    ids=["Qwen2.5-0.5B", "Llama-2-7B", "Llama-2-70B"],
)
def test_models_that_are_not_loaded(config, parameters):
    """The numbers of parameters are those that the models were published with."""
    model = Architecture.of(config)
    assert model.parameters == parameters
    assert memory.base(model, Precision(weights=2)) == 2 * parameters
    head = 0 if config.tie_word_embeddings else model.vocab * model.hidden
    assert Architecture.of(config, scores=True).parameters == parameters - head


@pytest.mark.parametrize("short", [False, True], ids=["plain", "lean"])
@pytest.mark.parametrize(
    "dtype, bits, autocast, targets",
    [
        ("float32", None, False, "all-linear"),
        ("float32", None, False, ["q_proj", "v_proj"]),
        ("float32", None, True, "all-linear"),
        ("bfloat16", None, False, "all-linear"),
        ("bfloat16", None, True, ["q_proj", "down_proj"]),
        ("float32", 4, False, "all-linear"),
        ("bfloat16", 4, True, "all-linear"),
    ],
)
def test_autograd_keeps_what_the_formula_says(tmp_path, dtype, bits, autocast, targets, short):
    dtype = getattr(torch, dtype)
    model = build(dtype, bits, tmp_path, targets)
    if short:
        lean(model)
        use_short_rows(model.get_base_model())
    ids = torch.randint(3, 250, (4, 72), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[0, :5] = 0
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    weights = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            out = model(input_ids=ids, attention_mask=mask, position_ids=positions, labels=ids, fused_lm_head=True)
    assert out.log_probs.requires_grad
    wanted = memory.saved(
        Architecture.of(model.config),
        Precision(weights=dtype.itemsize, bits=bits, nested=True, autocast=autocast, lean=short),
        Adapter(16, (targets,) if isinstance(targets, str) else tuple(targets)),
        Batch(4, 72),
    )
    assert wanted == pytest.approx(sum(size for size, _ in kept.values()), rel=0.04)


# What, rows, checkpointing, autocast, hidden, intermediate, layers, words, base
SIZES = [256, 704, 6, 1024]
PEAKS = [["ppo", 8, False, False, *SIZES, "float32"], ["sft", 16, False, False, *SIZES, "float32"]]
MORE_PEAKS = [
    ["ppo", 16, True, False, *SIZES, "float32"],
    ["ppo", 16, False, False, *SIZES, "bfloat16"],
    ["ppo", 16, False, True, *SIZES, "bfloat16"],
    ["reinforce", 16, False, False, *SIZES, "float32"],
    ["reinforce", 16, False, True, *SIZES, "float32"],
    ["sft", 16, True, False, *SIZES, "float32"],
    ["ppo", 16, False, False, 512, 1408, 8, 2048, "float32"],
    ["ppo", 16, True, False, 512, 1408, 8, 2048, "bfloat16"],
    ["ppo", 2, False, False, 512, 1408, 8, 2048, "nf4"],  # the whole base in float32 would be 103 MiB more
]


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak is read from Linux's /proc")
@pytest.mark.parametrize("cases", [PEAKS, pytest.param(MORE_PEAKS, marks=pytest.mark.slow)], ids=["short", "long"])
def test_peaks_are_within_fifteen_percent(cases):
    # blocks from 64 KiB up go back to the system when they are freed, or the allocator's leftovers would count
    env = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1", "OMP_NUM_THREADS": "1"}
    env |= {"PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "tests", ROOT / "tests" / "support")))}
    command = [sys.executable, str(ROOT / "tests/support/peak_memory.py"), json.dumps(cases)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr[-3000:]
    measured = json.loads(done.stdout.splitlines()[-1])
    for case, peak in zip(cases, measured, strict=True):
        print(f"{case}: estimated {estimated(*case) / 2**20:.1f} MiB, measured {peak / 2**20:.1f} MiB")
    assert [estimated(*case) for case in cases] == pytest.approx(measured, rel=0.15)


def estimated(what, rows, checkpointing, autocast, hidden, intermediate, layers, words, dtype) -> int:
    sizes = {"hidden_size": hidden, "intermediate_size": intermediate, "num_hidden_layers": layers}
    config = LlamaConfig(**sizes, num_attention_heads=hidden // 64, vocab_size=words)
    batch = Batch(rows, peak_memory.PROMPT, peak_memory.COMPLETION)
    roles = {
        "ppo": {"learning": 2, "frozen": 1, "heads": 1, "rollout": batch, "entropy": False},
        "reinforce": {"frozen": 1, "rollout": batch, "entropy": False},
        "sft": {"entropy": False},
    }[what]
    weights, bits = (4, 4) if dtype == "nf4" else (getattr(torch, dtype).itemsize, None)
    precision = Precision(weights=weights, bits=bits, nested=True, autocast=autocast, lean=what != "sft")
    model = Architecture.of(config)
    if what != "sft" and dtype == "bfloat16":
        model = replace(model, attention=SHORT_ROWS)
    return memory.estimate(model, precision, Adapter(16), batch, checkpointing=checkpointing, **roles).total


FOUND = Estimate({"base": 3 * 2**30, "adapters": 2**20}, {"training": 2**30, "generation": 512 * 2**20})


def test_the_table():
    assert memory_report.table(replace(FOUND, adapters="policy, critic")) == [
        "memory of a process, estimated:",
        "  base                         3 GiB",
        "  adapters                     1 MiB  policy, critic",
        "  training                     1 GiB  while it lasts, the most",
        "  generation                 512 MiB  while it lasts",
        "  in all                       4 GiB  what stays and training",
    ]
    assert [memory_report.human(x) for x in (0, 2000, 5 * 2**20 / 4, 1500 * 2**30)] == [
        "0 B",
        "1.95 KiB",
        "1.25 MiB",
        "1,500 GiB",
    ]


def test_what_does_not_fit_is_said_with_three_settings():
    need = FOUND.total - 3 * 2**30  # the base is there already: 1 GiB + 1 MiB are missing
    assert memory_report.misfit(FOUND, 3 * 2**30, need, "max_length", False) is None
    said = memory_report.misfit(FOUND, 3 * 2**30, 2**30, "max_length", False)
    assert said.startswith("warning: the run is likely to end out of memory")
    assert "needs 1 GiB more, and the GPU has 1 GiB free" in said
    for setting in ("per_device_train_batch_size", "max_length", "gradient_checkpointing: true"):
        assert setting in said
    assert "load_in_4bit: true" in memory_report.misfit(FOUND, 0, 0, "max_completion_length", True)
    asked = replace(FOUND, passes={"training": 1, "held-out prompts": 2**30})
    assert "Lower eval_batch_size, lower max_completion_length" in memory_report.misfit(
        asked, 0, 0, "max_completion_length", True
    )
