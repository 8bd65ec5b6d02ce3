"""What the base itself answers: the texts that SFT data is made of."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from pipeline.models.decoding import Decoder
from rewards.instructions.reading import sentences
from rewards.processor import has_units

from ..base import progress

LONGEST = 128  # tokens of an answer; where that was too few, what was begun behind its last whole sentence is left out
BATCH = 64


@torch.no_grad()
def answers(base: Path, prompts: Sequence[Sequence[Mapping[str, str]]], seed: int) -> list[str]:
    """An answer of the model in `base` to each prompt (messages), sampled at temperature 0.6; "" without a sentence.

    Seeded: the same on the same machine. Touches no global random state.
    """
    dtype = torch.bfloat16 if has_units(torch.bfloat16) else torch.float32
    model = AutoModelForCausalLM.from_pretrained(base, dtype=dtype).eval()
    tokenizer = AutoTokenizer.from_pretrained(base, padding_side="left")
    asked = tokenizer.apply_chat_template(list(prompts), tokenize=False, add_generation_prompt=True)
    order = sorted(range(len(asked)), key=lambda i: len(asked[i]))  # like lengths together: less padding
    found = [""] * len(asked)
    sampling = {"do_sample": True, "temperature": 0.6, "top_k": 40}  # top_p would sort the vocabulary
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    decode = Decoder(model, GenerationConfig(**sampling, **ends, max_new_tokens=LONGEST))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for first in progress(range(0, len(order), BATCH), "answers of the base", unit="batch"):
            batch = order[first : first + BATCH]
            inputs = tokenizer([asked[i] for i in batch], return_tensors="pt", padding=True, add_special_tokens=False)
            for i, ids in zip(batch, decode(inputs.input_ids, inputs.attention_mask), strict=True):
                text = tokenizer.decode(ids, skip_special_tokens=True).strip()
                found[i] = text if tokenizer.eos_token_id in ids else whole_sentences(text)
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
