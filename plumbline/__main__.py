"""`python -m plumbline`, the same as `plumbline`."""

import sys

from plumbline.main import main

if __name__ == "__main__":
    sys.exit(main())
