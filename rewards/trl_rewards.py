"""TRL's own rewards by name (`trl.rewards`), with their options in YAML, on text as well as on messages."""

import importlib.util
import inspect
from typing import Any

from .base import Reward
from .text import Texts, text_of

# Our name in YAML (without TRL's get_ before those that are made with options) -> TRL's.
NAMES = {
    "accuracy_reward": "accuracy_reward",
    "reasoning_accuracy_reward": "reasoning_accuracy_reward",
    "think_format_reward": "think_format_reward",
    "cosine_scaled_reward": "get_cosine_scaled_reward",
    "repetition_penalty_reward": "get_repetition_penalty_reward",
    "soft_overlong_punishment": "get_soft_overlong_punishment",
}
_GIVEN = {"completions", "completion_ids", "log_extra", "log_metric", "kwargs"}  # by the trainer, not by the data
_MATHEMATICS = {"accuracy_reward", "reasoning_accuracy_reward", "cosine_scaled_reward"}


class TrlReward(Reward):
    """A reward that comes with TRL, as TRL computes it.

        {name: think_format_reward}
        {name: accuracy_reward, column: answer}
        {name: soft_overlong_punishment, max_completion_len: 256, soft_punish_cache: 64}

    TRL's read messages: text is handed to them as one message, and so are several messages.

    Args:
        reward: its name; in YAML it is the name of the whole.
        column ("solution"): for those that compare: the column with each row's solution, for which TRL asks by the
            name `solution`.
        options: those of TRL's reward, under TRL's names.

    Raises:
        RewardError: an option that TRL's has not, one that is missing, or one that it refuses.
    """

    def __init__(self, reward: str, column: str | None = None, log_name: str | None = None, **options: Any):
        super().__init__(log_name or reward)
        if reward in _MATHEMATICS and importlib.util.find_spec("math_verify") is None:
            raise self.error('it needs the package math-verify; run `pip install -e ".[math]"`.')
        import trl.rewards  # here, since it loads a good part of TRL

        made = getattr(trl.rewards, NAMES[reward])
        if NAMES[reward] != reward:
            try:
                made, options = made(**options), {}
            except (TypeError, ValueError) as error:
                raise self.error(f"TRL refuses its options: {error}.") from None
        self._function, self._options = made, options
        self._compares = "solution" in inspect.signature(made).parameters
        if column is not None and not self._compares:
            raise self.error("it reads no column; leave column out.")
        self.column_name = column or "solution"

    def __call__(self, prompts: Texts, completions: Texts, **columns: Any) -> list[float | None]:
        asked = inspect.signature(self._function).parameters
        given = {name: columns[name] for name in _GIVEN & set(asked) & set(columns)}
        if self._compares:
            given["solution"] = [self._solution(entry) for entry in self.column(columns, self.column_name)]
        if "completions" in asked:
            given["completions"] = [_as_message(completion) for completion in completions]
        if "completion_ids" in asked and "completion_ids" not in columns:
            raise self.error("it counts tokens and needs completion_ids; it works in a trainer alone.")
        answers: list[float | None] = self._function(**given, **self._options)
        return answers

    @classmethod
    def further_options(cls, **fixed: Any) -> list[str]:
        """The options that TRL's function of that name takes."""
        import trl.rewards

        taken = inspect.signature(getattr(trl.rewards, NAMES[fixed["reward"]])).parameters
        return [name for name in taken if name not in _GIVEN | {"solution"}]

    def _solution(self, entry: Any) -> str:
        if entry is not None and not isinstance(entry, str | int | float):
            raise self.error(f"the column '{self.column_name}' must hold a text or a number in each row.")
        return "" if entry is None else str(entry)


def _as_message(completion: Any) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text_of(completion)}]
