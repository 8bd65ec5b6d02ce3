"""A run that was stopped goes on with `--resume`: to the same bits, with every row once, and with its own settings."""

import json
import os
import shutil
import signal
import sys
from pathlib import Path

import pytest
import torch
import toy
from transformers import TrainerCallback

from pipeline.config import DataArguments, ModelArguments, SFTStage
from pipeline.errors import UserError
from pipeline.ppo.config import PPOStage
from pipeline.runs import checkpoint_files, resume, stopping
from pipeline.runs.folder import RunFolder, read_metrics
from pipeline.stages import sft

ROOT = Path(__file__).resolve().parents[2]
CLOCKS = ("time/", "seconds", "per_second", "runtime", "preparation_time")


def without_clocks(rows: list[dict]) -> list[dict]:
    return [{k: v for k, v in row.items() if not any(clock in k for clock in CLOCKS)} for row in rows]


# ------------------------------------------------------------ the bits
def test_every_step_is_a_place_to_go_on_from_also_between_two_logs(tmp_path):
    """8 steps, logs after 3 and 6: what was summed up since the last log, and the loss so far, come back as well."""
    settings = {
        **{"per_device_train_batch_size": 2, "total_episodes": 16, "replay": 1, "logging_steps": 3},
        **{"save_strategy": "steps", "save_steps": 1, "save_total_limit": None, "kl_target": 0.05, "kl_horizon": 20},
    }
    whole = toy.make_trainer(tmp_path / "whole", toy.with_sft_adapter(), **settings)
    whole.train()
    assert whole.state.global_step == 8
    for step in (2, 5, 7):
        again = toy.make_trainer(tmp_path / str(step), toy.with_sft_adapter(), **settings)
        again.train(resume_from_checkpoint=str(tmp_path / f"whole/checkpoint-{step}"))
        assert all(torch.equal(again.model.get_parameter(n), x) for n, x in toy.learned(whole).items()), step
        assert without_clocks(again.state.log_history) == without_clocks(whole.state.log_history), step


def test_from_the_last_step_there_is_nothing_more_to_train(tmp_path):
    settings = {"total_episodes": 12, "save_strategy": "steps", "save_steps": 3, "prompts": toy.PROMPTS * 3}
    whole = toy.make_trainer(tmp_path / "whole", **settings)
    whole.train()
    again = toy.make_trainer(tmp_path / "again", **settings)
    again.train(resume_from_checkpoint=str(tmp_path / f"whole/checkpoint-{whole.state.global_step}"))
    assert again.state.global_step == whole.state.global_step
    assert all(torch.equal(again.model.get_parameter(n), x) for n, x in toy.learned(whole).items())


@pytest.mark.parametrize("change", ["data", "weights"])
def test_other_data_or_weights_than_those_of_the_checkpoint_are_named(tmp_path, change):
    trainer = toy.make_trainer(tmp_path / "a", save_strategy="steps", save_steps=1)
    trainer.inputs = {"adapter_path sft": "aaaa"}
    trainer.train()
    other = toy.PROMPTS if change == "weights" else [*toy.PROMPTS[:-1], "ceda"]
    again = toy.make_trainer(tmp_path / "b", prompts=other)
    again.inputs = {"adapter_path sft": "aaaa" if change == "data" else "bbbb"}
    says = "training data is 8 rows" if change == "data" else "adapter_path sft is bbbb, but .* was made with aaaa"
    with pytest.raises(UserError, match=says):
        again.train(resume_from_checkpoint=str(tmp_path / "a/checkpoint-1"))


def test_fewer_steps_than_are_done_are_refused(tmp_path):
    toy.make_trainer(tmp_path / "a", total_episodes=16, save_strategy="steps", save_steps=4).train()
    with pytest.raises(UserError, match="4 steps already, more than the 2"):
        toy.make_trainer(tmp_path / "b").train(resume_from_checkpoint=str(tmp_path / "a/checkpoint-4"))


