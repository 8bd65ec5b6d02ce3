"""What the base itself answers to plain requests: the texts that SFT data is written from."""

import re
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from rewards.instructions.reading import sentences
from rewards.processor import has_units

from ..base import progress

LONGEST = 100  # tokens of an answer; what was begun behind its last whole sentence is left out
BATCH = 64


@torch.no_grad()
def answers(base: Path, requests: list[str], seed: int) -> list[str]:
    """An answer of the model in `base` to each request, sampled at temperature 0.6; "" where it said no sentence.

    Seeded: the same on the same machine. Touches no global random state.
    """
    dtype = torch.bfloat16 if has_units(torch.bfloat16) else torch.float32
    model = AutoModelForCausalLM.from_pretrained(base, dtype=dtype).eval()
    tokenizer = AutoTokenizer.from_pretrained(base, padding_side="left")
    asked = [[{"role": "user", "content": request}] for request in requests]
    prompts = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))  # like lengths together: less padding
    found = [""] * len(prompts)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for first in progress(range(0, len(order), BATCH), "answers of the base", unit="batch"):
            batch = order[first : first + BATCH]
            inputs = tokenizer(
                [prompts[i] for i in batch], return_tensors="pt", padding=True, add_special_tokens=False
            )
            sampling = {"do_sample": True, "temperature": 0.6, "top_k": 40}  # top_p would sort the vocabulary
            ids = model.generate(**inputs, **sampling, max_new_tokens=LONGEST, pad_token_id=tokenizer.pad_token_id)
            texts = tokenizer.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
            for i, text in zip(batch, texts, strict=True):
                found[i] = whole_sentences(text)
    return found


def whole_sentences(text: str) -> str:
    """`text` up to the end of its last whole sentence; "" without one."""
    end = [match.end() for match in re.finditer(r"[.!?][\"')\]]*(?=\s|$)", text)]
    return text[: end[-1]].strip() if end else ""


def shortened_to(text: str, count: int) -> str:
    """The first `count` sentences of `text`, line breaks kept."""
    said = sentences(text)
    if len(said) <= count:
        return text
    end = 0
    for sentence in said[:count]:
        end = text.find(sentence, end) + len(sentence)
    return text[:end].strip() if end > 0 else text
