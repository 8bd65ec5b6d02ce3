"""How a model generates here: plain sampling, positions that padding does not shift. What ends a text: ends.py."""

import torch
from peft import PeftModel
from transformers import GenerationConfig, PreTrainedTokenizerBase

from pipeline.models import structure


def sample_plainly(model: PeftModel, eos_token_ids: list[int], tokenizer: PreTrainedTokenizerBase) -> None:
    """Takes repetition penalties, forced tokens and the like of the model's own generation_config out of the rollouts.

    They would change the sampled distribution, and the log-probabilities would be of another one.
    """
    model.get_base_model().generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=eos_token_ids, pad_token_id=tokenizer.pad_token_id
    )


def count_positions_from_the_mask(model: PeftModel) -> None:
    """Left padding must not shift positions: the first real token is at 0, as in generation."""
    structure.trunk_of(model).register_forward_pre_hook(_add_positions, with_kwargs=True)


def _add_positions(module, args, kwargs):
    mask, read = kwargs.get("attention_mask"), kwargs.get("input_ids")
    read = kwargs.get("inputs_embeds") if read is None else read
    plain = isinstance(mask, torch.Tensor) and read is not None and mask.shape == read.shape[:2]
    if plain and kwargs.get("position_ids") is None:
        kwargs |= structure.positions(module, mask)
    return args, kwargs
