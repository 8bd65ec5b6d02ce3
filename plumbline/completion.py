"""`plumbline completion bash`: a script by which the Tab key completes commands, flags and file names (shtab)."""

import argparse
import contextlib
import io
import re
import sys
from collections.abc import Iterator

import shtab

from pipeline.safety.commands import Parser
from plumbline.commands import COMMANDS
from plumbline.new_recipe import names

SHELLS = ("bash", "zsh", "tcsh")
HOW = {
    "bash": "plumbline completion bash > ~/.local/share/bash-completion/completions/plumbline",
    "zsh": "plumbline completion zsh > a folder of $fpath, as _plumbline",
    "tcsh": "plumbline completion tcsh > ~/.plumbline.csh, and source it in ~/.tcshrc",
}
FLAG = re.compile(r"^ {2,}(?:-\w, )?--([a-zA-Z][\w-]*)", re.MULTILINE)


def main(arguments: list[str]) -> int:
    """The command. Its output holds the flags of this version; make it anew after an update."""
    how = "; ".join(HOW.values())
    parser = Parser("plumbline completion", description=f"Prints the script. {how}.")
    parser.add_argument("shell", choices=SHELLS)
    shell = parser.parse_args(arguments).shell
    print(shtab.complete(tree(), shell))
    return 0


def tree() -> Parser:
    """A parser that has every command and its flags; it is never parsed with."""
    parser = Parser("plumbline")
    commands = parser.add_subparsers()
    for name, command in COMMANDS.items():
        one = commands.add_parser(name, help=command.says, add_help=False)
        for flag in flags(name):
            asked = one.add_argument(f"--{flag}", help="")
            if flag in ("config", "run", "samples", "out", "hardware") or flag.endswith(("_path", "_dir", "dataset")):
                _with_files(asked)
            if name == "init" and flag == "like":
                asked.choices = names()
        if command.launched:
            one.add_argument("--nproc")
            _with_files(one.add_argument("--hardware"))
        _with_files(one.add_argument("paths", nargs="*"))
    return parser


def _with_files(argument: argparse.Action) -> None:
    """Its value is completed as a path; shtab reads this attribute."""
    argument.complete = shtab.FILE  # type: ignore[attr-defined]  # argparse has none, shtab adds it


def flags(name: str) -> list[str]:
    """The flags of a command, as its own help lists them."""
    said = help_of(name)
    found = dict.fromkeys(FLAG.findall(said))
    if "[--config FILE.yaml]" in said:  # the stages' own parser has these in its first line alone
        found = {"config": None} | found | {"debug": None, "help": None, "help-all": None}
    return list(found)


def help_of(name: str) -> str:
    """What `plumbline <name> --help-all` or, where it has none, `--help` prints."""
    from plumbline.main import main as plumbline

    with _argv_kept(), contextlib.redirect_stdout(io.StringIO()) as said:
        ours = COMMANDS[name].runs.endswith(".py") and name not in ("seeds", "compare") or name == "card"
        with contextlib.suppress(SystemExit):
            plumbline([name, "--help-all" if ours else "--help"])
    return said.getvalue()


@contextlib.contextmanager
def _argv_kept() -> Iterator[None]:
    argv = sys.argv
    try:
        yield
    finally:
        sys.argv = argv
