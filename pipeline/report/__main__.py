"""`python -m pipeline.report runs/tiny/ppo [page.html]`"""

import sys
from collections.abc import Sequence

from pipeline.errors import UserError
from pipeline.report.page import write_report


def main(argv: Sequence[str]) -> int:
    if len(argv) not in (1, 2) or argv[0].startswith("-"):
        print(__doc__.strip("`"), file=sys.stderr)
        return 2
    try:
        print(write_report(*argv))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
