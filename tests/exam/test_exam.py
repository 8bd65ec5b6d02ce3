"""The exam on held-out prompts: its figures by pencil, its rows, and that the training does not notice it."""

import json
import math
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from short_runs import noisy, prompts_file, run_ppo

from pipeline.errors import UserError
from pipeline.exam import exam
from pipeline.exam.evaluation import ScoredAnswers
from pipeline.exam.exam import Exam, ExamCallback, RewardArguments, random_state_kept
from pipeline.runs.folder import HELDOUT, read_heldout
from pipeline.watching import journal as metrics
from rewards import Shaped


def mixture(part) -> dict:
    """The running statistics lie deep inside, where `raw` does not take them off."""
    return {"name": "mixture", "log_name": "size", "weight": 0.5, "rewards": [{"name": part}]}


@pytest.fixture(scope="module")
def runs(tmp_path_factory, tiny_model_folder):
    """The same training without and with exams: folder and rewards of each."""
    folder, found = tmp_path_factory.mktemp("exams"), {}
    data = prompts_file(folder)
    for name, every in (("without", None), ("with", 1)):
        length = Shaped(lambda prompts, completions, **columns: [float(len(c)) for c in completions], "running")
        rewards = [{"name": noisy, "weight": 2.0}, mixture(length)]
        checkpoints = {"save_strategy": "steps", "save_steps": 2, "save_total_limit": 3} if name == "with" else {}
        run_ppo(folder / name, tiny_model_folder, data, rewards, every, **checkpoints)
        found[name] = (folder / name, length)
    return found


def test_the_training_does_not_notice_the_exams(runs):
    for file in ("adapter_model.safetensors", "critic/adapter_model.safetensors"):
        without, with_ = (load_file(runs[name][0] / file) for name in ("without", "with"))
        assert without.keys() == with_.keys()
        assert all(torch.equal(without[key], with_[key]) for key in without), file
    without, with_ = (vars(runs[name][1].stats) for name in ("without", "with"))
    assert without == with_ and without["count"] == 12  # what the exams scored is not in it


def test_a_row_before_one_after_and_one_for_every_exam_between(runs):
    assert [row["step"] for row in read_heldout(runs["without"][0])] == [0, 6]
    rows = read_heldout(runs["with"][0])
    assert [row["step"] for row in rows] == [0, 2, 4, 6]  # an update is 2 epochs of one optimizer step
    assert [row["update"] for row in rows] == [0, 1, 2, 3]
    assert [row["episodes"] for row in rows] == [0, 4, 8, 12]
    logged = [json.loads(line) for line in (runs["with"][0] / "metrics.jsonl").read_text().splitlines()]
    assert [row["tokens"] for row in rows[1:]] == [row["tokens"] for row in logged if "tokens" in row]
    seconds = [row["seconds"] for row in rows]
    assert seconds[0] == 0 and seconds == sorted(seconds)
    assert rows[0]["kl"] == 0 and all(math.isfinite(row["kl"]) and row["kl"] != 0 for row in rows[1:])


def test_the_last_row_says_what_the_summary_says(runs):
    folder = runs["with"][0]
    summary, row = json.loads((folder / "summary.json").read_text()), read_heldout(folder)[-1]
    assert row["rewards"] == {name: summary["after"][name] for name in ("noisy", "size")}
    assert row["score"] == pytest.approx(2 * summary["after"]["noisy"] + 0.5 * summary["after"]["size"])
    assert (row["kl"], row["tokens"], row["length"]) == (summary["kl"], summary["tokens"], summary["after"]["length"])


def test_a_resumed_run_has_every_row_once(runs, tiny_model_folder, tmp_path):
    first, data = runs["with"][0], runs["with"][0].parent / "prompts.jsonl"
    rows = read_heldout(first)
    folder = tmp_path / "again"
    folder.mkdir()
    # killed while the last row was being written; the row of step 4 is newer than the checkpoint, and comes again
    lines = (first / HELDOUT).read_text().splitlines(keepends=True)
    stale = json.dumps(rows[2] | {"score": 99.0}) + "\n"
    (folder / HELDOUT).write_text("".join(lines[:2]) + stale + lines[3][:20])
    length = Shaped(lambda prompts, completions, **columns: [float(len(c)) for c in completions], "running")
    rewards = [{"name": noisy, "weight": 2.0}, mixture(length)]
    run_ppo(folder, tiny_model_folder, data, rewards, 1, resume_from_checkpoint=str(first / "checkpoint-2"))
    again = read_heldout(folder)
    assert [row["step"] for row in again] == [0, 2, 4, 6]
    assert again[:2] == rows[:2]
    keys = ("kl", "score", "episodes", "tokens", "length")
    assert [[row[key] for key in keys] for row in again] == [[row[key] for key in keys] for row in rows]
    clock = json.loads((first / "checkpoint-2" / exam.CLOCK).read_text())["seconds"]
    assert 0 < clock <= again[2]["seconds"] + 0.01


