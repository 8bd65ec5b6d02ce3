"""What a run makes of the machine that it starts on."""

import psutil
import pytest
import torch

from pipeline.config import ModelArguments, machine


@pytest.mark.parametrize(
    ("cores", "percent", "threads"),
    [
        (4, 0.0, 4),  # idle
        (4, 12.0, 4),  # half a core
        (4, 25.0, 3),  # one other program
        (2, 50.0, 1),
        (2, 100.0, 1),  # never none
        (8, 25.0, 4),  # more processors than threads (two to a core): six are idle, and PyTorch would take four
    ],
)
def test_it_takes_no_more_threads_than_cores_are_idle(monkeypatch, capsys, cores, percent, threads):
    most, taken = min(cores, 4), []
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(psutil, "cpu_count", lambda: cores)
    monkeypatch.setattr(psutil, "cpu_percent", lambda seconds: percent)
    monkeypatch.setattr(torch, "get_num_threads", lambda: most)
    monkeypatch.setattr(torch, "set_num_threads", taken.append)
    machine.leave_busy_cores()
    assert taken == ([threads] if threads < most else [])
    assert ("note: other programs use" in capsys.readouterr().out) == (threads < most)


def test_who_says_how_many_threads_gets_them(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    monkeypatch.setattr(psutil, "cpu_percent", lambda seconds: 100.0)
    before = torch.get_num_threads()
    machine.leave_busy_cores()
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(("has_units", "taken"), [(True, "bfloat16"), (False, "float32")])
def test_dtype_fast_is_what_the_processor_has_units_for(monkeypatch, has_units, taken):
    monkeypatch.setattr(machine.processor, "has_units", lambda dtype: has_units)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert ModelArguments(model_name_or_path="x", dtype="fast").dtype == taken
    assert ModelArguments(model_name_or_path="x", dtype="auto").dtype == "auto"  # the default asks no processor
    assert ModelArguments(model_name_or_path="x", dtype="bfloat16").dtype == "bfloat16"
