"""Models whose weights are sharded over processes."""

from collections.abc import Iterator
from contextlib import contextmanager

from transformers.integrations import deepspeed


@contextmanager
def read_whole() -> Iterator[None]:
    """Inside, ZeRO-3 does not shard a model's weights while they are read (Accelerate 1.15 has it so even with
    `zero3_init_flag: false`): the vocabulary is counted, and heads and adapters are put, on whole weights."""
    found = deepspeed._hf_deepspeed_config_weak_ref
    deepspeed._hf_deepspeed_config_weak_ref = None
    try:
        yield
    finally:
        deepspeed._hf_deepspeed_config_weak_ref = found
