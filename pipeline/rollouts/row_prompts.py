"""Rows in TRL's trainers that sample: their prompts as every other stage reads them, and their columns as columns.

What TRL would do with a row, and this changes: it renders the prompt without the row's own `chat_template_kwargs` and
`tools`, which its SFTTrainer and RewardTrainer follow; it takes `image` and `images` for pictures, on which a model of
text fails; and a column called `prompts` or `completions` is a TypeError in the first reward.
"""

from typing import Any

from pipeline.models.prompts import PICTURES, tokenize_prompts, with_kwargs
from rewards.base import RESERVED


class RowPrompts:
    """Mixed into TRL's GRPOTrainer and RLOOTrainer. With a processor, tools or environments, prompts are TRL's own."""

    _rows: list[dict] | None = None  # of the rollout that is being made

    @property
    def _own_prompts(self) -> bool:
        return not (self._is_vlm or getattr(self, "tools", None) or getattr(self, "environment_factories", None))

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> Any:
        if not self._own_prompts:
            return super()._generate_and_score_completions(inputs)
        self._rows = with_kwargs(inputs, self.chat_template_kwargs)
        shown = [{key: value for key, value in row.items() if key not in PICTURES} for row in self._rows]
        try:
            return super()._generate_and_score_completions(shown)
        finally:
            self._rows = None

    def _tokenize_prompts(self, prompts):
        if not self._own_prompts:
            return super()._tokenize_prompts(prompts)
        rows = self._rows
        if rows is None or [row["prompt"] for row in rows] != list(prompts):  # asked for by `generate`, say
            rows = with_kwargs([{"prompt": prompt} for prompt in prompts], self.chat_template_kwargs)
        return tokenize_prompts(self.processing_class, rows), None, {}

    def prompt_ids_of(self, inputs: list[dict[str, Any]]) -> list[list[int]]:
        """Token ids of the prompts of rows, as in a rollout that is made of them."""
        kept, self._rows = self._rows, with_kwargs(inputs, self.chat_template_kwargs)
        try:
            return self._tokenize_prompts([row["prompt"] for row in inputs])[0]
        finally:
            self._rows = kept

    def _calculate_rewards(
        self, inputs: list[Any], prompts: list[Any], completions: list[Any], completion_ids_list: list[list[int]]
    ) -> Any:
        rows = inputs if self._rows is None else self._rows
        rows = [{key: value for key, value in row.items() if key not in RESERVED} for row in rows]
        return super()._calculate_rewards(rows, prompts, completions, completion_ids_list)
