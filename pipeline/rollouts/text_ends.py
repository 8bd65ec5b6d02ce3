"""Where completions end, and what they say, in TRL's trainers that sample."""

from typing import Any

from trl import GRPOTrainer, is_conversational

from pipeline.models.ends import end_of_turn, ids_of_text, said, turn_of
from rewards import begun_once, open_ended


class TextEnds:
    """Mixed into TRL's trainers that sample, before their class: a completion also ends where a turn does, no prompt
    ends in an end token that the tokenizer adds, and the rewards read what the ids say behind the prompt."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._turn = turn_of(self._tokenizer)
        self.eos_token_ids = list(dict.fromkeys([*self.eos_token_ids, end_of_turn(self._tokenizer)]))
        open_ended(self._tokenizer, self.eos_token_ids)
        if "eos_token_id" not in (self.args.generation_kwargs or {}):
            self.generation_config.eos_token_id = self.generation_kwargs["eos_token_id"] = self.eos_token_ids

    def _tokenize_prompts(self, prompts):
        if not is_conversational({"prompt": prompts[0]}):
            ids, *rest = super()._tokenize_prompts(prompts)
            return [begun_once(row, self._tokenizer) for row in ids], *rest
        # TRL asks every message for its content, which one that only calls tools need not have
        return super()._tokenize_prompts([[{"content": ""} | message for message in prompt] for prompt in prompts])

    def _generate(self, prompts: list[Any]) -> Any:
        ids, completion_ids, *rest = super()._generate(prompts)
        messages = is_conversational({"prompt": prompts[0]})
        parsed = messages and any(getattr(self._tokenizer, f"response_{x}", None) for x in ("template", "schema"))
        if not parsed and not getattr(self, "tools", None):
            texts = said(ids, completion_ids, self._tokenizer, self.eos_token_ids, self._turn if messages else None)
            place = 1 if isinstance(self, GRPOTrainer) else 0  # behind GRPO's mask of what tools have said
            rest[place] = [[{"role": "assistant", "content": text}] for text in texts] if messages else texts
        return ids, completion_ids, *rest

    def _get_tool_suffix_ids(self, tool_messages):
        return [*self._behind_a_call(tool_messages[0]["name"]), *super()._get_tool_suffix_ids(tool_messages)]

    def _behind_a_call(self, name: str) -> list[int]:
        """What the chat template writes between the end of a turn that calls a tool and the next, where TRL, which
        looks for the tokenizer's own end token alone, leaves it out."""
        if self._turn is None or self._turn.end is None:
            return []
        ids = ids_of_text(self._tokenizer, self._turn.behind)
        if self._turn.end not in ids or self._tokenizer.eos_token_id in ids:
            return []
        call = {"type": "function", "function": {"name": name, "arguments": {}}}
        turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "", "tool_calls": [call]}]
        options = {"chat_template": self.chat_template, **self.chat_template_kwargs}
        ended = self._tokenizer.apply_chat_template(turns, tokenize=False, **options).endswith(self._turn.behind)
        return ids[ids.index(self._turn.end) + 1 :] if ended else []
