"""How fast this machine is with one model: a few passes through it with random weights, measured now.

A large model is measured with fewer layers and a smaller batch, and what was measured is multiplied by the arithmetic
that was left out (pipeline/memory/scale.py counts it).
"""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from peft import LoraConfig, TaskType, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedConfig

from pipeline.memory import scale
from pipeline.memory.estimate import Adapter, Architecture

SMALL = 20_000_000  # parameters up to which a model is measured whole
LAYERS = 2  # of a larger one
LONGEST = 1.0  # seconds that a pass may take, reckoned by the rate of matrix products
SIDE = {"cpu": 1024, "cuda": 8192}  # of the matrices whose products are timed
DRAWN_ROWS = 16  # completions that a large model samples at once on a processor; elsewhere four times as many
DRAWN, PROMPT = 8, 8  # tokens that are sampled, and read before, to time a step of sampling


class Batch(NamedTuple):
    """What a stage hands through the model at once."""

    rows: int
    length: int  # tokens
    drawn: int = 0  # completions that are sampled at once; 0: none are


class Pace(NamedTuple):
    """Seconds."""

    learn: float  # a token, forward and backward, LoRA learns
    learn_all: float  # a token, forward and backward, all weights learn
    look: float  # a token, forward
    draw: float  # a token for each of `drawn` completions


def flops(dtype: torch.dtype, device: str) -> float:
    """Multiplications and additions a second in products of large matrices."""
    side = SIDE[device]
    matrix = torch.ones(side, side, dtype=dtype, device=device)
    # where there are no units for 16 bits the large product would take seconds
    if device == "cpu" and _best(lambda: matrix[:128, :128] @ matrix[:128, :128]) > 2 * 128**3 / 1e10:
        matrix = matrix[:256, :256].contiguous()
    return 2 * len(matrix) ** 3 / _best(lambda: matrix @ matrix)


def pace(config: PreTrainedConfig, dtype: torch.dtype, device: str, rank: int, batch: Batch, whole: bool) -> Pace:
    """Measures a model of this kind.

    Args:
        config: of the model. rank: of LoRA, on all linear layers. whole: also measure with all weights learning.
    """
    config = config.get_text_config()
    full = Architecture.of(config)
    small = shortened(config) if full.parameters > SMALL else config
    part = Architecture.of(small)
    adapter, length = Adapter(rank), min(batch.length, getattr(config, "max_position_embeddings", batch.length))
    one_row = scale.learning(part, adapter, length, length, length, checkpointing=False) / flops(dtype, device)
    rows = max(1, min(batch.rows, int(LONGEST / one_row)))
    ids = torch.randint(0, part.vocab, (rows, length), device=device)
    model = AutoModelForCausalLM.from_config(small, dtype=dtype).to(device)

    def learn() -> None:
        model(input_ids=ids, labels=ids).loss.backward()

    def look() -> None:
        with torch.no_grad():
            model(input_ids=ids)

    learn_all = _best(learn) if whole else 0.0
    model = get_peft_model(model, LoraConfig(TaskType.CAUSAL_LM, r=rank, target_modules="all-linear"))
    looked, learned = _best(look), _best(learn)
    drawn = 0.0
    if batch.drawn:
        several = min(batch.drawn, DRAWN_ROWS if device == "cpu" and small is not config else 4 * DRAWN_ROWS)
        drawn = _draw(model, several, device, part.vocab) * batch.drawn / several

    tokens = rows * length
    lookers = [scale.forward(each, tokens, length, tokens) for each in (full, part)]
    learners = [scale.learning(each, adapter, tokens, length, tokens, checkpointing=False) for each in (full, part)]
    look_more, learn_more = (much / little for much, little in (lookers, learners))
    learned, learn_all = (seconds / tokens * learn_more for seconds in (learned, learn_all))
    return Pace(learned, learn_all, looked / tokens * look_more, drawn * look_more)


def shortened(config: PreTrainedConfig) -> PreTrainedConfig:
    """The same model with LAYERS layers."""
    settings = config.to_dict() | {"num_hidden_layers": LAYERS}
    if settings.get("layer_types"):
        settings["layer_types"] = settings["layer_types"][:LAYERS]
    return type(config).from_dict(settings)


def _draw(model: nn.Module, rows: int, device: str, words: int) -> float:
    """Seconds of one step of sampling."""
    ids = torch.randint(0, words, (rows, PROMPT), device=device)
    settings = {"attention_mask": torch.ones_like(ids), "do_sample": True, "pad_token_id": 0}

    speaker: Any = model  # a Module has no generate

    def sample() -> None:
        with torch.no_grad():
            speaker.eval().generate(input_ids=ids, max_new_tokens=DRAWN, min_new_tokens=DRAWN, **settings)

    seconds = _best(sample)
    model.train()
    return seconds / DRAWN


def _best(work: Callable[[], object]) -> float:
    """Seconds that `work` takes, the best of two after one that prepares; the first counts where it takes long."""
    seconds: list[float] = []
    while len(seconds) < 3 and sum(seconds) < LONGEST:
        started = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return max(1e-9, min(seconds[1:] or seconds))
