"""`python -m pipeline.scale`; the code is in pipeline/memory/scale_tables.py."""

from pipeline.memory.scale_tables import main

if __name__ == "__main__":
    main()
