"""Decoding in which a row that has ended costs nothing more: it is dropped, and the others go on.

transformers' `generate` decodes a batch until its longest row has ended. Here it stops when an eighth of the rows
have, and is called again with the rest and their part of the cache. Greedy tokens are the same, but for rounding: a
product of fewer rows may add up in another order. Sampled ones are other draws from the same distribution.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import DynamicCache, GenerationConfig, PreTrainedModel, StoppingCriteria, StoppingCriteriaList
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

_SHARE = 1 / 8  # of the rows; each new call costs about as much as one step
_WHOLE = (DynamicLayer, DynamicSlidingWindowLayer)  # layers that are keys and values of each row, and nothing else


def cut(ids: list[int], ends: list[int]) -> list[int]:
    """`ids` up to the first one of `ends`, itself included."""
    end = next((t + 1 for t, token in enumerate(ids) if token in ends), len(ids))
    return ids[:end]


class Decoder:
    """Decodes batches of prompts, one after the other.

    Args:
        model: any that `generate` takes. config: `max_new_tokens`, the end tokens, how is sampled, if it is.
    """

    def __init__(self, model, config: GenerationConfig):
        self.model, self.config = model, config
        self.drops = True  # until a cache is seen of which rows cannot be dropped

    @torch.no_grad()
    def __call__(self, input_ids: Tensor, attention_mask: Tensor) -> list[list[int]]:
        """The new tokens of every row, those behind the first end token left away.

        Args: input_ids, attention_mask: (B, T), padded on the left.
        """
        config, width = self.config, input_ids.shape[1]
        ends = torch.tensor(config.eos_token_id, device=input_ids.device).reshape(-1)
        stops = ends.tolist()
        found: list[list[int]] = [[] for _ in input_ids]
        rows = torch.arange(len(input_ids), device=input_ids.device)  # those that go on
        ids, mask, cache = input_ids, attention_mask, None
        while len(rows):
            enough = _Ended(ends, len(rows)) if self.drops else None
            output = self._generate(ids, mask, cache, width + config.max_new_tokens - ids.shape[1], enough)
            new = output.sequences[:, width:]
            over = torch.isin(new, ends).any(dim=1) | (new.shape[1] >= config.max_new_tokens)
            if cache is None and self.drops and not over.all() and not _has_whole_rows(output.past_key_values):
                self.drops = False
                return self(input_ids, attention_mask)
            for row, tokens in zip(rows[over].tolist(), new[over].tolist(), strict=True):
                found[row] = cut(tokens, stops)
            on = (~over).nonzero()[:, 0]
            rows, ids, cache = rows[on], output.sequences[on], output.past_key_values
            if len(on):
                cache.batch_select_indices(on)
                mask = torch.nn.functional.pad(mask[on], (0, ids.shape[1] - mask.shape[1]), value=1)
        return found

    def _generate(self, ids: Tensor, mask: Tensor, cache: DynamicCache | None, count: int, enough: "_Ended | None"):
        settings = GenerationConfig(**self.config.to_diff_dict() | {"max_new_tokens": count})
        settings.return_dict_in_generate = True
        more = {} if cache is None else {"past_key_values": cache}
        stopping = StoppingCriteriaList([] if enough is None else [enough])
        return self.model.generate(
            input_ids=ids, attention_mask=mask, generation_config=settings, stopping_criteria=stopping, **more
        )


class Rollouts:
    """Has `generate` of a model drop the rows that have ended while a rollout is sampled."""

    def __init__(self, model: PreTrainedModel):
        self.model = model
        self._decoder: Decoder | None = None

    @contextmanager
    def without_ended_rows(self) -> Iterator[None]:
        """Inside the block `model.generate` does; what it returns is as long, and as wide, as ever."""
        own, plain = vars(self.model).get("generate"), self.model.generate
        self.model.generate = partial(self._generate, plain)  # type: ignore[method-assign]
        try:
            yield
        finally:
            del self.model.generate
            if own is not None:
                self.model.generate = own

    def _generate(self, plain: Callable, *args, generation_config: GenerationConfig | None = None, **inputs):
        bare = not args and inputs.keys() == {"input_ids", "attention_mask"} and generation_config is not None
        if not bare or not _is_plain(generation_config):
            return plain(*args, generation_config=generation_config, **inputs)
        if self._decoder is None or self._decoder.config is not generation_config:
            self._decoder = Decoder(_Generating(plain), generation_config)
        self._decoder.model = _Generating(plain)
        prompts, pad = inputs["input_ids"], generation_config.pad_token_id
        found = self._decoder(**inputs)
        rows = torch.full((len(found), max(map(len, found))), pad, device=prompts.device)
        for row, tokens in zip(rows, found, strict=True):
            row[: len(tokens)] = torch.tensor(tokens, device=prompts.device)
        return torch.cat([prompts, rows], dim=1)


class _Generating(NamedTuple):
    generate: Callable


# What a generation may be asked for: nothing that counts steps, seconds or processes
_KNOWN = {"max_new_tokens", "do_sample", "temperature", "top_k", "top_p", "repetition_penalty"}
_KNOWN |= {"pad_token_id", "bos_token_id", "eos_token_id", "disable_compile", "transformers_version"}


def _is_plain(config: GenerationConfig) -> bool:
    return config.eos_token_id is not None and not config.to_diff_dict().keys() - _KNOWN


class _Ended(StoppingCriteria):
    """Stops all of `count` rows when a share of them has come to one of `ends`."""

    def __init__(self, ends: Tensor, count: int):
        self.ends, self.wanted = ends, max(1, count * _SHARE)
        self.ended = torch.zeros(count, dtype=torch.bool, device=ends.device)

    def __call__(self, input_ids, scores, **kwargs):
        self.ended |= torch.isin(input_ids[:, -1], self.ends)
        return torch.full_like(self.ended, bool(self.ended.sum() >= self.wanted))


def _has_whole_rows(cache) -> bool:
    """Whether rows can be taken out of `cache`: nothing of it is a state of another kind, and nothing rides on it."""
    return (
        type(cache) is DynamicCache
        and all(type(layer) in _WHOLE for layer in cache.layers)
        and vars(cache).keys() <= vars(DynamicCache()).keys()
    )
