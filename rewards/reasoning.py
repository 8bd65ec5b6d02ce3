"""The tasks of the package reasoning_gym: their verifiers as a reward, and the one place that makes them.

A row says which entry of which task it is, not what is in it; the entry is made again for the verifier. So nothing of
it has to survive JSON or Arrow. Both are done by reasoning_process.py, in which sets always have the same order: some
tasks (list_functions, word_ladder) make another entry of the same seed where it is another one.
"""

import dataclasses
import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .base import Reward, RewardError, nearest, number
from .text import Texts, text_of
from .verifier import Process

COLUMN = "reasoning_gym"  # of a row: JSON with task, options and index
_SCRIPT = Path(__file__).with_name("reasoning_process.py")
_SECONDS_TO_MAKE = 600  # an entry
_INSTALL = "the package reasoning_gym is not installed: pip install -e '.[reasoning]'"


class ReasoningGym(Reward):
    """What the task's own verifier (`score_answer`) says of the answer, mostly from 0 to 1.

        {name: reasoning_gym}    {name: reasoning_gym, tag: answer}

    Some verifiers pay a little for any text, or for a right answer among other words: `python -m rewards.check` shows
    it, and `at_least: 1` pays right answers alone.

    Some evaluate what the model wrote (countdown, puzzle24, n_queens, integration, matrices, ...).
    All are asked in a process of their own; one that evaluates, in a sandbox like that for generated code, and where
    there is none (docs/code-reward.md says what it needs), the reward refuses such a task.

    In a trainer the shares of rows are logged on which a verifier stumbled (`reasoning_gym/failed`) or took too long
    (`reasoning_gym/late`); such an answer scores 0.

    Options:
        tag (none): the answer stands in <tag>…</tag>, the last one counts; a completion without it scores as an empty
            answer. Without `tag` the whole completion, stripped, is the answer.
        column ("reasoning_gym"): where a row says which entry it is, as `dataset: reasoning_gym:<task>` writes it.
        seconds (10): time limit of each answer.

    Source: Stojanovski et al. 2025, "Reasoning Gym: Reasoning Environments for Reinforcement Learning with Verifiable
    Rewards" (arXiv 2505.24760).
    """

    def __init__(
        self,
        tag: str | None = None,
        column: str = COLUMN,
        seconds: float = 10.0,
        log_name: str = "reasoning_gym",
    ):
        super().__init__(log_name)
        if tag is not None and not str(tag).isidentifier():
            raise self.error(f"tag is {tag!r:.100}; give the name between < and >, such as answer.")
        self.tag, self.column_name = tag, column
        self.seconds = number(seconds, "seconds", log_name)
        if not 0.1 <= self.seconds <= 3600:
            raise self.error(f"seconds is {seconds}; give a number from 0.1 to 3600.")
        self._process = Process(_SCRIPT, "reasoning_gym", self.seconds)

    def prepare(self) -> None:
        _package()
        problem = self._process.start()
        if problem:
            raise self.error(f"reasoning_gym does not start: {problem}.")

    def __call__(self, prompts: Texts, completions: Texts, **columns: Any) -> list[float | None]:
        entries = self.column(columns, self.column_name)
        said = [
            {} if entry is None else self._ask(text_of(completion), entry)
            for completion, entry in zip(completions, entries, strict=True)
        ]
        log_metric = columns.get("log_metric")
        if log_metric is not None:
            for what in ("failed", "late"):
                log_metric(f"{self.__name__}/{what}", sum(what in each for each in said) / max(1, len(said)))
        return [None if entry is None else each.get("score", 0.0) for entry, each in zip(entries, said, strict=True)]

    def _ask(self, completion: str, entry: Any) -> dict[str, Any]:
        try:
            said = json.loads(entry)
            name, options, index = said["task"], said["options"], int(said["index"])
            make_task(name, text := json.dumps(options, sort_keys=True))  # for its words about what does not fit
        except (TypeError, ValueError, KeyError, AttributeError, RecursionError) as error:
            if isinstance(error, RewardError):
                raise
            raise self._no_entry() from None
        found = self._process.ask({"task": name, "options": text, "index": index, "given": self.answer(completion)})
        if "entry" in found:
            raise self._no_entry()
        if "missing" in found:
            raise self.error(
                f"the verifier of {name} evaluates what a model writes, which cannot be contained here, so it is not "
                f"asked; missing: {found['missing']}."
            )
        return found

    def _no_entry(self) -> RewardError:
        return self.error(
            f"the column '{self.column_name}' does not name an entry; use data of dataset: reasoning_gym:<task>."
        )

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
    text = json.dumps(options, sort_keys=True)
    size, rows = len(make_task(name, text)), []
    making = Process(_SCRIPT, "reasoning_gym", _SECONDS_TO_MAKE)
    try:
        for index in range(size):
            entry = making.ask({"task": name, "options": text, "index": index})
            if "question" not in entry:
                why = entry.get("entry", f"it takes more than {_SECONDS_TO_MAKE} seconds")
                raise RewardError(f"The task '{name}' of reasoning_gym fails to make entry {index}: {why:.200}.")
            row = entry | {"prompt": entry["question"], "completion": entry["answer"]}
            which = json.dumps({"task": name, "options": options, "index": index}, sort_keys=True)
            rows.append(row | {COLUMN: which})
    finally:
        making.close()
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
