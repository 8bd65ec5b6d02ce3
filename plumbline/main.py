"""`plumbline COMMAND ...`: finds the command and runs it.

The commands are the scripts of recipes/ and the modules that `python -m` runs, so parser, help and errors are theirs.
"""

import difflib
import sys
from collections.abc import Sequence

from pipeline import __version__
from pipeline.errors import UserError
from pipeline.safety.console import leave_unread
from pipeline.safety.visible import visible
from plumbline.commands import COMMANDS, Command, usage
from plumbline.launching import run


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; 2 is returned for what the user can mend, which is said in one line."""
    given = list(sys.argv[1:] if argv is None else argv)
    name, arguments = (given[0], given[1:]) if given else ("--help", [])
    if name in ("-h", "--help", "help"):
        print(usage())
        return 0
    if name in ("-V", "--version"):
        print(f"plumbline {__version__}")
        return 0
    try:
        return run(name, _find(name), arguments) or 0
    except UserError as error:
        print(f"error: {visible(str(error))}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        leave_unread()
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        return 130


def _find(name: str) -> Command:
    if name in COMMANDS:
        return COMMANDS[name]
    close = difflib.get_close_matches(name, COMMANDS, n=2)
    hint = f", did you mean {' or '.join(close)}?" if close else ""
    raise UserError(f"there is no command {name[:100]}{hint} (plumbline --help lists them)")
