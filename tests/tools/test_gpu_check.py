"""The check of the three stages on a CUDA card: its arithmetic, and all of it at a toy size without a card."""

import json
from pathlib import Path

import pytest
import torch
from rich.console import Console

from tests.tools import gpu_check, gpu_stages

linux = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="memory is read from Linux's /proc")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a card")
def test_without_a_card_one_sentence_and_nothing_done(tmp_path, capsys):
    assert gpu_check.main(["--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr()
    assert said.err.startswith("gpu-check: no CUDA device is here") and said.err.count("\n") == 1
    assert said.out == "" and not (tmp_path / "out").exists()


def test_the_decode_rate_is_the_median_without_the_first_update():
    rows = [{"tokens": 100, "time/generation": 50.0}, {"tokens": 300, "time/generation": 2.0}]
    assert gpu_check.decode_rate(rows[:1]) == 2.0
    rows += [{"tokens": 340, "time/generation": 1.0}, {"tokens": 400, "time/generation": 1.0}]
    assert gpu_check.decode_rate(rows) == 60.0  # of 100, 40 and 60


def test_the_table_by_hand():
    updates = [{"tokens": n * 100, "time/generation": 0.5, "ratio/first": 0.001 * n} for n in (1, 2, 3)]
    summary = {"device": "a card", "date": "2026-01-02", "commit": "abc", "models": {}}
    done = {"seconds": 30.0, "wall": 41.0, "estimate_mib": 2000.0, "peak_mib": 2200.0}
    summary["models"]["smollm2"] = {
        "base": {"of": "134.5 M parameters", "seconds": 9.0, "wall": 20.0},
        "sft": done,
        "ppo": done | {"updates": updates},
    }
    summary["models"]["qwen-0.5b"] = {"base": {"failed": "out of time"}}
    console = Console(width=110)
    with console.capture() as captured:
        console.print(gpu_check.table(summary))
    lines = [[cell.strip() for cell in line.split("│")[1:-1]] for line in captured.get().splitlines() if "│" in line]
    assert lines[0][0] == "smollm2"
    assert lines[1:4] == [
        ["base", "20", "11", "", "", "", "", ""],
        ["sft", "41", "11", "2,000", "2,200", "1.10", "", ""],
        ["ppo", "41", "11", "2,000", "2,200", "1.10", "200", "0.003"],
    ]
    assert lines[4][0] == "qwen-0.5b" and lines[5][:2] == ["base", "failed"]
    assert gpu_check.notes(summary) == ["smollm2: 134.5 M parameters", "qwen-0.5b, base failed: out of time"]


def test_shapes_have_the_parameters_of_the_models_that_they_are_of():
    from accelerate import init_empty_weights
    from transformers import AutoModelForCausalLM

    # as the models' cards and files say: SmolLM2-135M, Qwen2.5-0.5B
    for model, parameters in (("smollm2", 134_515_008), ("qwen-0.5b", 494_032_768)):
        with init_empty_weights():
            built = AutoModelForCausalLM.from_config(gpu_stages.shape(model, small=False))
        built.tie_weights()
        assert built.num_parameters() == parameters


def test_a_random_models_words_are_read_as_they_were_said():
    tokenizer = gpu_stages.random_tokenizer(64)
    assert len(tokenizer) == 64
    ids = list(range(4, 64))
    assert tokenizer(tokenizer.decode(ids))["input_ids"] == ids


def test_a_stage_that_fails_is_named_and_the_other_model_goes_on(tmp_path, capsys):
    """Without time for anything, each model's first stage is ended; the table is there all the same."""
    out = tmp_path / "out"
    assert gpu_check.main(["--cpu", "--small", "--minutes", "0", "--out", str(out)]) == 1
    said = [line for line in capsys.readouterr().out.splitlines() if "out of time" in line]
    models = ("smollm2", "qwen-0.5b")
    assert said == [f"{model}, base{how}: out of time" for how in ("", " failed") for model in models]
    assert "failed" in (out / "table.txt").read_text()


@linux
@pytest.mark.slow
def test_the_three_stages_at_a_toy_size(tmp_path, capsys):
    assert gpu_check.main(["--cpu", "--small", "--out", str(tmp_path)]) == 0, capsys.readouterr().out
    summary = json.loads((tmp_path / "summary.json").read_text())
    for model, found in summary["models"].items():
        assert list(found) == ["base", "sft", "reward", "ppo"], model
        assert all(stage["seconds"] < stage["wall"] for stage in found.values())
        updates = found["ppo"]["updates"]
        assert [row["episodes"] for row in updates] == [2, 4]
        assert all(row["ratio/first"] < 1e-6 for row in updates)  # float32
        assert (tmp_path / model / "ppo" / "report.html").is_file()
        assert all(found[stage]["estimate_mib"] > 0 for stage in ("sft", "reward", "ppo"))
    table = (tmp_path / "table.txt").read_text()
    assert "random weights" in table and table.count("ppo") == 2 and "failed" not in table
