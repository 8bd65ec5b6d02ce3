"""A small base model made on the spot: byte-level BPE tokenizer and a Llama trained from scratch on a world's
documents.

The result is an ordinary Hugging Face model folder. The tokenizer adds no special tokens by itself: a document is its
tokens and eos, so the tokens of a prompt are a prefix of the tokens of prompt + completion.
"""

import random
import time
from pathlib import Path
from typing import NamedTuple

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from rewards.processor import has_units

from ..config import tell_cost
from ..errors import UserError
from .base import BaseModelSettings, Document, progress
from .chat_format import BOS, EOS, PAD, ChatFormat, without_tokens


def train_tokenizer(
    texts: list[str], settings: BaseModelSettings, chat: ChatFormat | None = None
) -> PreTrainedTokenizerFast:
    """Byte-level BPE on `texts` with pad 0, bos 1, eos 2, and the role tokens of `chat` after them. Any text survives
    encoding and decoding.
    """
    special = [PAD, BOS, EOS, *(chat.role_tokens if chat else ())]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=settings.vocab_size,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    if chat:  # what stands between the role tokens is text, they are not
        texts = [piece for text in texts for piece in without_tokens(text, special)]
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        padding_side="left",
        model_max_length=settings.context_length,
        clean_up_tokenization_spaces=False,
        **({"additional_special_tokens": list(chat.role_tokens)} if chat else {}),
    )
    tokenizer.chat_template = chat.template if chat else None
    tokenizer.response_template = chat.response_template if chat else None
    return tokenizer


def config_of(settings: BaseModelSettings, vocab_size: int, **tokens: int | None) -> LlamaConfig:
    """The Llama that `settings` describe. tokens: ids such as `pad_token_id`."""
    return LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=settings.hidden_size,
        intermediate_size=settings.intermediate_size,
        num_hidden_layers=settings.num_layers,
        num_attention_heads=settings.num_heads,
        num_key_value_heads=settings.num_heads,
        max_position_embeddings=settings.context_length,
        tie_word_embeddings=True,
        **tokens,
    )


