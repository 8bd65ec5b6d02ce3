"""Reads commands of the documents as strictly as the programs would, without running what they command.

`python parse_commands.py commands.json`: a list of [where, folder, words]; prints a line for each that is refused. The
words are those behind `python`: a script of recipes/ or `-m` and a module, and flags.
"""

import argparse
import contextlib
import io
import json
import os
import runpy
import sys
from pathlib import Path

from pipeline import cli
from pipeline.errors import UserError


class Understood(BaseException):
    """The command was read to its end."""


def _stops(function):
    def read(*args, **kwargs):
        function(*args, **kwargs)
        raise Understood

    return read


def refusal(words: list[str]) -> str | None:
    """Why the command is refused, or None."""
    with contextlib.redirect_stderr(io.StringIO()) as said, contextlib.redirect_stdout(io.StringIO()):
        try:
            if words[0] == "-m":
                sys.argv = words[1:]
                runpy.run_module(words[1], run_name="__main__", alter_sys=True)
            else:
                sys.argv = words
                runpy.run_path(words[0], run_name="__main__")
        except Understood:
            return None
        except UserError as error:
            return str(error)
        except SystemExit as error:
            if not error.code:  # --help
                return None
            return said.getvalue().strip() or f"exit code {error.code}"
    return "it came to its end without reading its flags"


def main(path: Path) -> None:
    parse = cli.parse
    cli.parse = _stops(parse)
    in_parse = argparse.ArgumentParser.parse_known_args

    def parse_known_args(self, *args, **kwargs):
        found = in_parse(self, *args, **kwargs)
        if isinstance(self, cli.Parser):  # cli.parse goes on with it
            return found
        if found[1] and "compare.py" not in sys.argv[0]:  # whose further flags go to each run
            self.error(f"no such flag {found[1][0]}")
        raise Understood

    argparse.ArgumentParser.parse_known_args = parse_known_args
    cli.launch = lambda run: run()
    for where, folder, words in json.loads(path.read_text("utf-8")):
        os.chdir(folder)
        if (why := refusal(words)) is not None:
            print(f"{where}: {' '.join(words)}: {why}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
