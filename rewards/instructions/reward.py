"""The reward `instructions`, and the checks of one instruction behind it."""

from collections.abc import Mapping
from typing import Any

from ..base import Reward, RewardError, choice, nearest
from ..text import Text, Texts, text_of
from . import ifbench, ifeval, plain
from .kinds import Kind

KINDS: dict[str, Kind] = {**ifeval.kind.found, **ifbench.kind.found, **plain.kind.found}  # by id
MODES = ("share", "all")


class Instructions(Reward):
    """Which of a row's instructions a completion meets: the share of them, or 1 if it meets all.

        {name: instructions}
        {name: instructions, mode: all}

    A row holds `instruction_id_list`, a list of ids of `KINDS`, and `kwargs`, a dict of parameters for each, as the
    data of IFEval and IFBench do; a parameter that is None counts as left out. A row without instructions scores
    None, a blank completion 0. The checks are IFEval's strict ones: the completion is read as it is.

    Options:
        ids ("instruction_id_list"): the column of ids.
        kwargs ("kwargs"): the column of parameters.
        mode ("share"): share = the share of the instructions that are met; all = 1 if all are, else 0.

    Raises:
        RewardError: an id or parameter that does not exist, is missing or is none.

    Source: Zhou et al. 2023, arXiv 2311.07911 (IFEval); Pyatkin et al. 2025, arXiv 2507.02833 (IFBench).
    """

    def __init__(
        self,
        ids: str = "instruction_id_list",
        kwargs: str = "kwargs",
        mode: str = "share",
        log_name: str = "instructions",
    ):
        super().__init__(log_name)
        self.ids, self.kwargs = ids, kwargs
        self.mode = choice(mode, "mode", MODES, log_name)

    def __call__(self, prompts: Texts, completions: Texts, **columns: Any) -> list[float | None]:
        ids, kwargs = self.column(columns, self.ids), self.column(columns, self.kwargs)
        rows = zip(prompts, completions, ids, kwargs, strict=True)
        return [self._score(row, *entries) for row, entries in enumerate(rows)]

    def _score(self, row: int, prompt: Text, completion: Text, ids: Any, kwargs: Any) -> float | None:
        listed = self._listed(ids, kwargs, row)
        text, request = text_of(completion), request_of(prompt)
        marks = []
        for id, parameters in listed:
            try:
                marks.append(_met(id, text, request, parameters))
            except RewardError as error:
                raise self.error(f"row {row} of the batch: {error}") from None
        if not marks:
            return None
        return float(all(marks)) if self.mode == "all" else sum(marks) / len(marks)

    def _listed(self, ids: Any, kwargs: Any, row: int) -> list[tuple[Any, Mapping[str, Any]]]:
        """The instructions of one row as pairs of id and parameters."""
        ids = [] if ids is None else ids
        kwargs = [{}] * len(ids) if kwargs is None else kwargs
        where = f"row {row} of the batch"
        if not isinstance(ids, list | tuple):
            raise self.error(f"column '{self.ids}', {where}, holds {ids!r:.80}; it must hold a list of ids.")
        if not isinstance(kwargs, list | tuple) or not all(isinstance(x, Mapping | None) for x in kwargs):
            raise self.error(f"column '{self.kwargs}', {where}, holds {kwargs!r:.80}; it must hold a list of dicts.")
        if len(ids) != len(kwargs):
            raise self.error(
                f"{where} has {len(ids)} in '{self.ids}' and {len(kwargs)} in '{self.kwargs}'; "
                "give one dict of parameters for each id."
            )
        return [(id, parameters or {}) for id, parameters in zip(ids, kwargs, strict=True)]


def met(instruction_id: str, completion: Text, prompt: Text | None = None, **kwargs: Any) -> bool:
    """Whether `completion` meets one instruction; a blank one meets none.

    Args:
        instruction_id: a key of `KINDS`.
        completion: a text or messages.
        prompt: stands in for `prompt_to_repeat` where that is left out.
        kwargs: the parameters of the kind; None counts as left out.

    Raises:
        RewardError: an id or parameter that does not exist, is missing or is none.

    >>> met("length_constraints:number_words", "Two words.", num_words=2, relation="exactly")
    True
    """
    return _met(instruction_id, text_of(completion), prompt, kwargs)


def _met(id: Any, text: str, prompt: Text | None, kwargs: Mapping[str, Any]) -> bool:
    kind, parameters = read(id, kwargs, prompt)
    return bool(text.strip()) and kind.check(text, **parameters)


def read(instruction_id: Any, kwargs: Mapping[str, Any], prompt: Text | None = None) -> tuple[Kind, dict[str, Any]]:
    """The kind and its parameters, checked; errors as in `met`."""
    if not isinstance(instruction_id, str) or instruction_id not in KINDS:
        near = nearest(str(instruction_id)[:100], KINDS)
        raise RewardError(
            f"there is no instruction {instruction_id!r:.100}{near}; rewards.instructions.KINDS has all."
        )
    kind = KINDS[instruction_id]
    return kind, kind.read(kwargs, None if prompt is None else request_of(prompt))


def request_of(prompt: Text) -> str:
    """The text of the last user's message of a prompt; the whole text of one without."""
    if not isinstance(prompt, str):
        users = [message for message in prompt if message.get("role") == "user"]
        prompt = users[-1:] or prompt
    return text_of(prompt)
