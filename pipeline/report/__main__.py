"""The report of one run, or of several on one page: `python -m pipeline.report RUN [RUN ...] [--out page.html]`

One run: its page, report.html in its folder. Several: one page with their curves overlaid, reports.html in the folder
that holds them; runs that differ only by their seed become one line with a band.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from pipeline.errors import UserError
from pipeline.report.page import write_comparison, write_report
from pipeline.safety.commands import Parser
from pipeline.safety.visible import visible


def main(argv: Sequence[str] | None = None) -> int:
    summary, details = __doc__.split("\n\n")
    parser = Parser("python -m pipeline.report", description=summary.split(":")[0], epilog=details)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="output folder of a stage")
    parser.add_argument("--out", type=Path, metavar="PAGE", help="where to write the page")
    try:
        args = parser.parse_args(argv)
        several = len({run.absolute() for run in args.runs}) > 1
        page = write_comparison(args.runs, args.out) if several else write_report(args.runs[0], args.out)
        print(visible(str(page)))
    except UserError as error:
        print(f"error: {visible(str(error))}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