# ------------------------------------------------------------ signals
class Send(TrainerCallback):
    def __init__(self, step: int, *signals: int):
        self.step, self.signals = step, signals

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            for signum in self.signals:
                os.kill(os.getpid(), signum)


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_after_the_step_with_a_checkpoint(tmp_path, capfd, monkeypatch, signum, code):
    monkeypatch.setattr(sys, "argv", ["recipes/ppo.py", "--config", "my recipe.yaml"])
    monkeypatch.delenv("MAKELEVEL", raising=False)
    folder, settings = RunFolder(tmp_path / "run"), {"total_episodes": 16, "save_strategy": "no"}
    trainer = toy.make_trainer(folder.path, callbacks=[Send(1, signum)], **settings)
    before = signal.getsignal(signum)
    with pytest.raises(SystemExit) as stop, stopping.graceful(trainer, folder):
        trainer.train()
    assert stop.value.code == code and trainer.state.global_step == 2  # the step that was begun
    assert signal.getsignal(signum) == before
    said = capfd.readouterr()
    assert "Stopping after this step" in said.err
    assert "Stopped at step 2. To go on: python" in said.out and "'my recipe.yaml' --resume\n" in said.out
    # and nothing is lost
    whole = toy.make_trainer(tmp_path / "whole", **settings)
    whole.train()
    again = toy.make_trainer(tmp_path / "again", **settings)
    again.train(resume_from_checkpoint=checkpoint_files.newest(folder.path, print))
    assert all(torch.equal(again.model.get_parameter(n), x) for n, x in toy.learned(whole).items())


def test_a_second_ctrl_c_stops_at_once(tmp_path):
    trainer = toy.make_trainer(tmp_path, callbacks=[Send(1, signal.SIGINT, signal.SIGINT)], total_episodes=16)
    with pytest.raises(KeyboardInterrupt), stopping.graceful(trainer, RunFolder(tmp_path)):
        trainer.train()
    assert trainer.state.global_step == 1 and not checkpoint_files.of(tmp_path)


def test_the_command_under_make(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["recipes/ppo.py", "--config", "recipes/e2e/ppo.yaml", "--seed", "3"])
    monkeypatch.setenv("MAKELEVEL", "1")
    monkeypatch.setenv("MAKEFLAGS", "s -- RECIPE=recipes/e2e ARGS=--seed\\ 3")
    assert stopping.command() == "make ppo RECIPE=recipes/e2e ARGS=--seed\\ 3 RESUME=1"


# ------------------------------------------------------------ time
def test_a_checkpoint_is_due_after_minutes_and_later_where_writing_is_slow(tmp_path, monkeypatch):
    from pipeline.runs import resumable_trainer

    trainer = toy.make_trainer(tmp_path)
    now = [1000.0]
    monkeypatch.setattr(resumable_trainer.time, "monotonic", lambda: now[0])
    keeper = resumable_trainer.Keeper(trainer)
    args = PPOStage(str(tmp_path), save_minutes=2, use_cpu=True, bf16=False)
    now[0] = 1119.0
    assert not keeper.due(args)
    now[0] = 1120.0
    assert keeper.due(args)
    trainer.seconds_of_a_save = 30.0  # 5% of 600 seconds
    now[0] = 1599.0
    assert not keeper.due(args)
    now[0] = 1600.0
    assert keeper.due(args)
    args.save_strategy = "no"
    assert not keeper.due(args)


# ------------------------------------------------------------ the folder of a stage
@pytest.fixture
def stage(tmp_path, tiny_model_folder, monkeypatch):
    """Runs SFT for a few steps in `out`; settings as given."""
    monkeypatch.chdir(tmp_path)
    words = [f"w{i}" for i in range(12)]
    rows = [{"prompt": f"say {w}\n", "completion": w} for w in words]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def run(model=None, **settings):
        settings = {"max_steps": 3, "per_device_train_batch_size": 2, "logging_steps": 2} | settings
        return sft.run(
            ModelArguments(**{"model_name_or_path": str(tiny_model_folder), "lora_r": 2} | (model or {})),
            DataArguments(dataset="rows.jsonl", eval_fraction=0.25),
            SFTStage(output_dir="out", use_cpu=True, max_length=32, **settings),
        )

    return run


