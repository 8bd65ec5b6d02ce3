"""A parallel corpus in two plain-text files, named together: `dataset: corpus/train.{en,fi}`.

Line n of the first file is the source, line n of the second its translation. The braces can stand anywhere in the
path: `{en,fi}/train.txt`, `{source,target}.txt.gz`. In a shell the name wants quotes, or the shell takes it apart.
"""

import re
from collections.abc import Callable
from pathlib import Path

from pipeline.errors import UserError

_PAIR = re.compile(r"([^{}]*)\{([^{},]*),([^{},]*)\}([^{}]*)")


def pair_of(source: str) -> tuple[Path, Path] | None:
    """The two files that `source` names, source and target; None when it names one thing."""
    match = _PAIR.fullmatch(source)
    if match is None or match[2] == match[3]:
        return None
    return Path(match[1] + match[2] + match[4]), Path(match[1] + match[3] + match[4])


def read_pair(files: tuple[Path, Path], text_of: Callable[[Path], str]) -> list[dict[str, str | None]]:
    """Rows with the columns `source` and `target`, one for each line.

    Lines end with a line feed, with a carriage return before it or without; spaces at the ends of a line are left out.
    A blank line is None: a prompt or completion made of it (`row_templates`) is dropped and counted.

    Args:
        text_of: reads a file, or raises a UserError that names it.

    Raises:
        UserError: a file is not there, or they do not have the same number of lines.
    """
    for file in files:
        if not file.is_file():
            raise UserError(f"dataset {file}: there is no such file; {files[0]} and {files[1]} are read together")
    sources, targets = (_lines(text_of(file)) for file in files)
    if len(sources) != len(targets):
        raise UserError(
            f"dataset {files[0]} has {len(sources):,} lines and {files[1]} has {len(targets):,}: line n of one must "
            "be the translation of line n of the other, so give two files of the same length"
        )
    return [{"source": source, "target": target} for source, target in zip(sources, targets, strict=True)]


def _lines(text: str) -> list[str | None]:
    # not splitlines(), which would also split at separators that may stand inside a sentence
    return [line.strip() or None for line in text.removesuffix("\n").split("\n")] if text else []
