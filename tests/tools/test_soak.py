"""`make soak`: what it finds wrong, by hand; and that a few real updates leave no handle, thread or process behind."""

import sys

import pytest
import soak

MIB = 2**20


def rows(count, **changes):
    """`count` updates of a run in order; a change is a function of the update, counted from 1."""
    fine = {"memory": lambda n: 600 * MIB, "handles": lambda n: 6, "threads": lambda n: 2, "children": lambda n: 0}
    fine |= {"cpu_seconds": lambda n: 0.5}
    return [{name: value(n) for name, value in (fine | changes).items()} for n in range(1, count + 1)]


@pytest.mark.parametrize(
    ("changes", "wrong"),
    [
        ({}, []),
        # full after 50 updates: what came before does not count
        ({"memory": lambda n: (300 if n < 50 else 600) * MIB}, []),
        ({"memory": lambda n: (600 + n / 50) * MIB}, []),  # 620 of 601
        ({"memory": lambda n: (600 + n / 25) * MIB}, ["memory grew by 6.3%, more than 5%"]),  # 640 of 602
        ({"handles": lambda n: 6 + (n > 700)}, ["7 handles at the end, 6 after 50 updates"]),
        ({"threads": lambda n: 2 + n // 500}, ["4 threads at the end, 2 after 50 updates"]),
        ({"cpu_seconds": lambda n: 0.5 if n <= 900 else 0.54}, []),
        (
            {"cpu_seconds": lambda n: 0.5 if n <= 900 else 0.56},
            ["an update took 0.560 s of the processor at the end, 0.500 s at first"],
        ),
        ({"cpu_seconds": lambda n: 5.0 if n % 100 == 0 else 0.5}, []),  # a checkpoint now and then
    ],
)
def test_what_is_too_much(changes, wrong):
    assert soak.judge(rows(1000, **changes))["wrong"] == wrong


def test_the_slope_by_hand():
    assert soak.judge(rows(1000, memory=lambda n: 600 * MIB + 2048 * n))["kib_an_update"] == pytest.approx(2)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_updates_exams_and_checkpoints_leave_no_handles_threads_or_processes(tmp_path):
    found = soak.train(12, tmp_path)  # a checkpoint after each update, an exam as well
    assert len(found) == 12 and len(list(tmp_path.glob("checkpoint-*"))) == 2
    for name in ("handles", "threads", "children"):
        assert [row[name] for row in found[3:]] == [found[3][name]] * 9