def test_the_same_command_in_a_loop(stage, capsys):
    """A new run starts; the finished one is left as it is; a longer one goes on; what must not change is refused."""
    stage(resume=True)
    assert "starts from the beginning" in capsys.readouterr().out
    before = {path: path.stat().st_mtime_ns for path in Path("out").rglob("*")}
    summary = stage(resume=True, logging_steps=1)
    assert "is finished; nothing was done" in capsys.readouterr().out
    assert summary["steps"] == 3 and before == {path: path.stat().st_mtime_ns for path in Path("out").rglob("*")}

    with pytest.raises(UserError) as error:
        stage(resume=True, max_steps=5, learning_rate=0.5, model={"lora_r": 4})
    assert "lora_r was 2 and is 4 now; learning_rate was 0.0002 and is 0.5 now" in str(error.value)
    assert "max_steps" not in str(error.value)
    assert before == {path: path.stat().st_mtime_ns for path in Path("out").rglob("*")}

    assert stage(resume=True, max_steps=5, logging_steps=1)["steps"] == 5
    said = capsys.readouterr().out
    for part in ("goes on from step 3", "Changed: max_steps 3 -> 5", "Changed: logging_steps 2 -> 1", "The linear"):
        assert part in said
    [row] = [json.loads(line) for line in Path("out/resumed.jsonl").read_text().splitlines()]
    assert row["step"] == 3 and row["changed"] == {"max_steps": [3, 5], "logging_steps": [2, 1]}
    rows = read_metrics("out")
    # before; a log every two steps, then every step; after, twice (the figures of the training and of the held-out)
    assert [row["step"] for row in rows] == [0, 2, 4, 5, 5, 5]


def test_a_kill_while_the_summary_is_written(stage):
    """The run has no marker of its end: it goes on from its last checkpoint and leaves the same."""
    stage()
    weights, rows = Path("out/adapter_model.safetensors").read_bytes(), read_metrics("out")
    Path("out/.unfinished").touch()
    Path("out/summary.json").unlink()
    Path("out/adapter_model.safetensors").write_bytes(b"torn")
    summary = stage(resume=True)
    assert Path("out/adapter_model.safetensors").read_bytes() == weights
    assert without_clocks(read_metrics("out")) == without_clocks(rows)
    assert summary["steps"] == 3 and not Path("out/.unfinished").exists()
    assert summary["train_loss"] == next(row["train_loss"] for row in rows if "train_loss" in row)


@pytest.fixture
def two_threads(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="one core takes one thread")
def test_it_goes_on_with_the_threads_that_it_began_with(stage, two_threads, monkeypatch, capsys):
    """Sums are taken in another order by another number of threads, so the last bits would differ."""
    stage(max_steps=1)
    torch.set_num_threads(1)
    stage(resume=True, max_steps=2)
    assert torch.get_num_threads() == 2 and "threads" not in capsys.readouterr().out
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # as the user says
    torch.set_num_threads(1)
    stage(resume=True, max_steps=3)
    assert torch.get_num_threads() == 1 and "Changed: threads '2' -> '1'" in capsys.readouterr().out


def test_when_every_checkpoint_is_damaged_nothing_is_lost(stage, capsys):
    """It starts from the beginning, says so, and what the run had written lies aside as it was, checkpoints too."""
    stage(save_steps=1)
    Path("out/.unfinished").touch()
    Path("out/heldout.jsonl").write_text('{"step": 0}\n')
    for folder in checkpoint_files.of(Path("out")):
        os.truncate(folder / "optimizer.pt", (folder / "optimizer.pt").stat().st_size - 1)
    written = {path: path.read_bytes() for path in Path("out").rglob("*") if path.is_file()}
    written = {path.relative_to("out"): content for path, content in written.items()}
    rows = read_metrics("out")
    capsys.readouterr()
    assert stage(resume=True, save_steps=1)["steps"] == 3
    said = capsys.readouterr().out
    assert said.count("cannot be used (optimizer.pt has") == 2 and "starts from the beginning" in said
    assert "What the run had written is kept in out/before-restart." in said
    stays = {Path(name) for name in ("config.yaml", ".unfinished")}
    for path in written.keys() - stays:
        assert (Path("out/before-restart") / path).read_bytes() == written[path], path
    assert Path("out/adapter_model.safetensors").read_bytes() == written[Path("adapter_model.safetensors")]
    assert without_clocks(read_metrics("out")) == without_clocks(rows)
    assert not Path("out/heldout.jsonl").exists()  # SFT writes none


def open_run(**changes):
    return resume.open_run(SFTStage(**{"output_dir": "out", "use_cpu": True, "resume": True} | changes))


def test_folders_that_are_no_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    folder = open_run()  # there is none
    assert folder.checkpoint is None and not folder.finished
    assert not any(Path("out").iterdir())  # a setting that is refused later on leaves nothing in the way
    folder.write_config(SFTStage(output_dir="out", use_cpu=True))
    assert Path("out/.unfinished").exists()
    Path("out/config.yaml").unlink()
    assert open_run().checkpoint is None  # killed before it had written its settings
    assert "stopped before it had begun" in capsys.readouterr().out
    with pytest.raises(UserError, match="go on with it: --resume"):
        open_run(resume=False)
    Path("out/.unfinished").unlink()
    Path("out/notes.txt").write_text("mine")
    with pytest.raises(UserError, match="out holds files, but no run"):
        open_run()
    Path("out/config.yaml").write_text("a: [")
    with pytest.raises(UserError, match="config.yaml cannot be read"):
        open_run()
    assert Path("out/notes.txt").read_text() == "mine"


