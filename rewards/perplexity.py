"""Fluency: how expected a completion is to a frozen language model."""

import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer

from .base import choice
from .model_based import ModelBased, adapter_config, load_adapter, load_options, loading
from .rendering import NOTHING, encode, row_of
from .text import Text, Texts, text_of
from .tokenizing import open_ended


class Row(NamedTuple):
    """A text as a language model reads it; ids[start:] are the completion's, and start is at least 1."""

    ids: list[int]
    start: int


class Perplexity(ModelBased):
    """Minus the log-perplexity of the completion under a frozen language model: nats per token, at most 0.

        score = 1/T * sum over t of log p(y_t | prompt, y_1 .. y_t-1) = -log(perplexity)

    over the T tokens y of the completion, as the model's own tokenizer cuts it. Higher is more fluent; a model that
    guesses among V tokens at random gives -log V (-10.8 for GPT-2's 50,257).

        {name: perplexity, path: runs/tiny/base, clip: [-8, 0]}

    A completion without text scores -log V: had it no score, saying nothing would beat every text. Language models
    also expect texts that repeat themselves (Holtzman et al. 2020), so give it a `repetition` reward as company.

    Options:
        path: a folder or hub name of any causal language model, or of a LoRA adapter on one.
        include_prompt (true): false judges the completion as a text of its own; its first token is then predicted
            from the tokenizer's begin-of-text token, or where it has none, from its end-of-text token.
        max_length (the model's): the longest text in tokens; of a longer one the beginning is left out.
        batch_size (8): texts scored at once.
        device (this process's), dtype ("auto", as saved; float32 where the
            processor has no units for 16 bits).

    Plain text: prompt + completion as one string, with the special tokens that the tokenizer puts first. Messages: the
    prompt in the model's chat template if it has one, then the completion's text. A token that reaches from the prompt
    into the completion counts as the completion's. A score does not depend on padding or on the other texts of the
    batch.

    In Python `model` (anything with `.config` and `model(input_ids=, attention_mask=).logits`) and `tokenizer` can be
    handed in, already loaded; then `path` is not needed.

    Source: Jelinek et al. 1977, "Perplexity - a measure of the difficulty of speech recognition tasks". As a reward:
    Zhang and Lapata 2017, "Sentence Simplification with Deep Reinforcement Learning", whose fluency reward is exp of
    this score.
    """

    def __init__(
        self,
        path: str | None = None,
        include_prompt: bool = True,
        max_length: int | None = None,
        batch_size: int = 8,
        device: str | None = None,
        dtype: str = "auto",
        model: Any = None,
        tokenizer: Any = None,
        log_name: str = "perplexity",
    ):
        super().__init__(path, model, tokenizer, max_length, batch_size, device, dtype, log_name)
        self.include_prompt = choice(include_prompt, "include_prompt", (True, False), log_name)
        if self.max_length is not None and self.max_length < 2:
            raise self.error(f"max_length is {max_length}; a token and what it follows are 2, so give 2 or more.")

    def __call__(self, prompts: Texts, completions: Texts, **columns: Any) -> list[float | None]:
        texts = enumerate(zip(prompts, completions, strict=True))
        rows = [self.encode(prompt, completion, row_of(columns, i)) for i, (prompt, completion) in texts]
        scores = iter(self.score_rows([row for row in rows if row is not None]))
        return [self._of_nothing if row is None else next(scores) for row in rows]

    def encode(self, prompt: Text, completion: Text, columns: Mapping[str, Any] = NOTHING) -> Row | None:
        """One text as the model reads it; None for a completion without text. See the class for how.

        Args: columns: of the row, those that speak to the chat template (`rewards.rendering`), if there are any.
        """
        self._prepare()
        text = text_of(completion)
        if not text:
            return None
        before, special = self._context(prompt, columns) if self.include_prompt else ("", True)
        ids = self._ids(before + text, special)
        start = _common(self._ids(before, special), ids) if before else int(ids[:1] == [self._first_id])
        if start == 0:
            ids, start = [self._first_id, *ids], 1
        cut = max(0, len(ids) - self._limit)
        return Row(ids[cut:], max(1, start - cut))

    @torch.no_grad()
    def score_rows(self, rows: Sequence[Row]) -> list[float]:
        """Scores of texts in the ids of the model's tokenizer, of any lengths."""
        self._prepare()
        return self._in_batches(rows, lambda row: len(row.ids), self._score)

    def _score(self, rows: list[Row]) -> torch.Tensor:
        """A small batch of B rows -> scores (B,)."""
        inputs = self._pad([row.ids for row in rows])
        ids = inputs["input_ids"]
        kept = ids.shape[1] - min(row.start for row in rows) + 1
        skips = {"logits_to_keep": kept} if self._can_skip_prompts else {}
        logits = self._model(**inputs, **skips).logits  # (B, its last positions, V)
        skipped = ids.shape[1] - logits.shape[1]
        scores = []
        for row, row_ids, row_logits in zip(rows, ids, logits, strict=True):
            end = len(row.ids)
            # What position t - 1 says is about token t. Only one row at a time is float32.
            said = row_logits[row.start - 1 - skipped : end - 1 - skipped].float()
            scores.append(-cross_entropy(said, row_ids[row.start : end]))
        return torch.stack(scores)

    def _context(self, prompt: Text, columns: Mapping[str, Any]) -> tuple[str, bool]:
        """The text before the completion, and whether the tokenizer shall add its special tokens."""
        if isinstance(prompt, str):
            return prompt, True
        if not prompt or self._tokenizer.chat_template is None:
            return "".join(text_of([message]) + "\n" for message in prompt), True
        begun = prompt[-1].get("role") == "assistant"  # the completion goes on with the prompt's last message
        text = self._rendered(prompt, columns, add_generation_prompt=not begun, continue_final_message=begun)
        return text, False

    def _ids(self, text: str, special: bool) -> list[int]:
        return encode(self._tokenizer, [text], rendered=not special)[0]

    def _load(self, path: str) -> tuple[Any, Any]:
        """The language model at `path` and its tokenizer, in evaluation mode on the CPU."""
        options = load_options(self.dtype)
        with loading(path, self.__name__):
            adapter = adapter_config(path)
            if adapter is not None:
                if adapter.get("task_type") not in ("CAUSAL_LM", None):
                    raise self.error(
                        f"'{path}' is an adapter of type {adapter['task_type']}, not of a language model "
                        "(CAUSAL_LM); give one of recipes/sft.py, or the base."
                    )
                return load_adapter(path, self.__name__, adapter, AutoModelForCausalLM, options)
            # with output_loading_info a pair, of which its annotation does not know
            pair: Any = AutoModelForCausalLM.from_pretrained(path, output_loading_info=True, **options)
            model, info = pair
            if info["missing_keys"]:
                missing = ", ".join(sorted(info["missing_keys"])[:3])
                raise self.error(
                    f"'{path}' holds no whole language model ({missing} would be random); give a causal one."
                )
            return model.eval(), AutoTokenizer.from_pretrained(path, trust_remote_code=False)

    def _settle(self) -> None:
        config, tokenizer = self._model.config, open_ended(self._tokenizer)
        if not getattr(config, "is_decoder", True):
            raise self.error(f"'{self.path}' reads a text in both directions; give a causal language model.")
        firsts = (tokenizer.bos_token_id, tokenizer.eos_token_id)
        first = next((i for i in firsts if i is not None), None)
        if first is None:
            raise self.error(f"the tokenizer of '{self.path}' has neither a begin-of-text nor an end-of-text token.")
        self._first_id: int = first
        self._of_nothing = -math.log(config.get_text_config().vocab_size)
        self._limit = self._longest()
        whole = self._model.get_base_model() if hasattr(self._model, "get_base_model") else self._model
        forward = getattr(whole, "forward", whole)
        self._can_skip_prompts = "logits_to_keep" in inspect.signature(forward).parameters


def _common(first: list[int], second: list[int]) -> int:
    """How many ids the two begin with in common."""
    differ = (i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b)
    return next(differ, min(len(first), len(second)))
