"""Generated Python code: whether it parses, compiles and passes the tests of its row."""

import ast
import re
import textwrap
from typing import Any

from .base import Reward, choice, number
from .sandbox import Job, SandboxError, require, run_all
from .text import Texts, text_of

CHECKS = ("tests", "compiles", "parses")
# A fenced block: the fence, its language, what is inside. A block that is never closed goes on to the end.
_FENCE = re.compile(r"^([ \t]*)(`{3,}|~{3,})[ \t]*([\w+-]*)[^\n]*\n(.*?)(?:^[ \t]*\2[`~]*[ \t]*$|\Z)", re.M | re.S)
_PYTHON = {"python", "python3", "py"}


class Code(Reward):
    """The share of its row's unit tests that a completion's Python code passes, from 0 to 1.

        {name: code}
        {name: code, column: test_list, setup_column: test_setup_code}
        {name: code, check: parses, weight: 0.2}

    The code is the first block fenced as ```python, else the first fenced block, else the whole completion. A text
    without a single statement scores 0. A row without tests scores None. Each test runs in a process of its own,
    inside a sandbox (`sandbox.py`; docs/code-reward.md says what it holds and what it does not promise): with the
    standard library, without files, network, further processes or threads, and with stdin at its end.

    Options:
        check ("tests"): `parses` and `compiles` give 1 or 0 and run nothing; the rows then need no tests.
        column ("tests"): the column with each row's tests: a list of texts, each of which is one test (a line such as
            `assert f(2) == 4`, or a longer snippet), or one text, in which every assert at the outermost level is one
            test and what stands before it runs first.
        setup_column (none): a column with code that runs before the completion's: imports, classes (a text or a list).
        seconds (3): time limit of each test, in which the completion's own code runs too.
        memory_mb (512): memory limit of each test, Python's own 30 included.

    Raises:
        RewardError: also where the platform cannot contain the code; it is then not run at all.
    """

    def __init__(
        self,
        check: str = "tests",
        column: str = "tests",
        setup_column: str | None = None,
        seconds: float = 3.0,
        memory_mb: int = 512,
        log_name: str = "code",
    ):
        super().__init__(log_name)
        self.check = choice(check, "check", CHECKS, log_name)
        self.test_column = column
        self.setup_column = setup_column
        self.seconds = number(seconds, "seconds", log_name)
        self.memory_mb = int(number(memory_mb, "memory_mb", log_name))
        if not 0 < self.seconds <= 3600:
            raise self.error(f"seconds is {seconds}; give a number above 0, up to 3600.")
        if not 64 <= self.memory_mb <= 2**20:
            raise self.error(f"memory_mb is {memory_mb}; give a number of MiB from 64 up.")
        try:
            require(self.seconds, self.memory_mb)
        except SandboxError as error:
            raise self._no_sandbox(error) from None

    def __call__(self, prompts: Texts, completions: Texts, **columns: Any) -> list[float | None]:
        codes = [code_of(text_of(completion)) for completion in completions]
        if self.check == "tests":
            tests = [self.tests_of(entry, row) for row, entry in enumerate(self.column(columns, self.test_column))]
            setups = [""] * len(codes)
            if self.setup_column:
                setups = [
                    self.setup_of(entry, row) for row, entry in enumerate(self.column(columns, self.setup_column))
                ]
            rows = [
                [Job("tests", code, setup, test) for test in row_tests]
                for code, setup, row_tests in zip(codes, setups, tests, strict=True)
            ]
        else:
            rows = [[Job(self.check, code)] for code in codes]
        try:
            passed = iter(run_all([job for jobs in rows for job in jobs], self.seconds, self.memory_mb))
        except SandboxError as error:
            raise self._no_sandbox(error) from None
        return [sum(next(passed) for _ in jobs) / len(jobs) if jobs else None for jobs in rows]

    def tests_of(self, entry: Any, row: int) -> list[str]:
        """The tests in one entry of the column; `RewardError` if they are no Python, as no code would ever pass."""
        texts = self._texts(entry, self.test_column, row)
        if isinstance(entry, str):
            texts = [test for text in texts for test in _asserts(ast.parse(text))]
        return [test for test in texts if test.strip()]

    def setup_of(self, entry: Any, row: int) -> str:
        """What runs before the completion of this row."""
        return "\n".join(self._texts(entry, self.setup_column, row))

    def _texts(self, entry: Any, column: str | None, row: int) -> list[str]:
        texts = [entry or ""] if entry is None or isinstance(entry, str) else entry
        if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
            raise self.error(f"column '{column}', row {row}: {entry!r:.200} is no text and no list of texts.")
        for text in texts:
            try:
                ast.parse(text)
            except (SyntaxError, ValueError) as error:
                raise self.error(f"column '{column}', row {row}: {text!r:.200} is no Python ({error}).") from None
        return list(texts)

    def _no_sandbox(self, error: SandboxError) -> Exception:
        return self.error(f"generated code cannot be contained here, so it is not run; missing: {error}.")


def code_of(completion: str) -> str:
    """The Python code in a completion: the first block fenced as Python, else the first block, else all of it."""
    blocks = [(match[3].lower() in _PYTHON, match[1], match[4]) for match in _FENCE.finditer(completion)]
    if not blocks:
        return completion
    _, indent, code = next((block for block in blocks if block[0]), blocks[0])
    return textwrap.dedent(code) if indent else code


def _asserts(tests: ast.Module) -> list[str]:
    """One test for each outermost assert, with all the other statements above it; without any, the whole is one."""
    if not any(isinstance(node, ast.Assert) for node in tests.body):
        return [ast.unparse(tests)] if tests.body else []
    found: list[str] = []
    above: list[ast.stmt] = []
    for node in tests.body:
        if isinstance(node, ast.Assert):
            found.append(ast.unparse(ast.Module([*above, node], [])))
        else:
            above.append(node)
    return found