def test_a_vllm_server_may_have_another_address(tmp_path, monkeypatch):
    """The way to sample stays: with a server or without."""
    monkeypatch.chdir(tmp_path)
    one, two = ["http://10.0.0.2:8000"], ["http://10.0.0.3:8000", "http://10.0.0.4:8000"]

    def changes(before, now, **settings):
        RunFolder.create("out").write_config(PPOStage(output_dir="out", use_cpu=True, vllm_server=before))
        found = resume.compare(Path("out"), (PPOStage(output_dir="out", use_cpu=True, vllm_server=now, **settings),))
        shutil.rmtree("out")
        return found

    assert changes(one, two) == ({"vllm_server": [one, two]}, {})
    assert changes(one, one, vllm_adapters="/shared")[1] == {}
    assert changes(one, None)[1] == {"vllm_server": [one, None]}
    assert changes(None, one)[1] == {"vllm_server": [None, one]}
    assert changes(one, one, vllm_at_once=1)[1] == {"vllm_at_once": [64, 1]}


def test_what_may_change_and_what_not(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    old = PPOStage(output_dir="out", use_cpu=True, total_episodes=16, missing_eos_penalty=1.0, save_steps=7)
    RunFolder.create("out").write_config(old)

    def changes(**settings):
        settings = {"output_dir": "out", "use_cpu": True, "total_episodes": 16, "missing_eos_penalty": 1.0} | settings
        return resume.compare(Path("out"), (PPOStage(**settings),))

    assert changes(save_steps=7) == ({}, {})
    assert changes() == ({"save_steps": [7, 500]}, {})
    assert changes(save_steps=7, missing_eos_penalty=None) == ({}, {"missing_eos_penalty": [1.0, None]})
    assert changes(save_steps=7, kl_target=2.0) == ({}, {"kl_target": [None, 2.0]})
    # 8 a rollout by default, 4 epochs: 2 updates of 4 steps, then 4 of them
    assert changes(save_steps=7, total_episodes=32) == ({"total_episodes": [16, 32], "max_steps": [8, 16]}, {})
    # what follows from a batch size is not named beside it
    assert changes(save_steps=7, num_mini_batches=2)[1].keys() == {"num_mini_batches"}
    # sampled completions of an evaluation draw from the generators of the training
    assert changes(save_steps=7, per_device_eval_batch_size=3)[1].keys() == {"per_device_eval_batch_size"}
    text = Path("out/config.yaml").read_text().replace("torch: ", "torch: 0.")
    Path("out/config.yaml").write_text(text)
    assert list(changes(save_steps=7)[0]) == ["version of torch"]


# ------------------------------------------------------------ kills
def tortured(warm, tmp_path, *arguments: str) -> dict:
    command = [str(ROOT / "tests/tools/torture.py"), "--output", str(tmp_path / "torture"), *arguments]
    done = warm.run(command, tmp_path, seconds=900)
    logs = "".join(path.read_text()[-3000:] for path in tmp_path.glob("torture/*/*.log"))
    assert done.returncode == 0, done.stdout + done.stderr[-2000:] + logs
    return json.loads((tmp_path / "torture/summary.json").read_text())["runs"]


def test_ppo_survives_kills(warm, tmp_path):
    """SIGKILL twice, a short form of `make torture`."""
    [found] = tortured(warm, tmp_path, "--kills", "2", "--cases", "ppo", "--processes", "1")
    assert (found["kills"], found["bytes"], found["rows"]) == (2, 0, 0) and found["runs"] >= 1


@pytest.mark.slow
@pytest.mark.parametrize("processes", ["1", "2"])
def test_each_stage_survives_kills(warm, tmp_path, processes):
    cases = ["sft", "reward", "ppo", "reinforce", "ilql", *(["fsdp2"] if processes == "2" else [])]
    found = tortured(warm, tmp_path, "--kills", "4", "--cases", *cases, "--processes", processes)
    assert [(row["case"], row["kills"], row["bytes"], row["rows"]) for row in found] == [
        (case, 4, 0, 0) for case in cases
    ]