def new_model(tokenizer: PreTrainedTokenizerFast, settings: BaseModelSettings) -> LlamaForCausalLM:
    """An untrained Llama for `tokenizer`. Draws from torch's global generator."""
    config = config_of(
        settings,
        len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    model = LlamaForCausalLM._from_config(
        config, attn_implementation="eager"
    )  # faster than sdpa at this size on a CPU
    model.generation_config = GenerationConfig(
        do_sample=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return model


class Row(NamedTuple):
    """Token ids of a document with its eos; the first `read_only` of them are not learned."""

    ids: list[int]
    read_only: int


def _batches(rows: list[Row], settings: BaseModelSettings, rng: random.Random) -> list[list[Row]]:
    """All batches of the training, rows of like length together, batches in random order."""
    size, wanted = (
        settings.pretraining_batch_size,
        settings.pretraining_epochs * len(rows) / settings.pretraining_batch_size,
    )
    batches: list[list[Row]] = []
    while len(batches) < wanted:
        mixed = rng.sample(rows, len(rows))
        mixed.sort(key=lambda row: len(row.ids))
        epoch = [mixed[start : start + size] for start in range(0, len(mixed), size)]
        batches += rng.sample(epoch, len(epoch))
    return batches[: max(1, int(wanted))]


def _collate(rows: list[Row], pad: int) -> tuple[Tensor, Tensor]:
    """input_ids and labels, both (B, T). Pads are on the right, so causal attention never sees them and needs no
    mask.
    """
    width = max(len(row.ids) for row in rows)
    ids = torch.tensor([row.ids + [pad] * (width - len(row.ids)) for row in rows])
    at = torch.arange(width)
    learned = (at < torch.tensor([[len(row.ids)] for row in rows])) & (
        at >= torch.tensor([[row.read_only] for row in rows])
    )
    return ids, ids.masked_fill(~learned, -100)


class Muon(torch.optim.Muon):
    """Muon in the precision of the weights, with a step as large as AdamW's (`match_rms_adamw`).

    PyTorch's orthogonalises in bfloat16 whatever the weights are: a processor without such units takes fifty times as
    long for it as in float32, and one kind rounds otherwise than the next. With such units float32 is as fast at this
    size.
    """

    @torch.no_grad()
    def step(self, closure=None):
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            lr, decay, beta = group["lr"], group["weight_decay"], group["momentum"]
            for weight in (p for p in group["params"] if p.grad is not None):
                momentum = self.state[weight].setdefault("momentum_buffer", torch.zeros_like(weight))
                momentum.lerp_(weight.grad, 1 - beta)
                update = weight.grad.lerp(momentum, beta)  # Nesterov's
                update = orthogonal(update, group["ns_coefficients"], group["ns_steps"], group["eps"])
                weight.mul_(1 - lr * decay).add_(update, alpha=-lr * 0.2 * max(weight.shape) ** 0.5)
        return loss


def orthogonal(x: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float) -> Tensor:
    """U Vᵀ of x = U S Vᵀ, roughly: singular values come out near 1. (M, N) -> (M, N), in the precision of x.

    The iteration of Newton and Schulz with Muon's coefficients, x <- a x + b (x xᵀ) x + c (x xᵀ)² x.
    """
    a, b, c = coefficients
    wide = x.T if x.shape[0] > x.shape[1] else x  # the products with itself on the shorter side
    wide = wide / wide.norm().clamp(min=eps)
    for _ in range(steps):
        gram = wide @ wide.T
        wide = torch.addmm(wide, torch.addmm(gram, gram, gram, beta=b, alpha=c), wide, beta=a)
    return wide.T if x.shape[0] > x.shape[1] else wide


def make_optimizers(model: LlamaForCausalLM, learning_rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the weight matrices of the layers, AdamW for embeddings and norms
    (https://kellerjordan.github.io/posts/muon).

    At this size Muon needs about half the steps of AdamW alone.
    """
    matrices = [p for p in model.model.layers.parameters() if p.ndim == 2]
    ids = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in ids]
    return [
        Muon(matrices, lr=learning_rate, weight_decay=0.01, momentum=0.95),
        torch.optim.AdamW(others, lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def pretrain(model: LlamaForCausalLM, rows: list[Row], settings: BaseModelSettings, seed: int) -> float:
    """Train `model` in place on token rows. Returns the mean loss (nats/token) of the last 5% of
    steps.
    """
    batches = _batches(rows, settings, random.Random(seed))
    total, warmup = len(batches), max(1, len(batches) // 20)
    optimizers = make_optimizers(model, settings.pretraining_learning_rate)

    def rate(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return 0.05 + 0.475 * (1 + torch.cos(torch.tensor(torch.pi * (step - warmup) / max(1, total - warmup))).item())

    schedulers = [torch.optim.lr_scheduler.LambdaLR(optimizer, rate) for optimizer in optimizers]
    bf16 = settings.pretraining_bf16
    if bf16 is None:
        bf16 = has_units(torch.bfloat16)
    elif bf16:
        tell_cost("pretraining_bf16: true", torch.bfloat16)
    model.train()
    losses = []
    bar = progress(batches, "base model", unit="step")
    for batch in bar:
        ids, labels = _collate(batch, model.config.pad_token_id)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = model(input_ids=ids, labels=labels, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, scheduler in zip(optimizers, schedulers, strict=True):
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
        losses.append(loss.item())
        bar.set_postfix_str(f"loss {losses[-1]:.3f}", refresh=False)
    model.eval()
    tail = losses[-max(1, total // 20) :]
    return sum(tail) / len(tail)


def make_base_model(
    folder: Path, texts: list[Document], settings: BaseModelSettings, seed: int, chat: ChatFormat | None = None
) -> dict[str, float]:
    """Train tokenizer and model on `texts` and save both into the existing `folder`; with `chat` the tokenizer has its
    template and role tokens.

    Seeded: the same bits on the same machine. Touches no global random state.

    Returns:
        parameters, documents, tokens (per epoch), loss (nats/token, the last 5% of steps), seconds.
    """
    started = time.monotonic()
    tokenizer = train_tokenizer([first + text for first, text in texts], settings, chat)
    firsts = tokenizer([first for first, _ in texts])["input_ids"]
    whole = tokenizer([first + text for first, text in texts])["input_ids"]
    rows = [Row([*ids, tokenizer.eos_token_id], len(first)) for ids, first in zip(whole, firsts, strict=True)]
    longest = max(len(row.ids) for row in rows)
    if longest > settings.context_length:
        raise UserError(
            f"A document has {longest} tokens, context_length is {settings.context_length}: raise context_length."
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = new_model(tokenizer, settings)
        loss = pretrain(model, rows, settings, seed)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return {
        "parameters": model.num_parameters(),
        "documents": len(rows),
        "tokens": sum(len(row.ids) for row in rows),
        "loss": loss,
        "seconds": time.monotonic() - started,
    }
