"""Large data sets stand in memory once, as Arrow's tables, not as Python's objects (about ten times their size)."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from large_data import apart


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "count"), [("preference", 160_000), ("prompts", 500_000)])
def test_memory_of_a_large_file(kind, count):
    size, _, _, memory = apart(kind, count)
    assert memory < 5 * size / 2**30 + 0.2
