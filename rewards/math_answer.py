"""Mathematical answers: equal as mathematics, however they are written."""

import importlib.util
import re
from pathlib import Path
from typing import Any

from .base import choice, number
from .final import Final, logger
from .text import Texts
from .verifier import Process

_GSM8K = re.compile(r"^.*####[ \t]*(.*)$", re.DOTALL)  # the answer stands behind the last ####


class Math(Final):
    r"""1 where a completion's final answer equals the row's, as mathematics (by the package math-verify), else 0.

        {name: math, column: answer}
        {name: math, column: solution, after: </think>}

    `\frac{1}{2}`, `0.5` and `50\%` are equal, and so are `1,000` and `1000`, `\{1, 2\}` and `\{2, 1\}`, `5 cm` and
    `5`. The answer is what follows the last `####` (GSM8K), else the last `\boxed{...}` or "the final answer is ...",
    else the last formula or number in the text. In the column an answer needs no dollars around its LaTeX, and a whole
    solution will do: it is read by the same rules.

    In a trainer the shares of rows are logged that could not be read: `math/unread` (completions), `math/late` (those
    among them that took too long) and `math/unread_column` (rows whose own answer is no mathematics; they score None).

    Options:
        column ("answer"): the column with each row's right answer, or a list of answers, any of which is right.
        tag, after (none): what alone is read of a completion (see `rewards/final.py`).
        unread (0): what a completion without a readable answer scores: 0, or none for no score.
        seconds (5): time limit of each completion. It is compared in a process of its own, which is ended after that.

    Raises:
        RewardError: math-verify is not installed.
    """

    def __init__(
        self,
        column: str = "answer",
        tag: str | None = None,
        after: str | None = None,
        unread: int | str | None = 0,
        seconds: float = 5.0,
        log_name: str = "math",
    ):
        super().__init__(column, tag, after, log_name)
        self.unread = None if choice(unread, "unread", (0, "none", None), log_name) != 0 else 0.0
        self.seconds = number(seconds, "seconds", log_name)
        if not 0.1 <= self.seconds <= 600:
            raise self.error(f"seconds is {seconds}; give a number from 0.1 to 600.")
        if importlib.util.find_spec("math_verify") is None:
            raise self.error('it needs the package math-verify; run `pip install -e ".[math]"`.')
        self._process = Process(Path(__file__).with_name("math_process.py"), "math-verify", self.seconds)
        self._told = False

    def prepare(self) -> None:
        problem = self._process.start()
        if problem:
            raise self.error(f"math-verify does not start: {problem}.")

    def __call__(self, prompts: Texts, completions: Texts, **columns: Any) -> list[float | None]:
        scores: list[float | None] = []
        unread = late = unknown = 0
        for row, (right, given) in enumerate(self.pairs(completions, columns)):
            said = self._compare(right, given)
            if said.get("right") is False:
                unknown += 1
                scores.append(None)
                self._tell(row, right)
            elif not said.get("given"):
                unread, late = unread + 1, late + bool(said.get("late"))
                scores.append(self.unread)
            else:
                scores.append(float(said["equal"]))
        total = max(1, len(scores))
        self.count(columns, unread=unread / total, late=late / total, unread_column=unknown / total)
        return scores

    def _compare(self, right: list[str], given: str | None) -> dict[str, Any]:
        if not right:
            return {"right": False}
        if not given or not given.strip():
            return {"right": True, "given": False}
        marked = _GSM8K.match(given)
        question = {
            "right": [found[1] if (found := _GSM8K.match(text)) else text for text in right],
            "given": marked[1].strip().partition("\n")[0] if marked else given,
            "alone": bool(marked or self.tag),
        }
        return self._process.ask(question)

    def _tell(self, row: int, right: list[str]) -> None:
        if right and not self._told:
            logger.warning(
                "Reward '%s': no mathematics is found in %r (column '%s'), so the row has no score; said once.",
                self.__name__,
                right[0][:80],
                self.column_name,
            )
            self._told = True
