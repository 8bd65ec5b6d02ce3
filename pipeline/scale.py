"""`python -m pipeline.scale`; the code is in pipeline/memory/scale.py."""

from pipeline.memory.scale import main

if __name__ == "__main__":
    main()
