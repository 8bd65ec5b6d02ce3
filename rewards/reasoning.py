"""The tasks of the package reasoning_gym: their verifiers as a reward, and the one place that makes them.

A row says which entry of which task it is, not what is in it; the entry is made again for the verifier. So nothing of
it has to survive JSON or Arrow.
"""

import dataclasses
import functools
import json
from collections.abc import Mapping
from typing import Any

from .base import Reward, RewardError, nearest
from .text import Texts, text_of

COLUMN = "reasoning_gym"  # of a row: JSON with task, options and index
_INSTALL = "the package reasoning_gym is not installed: pip install -e '.[reasoning]'"


class ReasoningGym(Reward):
    """What the task's own verifier (`score_answer`) says of the answer, mostly from 0 to 1.

        {name: reasoning_gym}    {name: reasoning_gym, tag: answer}

    Some verifiers pay a little for any text, or for a right answer among other words: `python -m rewards.check` shows
    it, and `at_least: 1` pays right answers alone.

    Options:
        tag (none): the answer stands in <tag>…</tag>, the last one counts; a completion without it scores as an empty
            answer. Without `tag` the whole completion, stripped, is the answer.
        column ("reasoning_gym"): where a row says which entry it is, as `dataset: reasoning_gym:<task>` writes it.

    Source: Stojanovski et al. 2025, "Reasoning Gym: Reasoning Environments for Reinforcement Learning with Verifiable
    Rewards" (arXiv 2505.24760).
    """

    def __init__(self, tag: str | None = None, column: str = COLUMN, log_name: str = "reasoning_gym"):
        super().__init__(log_name)
        if tag is not None and not str(tag).isidentifier():
            raise self.error(f"tag is {tag!r}; give the name between < and >, such as answer.")
        self.tag, self.column_name = tag, column

    def prepare(self) -> None:
        _package()

    def __call__(self, prompts: Texts, completions: Texts, **columns: Any) -> list[float | None]:
        entries = self.column(columns, self.column_name)
        rows = zip(map(text_of, completions), entries, strict=True)
        return [None if entry is None else self._score(text, entry) for text, entry in rows]

    def _score(self, completion: str, entry: Any) -> float:
        try:
            said = json.loads(entry)
            name, options, index = said["task"], said["options"], int(said["index"])
        except (TypeError, ValueError, KeyError):
            raise self.error(
                f"the column '{self.column_name}' does not name an entry; use data of dataset: reasoning_gym:<task>."
            ) from None
        task = make_task(name, json.dumps(options, sort_keys=True))
        return float(task.score_answer(self.answer(completion), task[index]))

    def answer(self, completion: str) -> str:
        """What of a completion is its answer; empty where there is none."""
        if self.tag is None:
            return completion.strip()
        return completion.rpartition(f"</{self.tag}>")[0].rpartition(f"<{self.tag}>")[2].strip()


def rows_of(name: str, options: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every entry of a task: question, answer, prompt (the question), completion (the answer), and which entry it is.

    Args: options: the settings of the task, `size` (500) and `seed` (0) among them.

    Raises:
        RewardError: no such task or option, or a value that the task refuses.
    """
    options = {"seed": 0} | dict(options)
    task, rows = make_task(name, json.dumps(options, sort_keys=True)), []
    for index in range(len(task)):
        entry = task[index]
        question, answer = str(entry["question"]), "" if entry["answer"] is None else str(entry["answer"])
        which = json.dumps({"task": name, "options": options, "index": index}, sort_keys=True)
        row = {"question": question, "answer": answer, "prompt": question, "completion": answer}
        rows.append(row | {COLUMN: which})
    return rows


@functools.lru_cache(maxsize=64)
def make_task(name: str, options: str) -> Any:
    """The task `name` with options, a JSON text; a `ProceduralDataset` of the package."""
    registered = _package().factory.DATASETS
    if name not in registered:
        raise RewardError(f"reasoning_gym has no task '{name[:100]}'{nearest(name, registered)}.")
    given = json.loads(options)
    known = [field.name for field in dataclasses.fields(registered[name][1])]
    for key in given:
        if key not in known:
            raise RewardError(
                f"The task '{name}' of reasoning_gym has no option '{key}'{nearest(key, known)}; it takes "
                f"{', '.join(known)}."
            )
    try:
        return _package().create_dataset(name, **given)
    except Exception as error:  # its checks are assertions and errors of any kind
        why = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        raise RewardError(f"The task '{name}' of reasoning_gym refuses {options}: {why}.") from None


def _package() -> Any:
    try:
        import reasoning_gym
        import reasoning_gym.factory
    except ImportError:
        raise RewardError(f"Reward 'reasoning_gym': {_INSTALL}.") from None
    return reasoning_gym
