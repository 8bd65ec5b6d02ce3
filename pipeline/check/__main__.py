"""`python -m pipeline.check`, the same as `python -m rewards.check`."""

from pipeline.check.command import main

if __name__ == "__main__":
    main()
