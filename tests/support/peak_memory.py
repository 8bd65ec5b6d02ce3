"""Peak memory of short runs in this process, as JSON on the last line; tests/memory/test_memory.py starts it.

Freed blocks must go back to the system at once, or the peak would hold what the allocator keeps: the caller sets
MALLOC_MMAP_THRESHOLD_ (64 KiB) and MALLOC_ARENA_MAX=1 (glibc).
"""

import ctypes
import gc
import json
import sys
import tempfile
from itertools import chain
from pathlib import Path

import torch
import toy
from datasets import Dataset

from pipeline.config import ModelArguments, SFTStage
from pipeline.models.loading import load_base
from pipeline.models.precision import train_in_float32
from pipeline.stages.sft import SFT

PROMPT, COMPLETION = 16, 64


def status(name: str) -> int:
    """Bytes of `VmRSS` (now) or `VmHWM` (peak since the last reset)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024
    raise KeyError(name)


def level() -> int:
    """Resident bytes after a clean-up; the peak is counted from here on."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return status("VmRSS")


def base(hidden: int, intermediate: int, layers: int, vocab: int, dtype: str) -> torch.nn.Module:
    settings = {"hidden_size": hidden, "intermediate_size": intermediate, "num_hidden_layers": layers}
    heads = {"num_attention_heads": hidden // 64, "num_key_value_heads": hidden // 64}
    model = toy.build_model(**settings, **heads, vocab_size=vocab, max_position_embeddings=256, initializer_range=0.02)
    if dtype == "nf4":
        folder = tempfile.mkdtemp()
        model.save_pretrained(folder)
        return load_base(ModelArguments(model_name_or_path=folder, load_in_4bit=True, dtype="float32"), base=folder)
    return model.to(getattr(torch, dtype))


def held(model: torch.nn.Module) -> int:
    """Bytes of its tensors, the scales of quantised ones with them."""
    tensors = [*model.parameters(), *model.buffers()]
    states = [state.as_dict(packed=True).values() for t in tensors if (state := getattr(t, "quant_state", None))]
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in chain(tensors, *states)}
    return sum(storages.values())


def run_ppo(folder: str, model: torch.nn.Module, rows: int, **settings) -> None:
    """One update over `rows` completions, none of which ends early; prompts of two lengths. Two epochs: the second
    step finds the optimizer's moments there."""
    epochs = 1 if settings["algorithm"] == "reinforce" else 2
    prompts = [("c" if i else "cd") * (PROMPT // 2) for i in range(rows)]
    sizes = {"per_device_train_batch_size": rows, "gradient_accumulation_steps": 1, "total_episodes": rows}
    trainer = toy.make_trainer(
        folder, model, prompts=prompts, max_completion_length=COMPLETION, num_iterations=epochs, **sizes, **settings
    )
    trainer.generation_config.eos_token_id = None
    trainer.train()


def run_sft(folder: str, model: torch.nn.Module, rows: int, **settings) -> None:
    """Two steps on `rows` sequences of two lengths."""
    ids = [[toy.C] * ((PROMPT if i else PROMPT // 2) + COMPLETION) for i in range(rows)]
    args = SFTStage(
        output_dir=folder, per_device_train_batch_size=rows, max_steps=2, use_cpu=True, save_strategy="no", **settings
    )
    trainer = SFT(model, args, train_dataset=Dataset.from_dict({"input_ids": ids}), processing_class=toy.tokenizer())
    train_in_float32(trainer.model)
    trainer.train()


def peak(what: str, rows: int, checkpointing: bool, autocast: bool, *base_and_dtype) -> int:
    """Bytes of the run: the base, and the most above the level at which it was there and nothing else.

    (Not above the level before it: loading a quantised one holds the file's pages for a moment.)
    """
    folder, model = tempfile.mkdtemp(), base(*base_and_dtype)
    before = level() - held(model)
    model, settings = toy.with_sft_adapter(model, r=16), {"bf16": autocast, "gradient_checkpointing": checkpointing}
    if what == "sft":
        run_sft(folder, model, rows, **settings)
    else:
        run_ppo(folder, model, rows, algorithm=what, **settings)
    return status("VmHWM") - before


if __name__ == "__main__":
    for dtype in (torch.float32, torch.bfloat16):
        toy.make_trainer(tempfile.mkdtemp(), toy.build_model().to(dtype)).train()  # libraries and their buffers
    cases = json.loads(sys.argv[1])
    for case in cases:
        if case[3] or case[-1] == "bfloat16":
            peak(*case)  # oneDNN keeps some 100 MB for the 16-bit products of each shape that it has met
    print(json.dumps([peak(*case) for case in cases]))