def test_the_figures_of_a_row():
    judged = ScoredAnswers(
        ["x", "yz"], [[5, 2], [6, 7, 8, 2]], [True, False], {"a": [1.0, None], "b": [2.0, 4.0], "gold": [0.5, 1.0]}
    )
    trainer = SimpleNamespace(accelerator=SimpleNamespace(unwrap_model=lambda model: model), model=None)
    taken = Exam(trainer, None, [], {"a": noisy, "b": noisy}, {"a": 2.0, "b": 0.5})
    figures = taken.figures(judged, kl=1.5)
    # a: 1 (the row without a score is left out), b: 3; 2 · 1 + 0.5 · 3
    assert figures == {
        "kl": 1.5,
        "score": 3.5,
        "rewards": {"a": 1.0, "b": 3.0},
        "referee": {"gold": 0.75},
        "length": 3.0,
        "finished": 0.5,
    }
    nothing = judged._replace(scores={"a": [None, None], "b": [2.0, 4.0]})
    assert taken.figures(nothing, kl=0.0)["score"] == 1.5


def test_seconds_are_those_of_training(monkeypatch, tmp_path):
    """10 s of training before an exam that takes 100 s, 5 s after it: 10 and 15. The processor works half of it."""
    now = [0.0]
    clocks = SimpleNamespace(perf_counter=lambda: now[0], process_time=lambda: 7 + now[0] / 2)
    monkeypatch.setattr(exam, "time", clocks)
    left_out = []
    judged = ScoredAnswers(["x"], [[2]], [True], {})

    class Slow(Exam):
        def take(self, adapter, greedy=True, shown=None):
            now[0] += 100
            return [judged]

        def kl(self, judged, shown=None):
            return 0.0

    trainer = SimpleNamespace(
        accelerator=SimpleNamespace(unwrap_model=lambda model: model, wait_for_everyone=lambda: None),
        model=None,
        args=SimpleNamespace(steps_per_generation=1, num_iterations=2, gradient_accumulation_steps=1, output_dir=""),
        state=SimpleNamespace(global_step=0, max_steps=4, is_world_process_zero=True),
        journal=SimpleNamespace(episodes=0, tokens=0, leave_out=left_out.append),
    )
    callback = ExamCallback(Slow(trainer, None, [], {}, {}), tmp_path, every=1)
    callback.on_train_begin(trainer.args, trainer.state, None)
    for step, until in ((1, 4.0), (2, 10.0), (3, 112.0), (4, 115.0)):
        trainer.state.global_step, now[0] = step, until
        callback.on_step_end(trainer.args, trainer.state, None)
    callback.on_train_end(trainer.args, trainer.state, None)
    now[0] += 50  # the exam after training
    callback.write(judged, 0.0)
    read = [(row["step"], row["seconds"], row["cpu_seconds"]) for row in read_heldout(tmp_path)]
    assert read == [(2, 10.0, 5.0), (4, 15.0, 7.5)]
    assert left_out == [100.0]


def test_the_time_of_exams_is_not_in_tokens_per_second(monkeypatch):
    """100 tokens in 10 s, then an exam of 90 s."""
    now = [0.0]
    monkeypatch.setattr(metrics, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    journal = metrics.Journal(SimpleNamespace(reduce=lambda tensor, reduction: tensor))
    with journal.clock("generation"):
        now[0] = 10.0
    journal.count(torch.tensor([30, 70]))
    now[0] = 100.0
    journal.leave_out(90.0)
    assert journal.read_clocks()["tokens_per_second"] == 10.0


def test_random_states_are_kept():
    def state():
        return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()

    before = state()
    with random_state_kept():
        noisy([], ["x"])
        assert state() != before
    assert state() == before


def test_eval_every_is_checked():
    with pytest.raises(UserError, match="eval_every: 0 is not valid"):
        RewardArguments(rewards=[{"name": "bleu"}], eval_every=0)
