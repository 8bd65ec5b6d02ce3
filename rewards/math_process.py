"""A process that compares mathematical answers with `math-verify`. Started by math_answer.py, never imported.

One line of JSON for each question, one for each answer. SymPy can be sent into computations without an end by a line
of text (9^9^9^9), some of them in one instruction that no signal interrupts: so they are made here, where the trainer
can kill them, under a limit of memory.

It stands alone: of this package it imports nothing.
"""

import json
import logging
import re
import signal
import sys
from typing import Any

from math_verify import parse, verify

# Where LaTeX says itself that it is LaTeX; elsewhere it is read as text, in which math-verify finds numbers alone.
_MARKED = re.compile(r"\$|\\\(|\\\[|\\boxed")
# A word: as LaTeX it would be a product of its letters.
_WORD = re.compile(r"(?<![a-zA-Z\\])[a-zA-Z]{3,}")
_TEXT = re.compile(r"\\[a-zA-Z]+\{[a-zA-Z ]*\}")  # words in it are LaTeX's business, as in \text{ cm}
# A number on its own, perhaps with a sign of currency or percent: its separators are not for LaTeX.
_NUMBER = re.compile(r"[-+]?\s*[$€£¥]?\s*[-+]?(?:\d[\d, ]*\.?\d*|\.\d+)\s*\\?%?")
_GROUPS = re.compile(r"(?<=\d)[, ](?=\d{3}(?!\d))")


class TooLong(BaseException):
    """Past the time limit; not an Exception, so that no library takes it for a bad formula."""


def read(text: str, alone: bool) -> list[Any]:
    """What math-verify makes of `text`: expressions and the text that they were read from; empty if it finds none.

    Args:
        alone: the text is the answer and nothing else. LaTeX in it then needs no dollars around it.
    """
    text = text.strip().removesuffix(".")
    try:
        return _read(text, alone)
    except Exception:  # it is given any text; what it stumbles over is no formula
        return []


def _read(text: str, alone: bool) -> list[Any]:
    if alone and _NUMBER.fullmatch(text):
        text = _GROUPS.sub("", text)
    if alone and not _MARKED.search(text.lstrip("+- $")) and not _WORD.search(_TEXT.sub("", text)):
        found: list[Any] = parse(f"\\boxed{{{text}}}", parsing_timeout=None)
        if found:
            return found
    return list(parse(text, parsing_timeout=None))


def answer(question: dict[str, Any]) -> dict[str, Any]:
    """Whether the completion's answer is one of the row's; which of them could be read."""
    right = [found for text in question["right"] if (found := read(text, alone=True))]
    if not right:
        return {"right": False}
    given = read(question["given"], question["alone"])
    if not given:
        return {"right": True, "given": False}
    equal = any(verify(one, given, timeout_seconds=None) for one in right)
    return {"right": True, "given": True, "equal": bool(equal)}


def _too_long(*_: Any) -> None:
    raise TooLong


def main() -> None:
    """Answers questions until the trainer is gone. Arguments: seconds for each, memory in MiB."""
    logging.disable()  # math-verify warns that it has no time limit of its own
    seconds, memory = float(sys.argv[1]), int(sys.argv[2])
    if sys.platform != "win32":
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (memory << 20, memory << 20))
        signal.signal(signal.SIGALRM, _too_long)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the trainer, which ends this process
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        try:
            if sys.platform != "win32":
                signal.setitimer(signal.ITIMER_REAL, seconds)
            said = answer(json.loads(line))
        except TooLong:
            said = {"late": True}
        except Exception:  # of the comparison, e.g. no memory
            said = {"right": True, "given": False}
        finally:
            if sys.platform != "win32":
                signal.setitimer(signal.ITIMER_REAL, 0)
        print(json.dumps(said), flush=True)


if __name__ == "__main__":
    main()
