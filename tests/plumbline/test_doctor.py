"""`plumbline doctor`: what is counted, by hand; what the machine is asked; that it prints for every recipe."""

import json
import tomllib

import pytest
import torch
import yaml
from packaging.requirements import Requirement
from recipe_files import ROOT
from safetensors.torch import save_file

from pipeline.errors import UserError
from pipeline.memory.estimate import Architecture
from pipeline.memory.scale import SIZES
from plumbline import doctor, duration, machine, new_recipe, probe
from plumbline.probe import Batch, Pace


# ------------------------------------------------------------ the machine
def test_every_extra_has_its_line():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    assert set(machine.EXTRAS) == set(extras) - {"dev", "cuda"}


def test_what_does_not_fit_is_said():
    found = machine.installed("numpy")
    assert machine.misfit(Requirement("numpy>=1")) is None
    assert machine.misfit(Requirement("numpy<1")) == f"numpy {found}, wanted <1"
    assert machine.misfit(Requirement("no-such-package>=1")) == "no-such-package missing"
    math, sweep = Requirement('x; extra == "math"'), Requirement('x; extra == "sweep"')
    assert machine._belongs(math, "math") and not machine._belongs(sweep, "math")
    assert not machine._belongs(Requirement('x; python_version > "3"'), "math")  # needed by everybody


def test_a_container_has_what_it_is_given(monkeypatch):
    said = {"cpu.max": "150000 100000", "memory.max": str(3 * 2**20)}
    monkeypatch.setattr(machine, "_cgroup", said.get)
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda process: range(4), raising=False)
    assert machine.usable_cores() == 1.5 and machine.memory_limit() == 3 * 2**20
    said |= {"cpu.max": "max 100000", "memory.max": "max"}
    assert machine.usable_cores() == 4 and machine.memory_limit() == machine.psutil.virtual_memory().total
    said |= {"cpu.max": "", "memory.max": ""}
    assert machine.usable_cores() == 4


def test_the_processor_is_named_and_its_units_are_said():
    said = dict(machine.about())
    assert said["processor"] and "/" not in said["processor"]
    assert ("no units for bfloat16" in said["  computes"]) != machine.has_units(torch.bfloat16)


# ------------------------------------------------------------ what a stage does
@pytest.fixture
def recipe(tmp_path, tiny_model_folder):
    """A folder for YAMLs; rows.jsonl has 40 rows, each with 30 bytes of prompt and 60 of an answer."""
    row = {
        "prompt": "p" * 30,
        "completion": "c" * 60,
        "chosen": "c" * 60,
        "rejected": "r" * 30,
        "references": ["c" * 60],
    }
    (tmp_path / "rows.jsonl").write_text(f"{json.dumps(row)}\n" * 40)
    common = {"model_name_or_path": str(tiny_model_folder), "dataset": str(tmp_path / "rows.jsonl")}

    def write(name, **settings):
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(common | {"output_dir": str(tmp_path / "out")} | settings))
        return path

    return write


def test_the_work_of_sft(recipe):
    # 3 bytes a token with a small vocabulary: a row of 90 bytes has 30 tokens; 32 of 40 rows are trained on, twice
    path = recipe("sft", eval_fraction=0.2, num_train_epochs=2, per_device_train_batch_size=4, max_length=64)
    work = duration.work_of(path)
    assert work.batch == Batch(4, 30) and work.learned == 2 * 32 * 30 and work.looked == 2 * 8 * 30 and not work.drawn
    path = recipe("sft_b", max_steps=3, per_device_train_batch_size=4, gradient_accumulation_steps=2, max_length=20)
    work = duration.work_of(path)
    assert work.learned == 3 * 4 * 2 * 20  # cut at max_length
    again = duration.work_of(recipe("sft_c", max_steps=3, per_device_train_batch_size=1, gradient_checkpointing=True))
    assert again.learned == 3 * 30 * 4 / 3


def test_columns_that_a_template_puts_together_count(recipe, tmp_path):
    (tmp_path / "mine.jsonl").write_text('{"source": "' + "s" * 72 + '", "target": "' + "t" * 48 + '"}\n')
    settings = {
        "prompt_template": "{source}",
        "completion_template": "{target}",
        "dataset": str(tmp_path / "mine.jsonl"),
    }
    assert duration.work_of(recipe("sft", **settings)).batch.length == 20  # half of 120 bytes


def test_the_work_of_a_reward_model(recipe):
    # chosen 90 bytes, 30 tokens, rejected 60 bytes, 20 tokens: 25 in the mean, two sequences a row
    work = duration.work_of(recipe("reward", num_train_epochs=1, per_device_train_batch_size=4))
    assert work.batch == Batch(8, 25) and work.looked == 0
    # a token of the tiny Llama, forward and back: 2 layers of 32 x (32 + 16 + 16 + 32) and 3 x 32 x 64 weights, 2 x 2
    # each; attention 3 x 4 x 4 heads x 8 x 25 tokens; LoRA of rank 16, 3 x 2 x 16 x the widths
    widths = 4 * 64 - 2 * 16 + 3 * 96
    trunk = 2 * (4 * (32 * 96 + 3 * 32 * 64) + 3 * 4 * 32 * 25 + 6 * 16 * widths)
    assert work.learned == pytest.approx(40 * 50 * trunk / (trunk + 4 * 259 * 32))


def test_the_work_of_ppo(recipe):
    settings = {"rewards": [{"name": "bleu"}], "total_episodes": 64, "per_device_train_batch_size": 4}
    settings |= {"gradient_accumulation_steps": 2, "num_mini_batches": 2, "num_iterations": 3, "eval_samples": 32}
    work = duration.work_of(recipe("ppo", max_completion_length=48, **settings))
    # prompts of 10 tokens, completions like the references 20, the longest 40; 4 updates of 16 completions
    assert work.batch == Batch(4, 30, 16)
    assert work.learned == 64 * 30 * 3 * 2  # three epochs, policy and critic
    # policy, reference and critic look at each; two exams of 32 prompts, sampled and greedy, in both models
    assert work.looked == 64 * 30 * 3 + 2 * 2 * 32 * 30 * 2
    assert work.drawn == 4 * 40 + 2 * 2 * 40 * 32 / 16
    once = settings | {"algorithm": "reinforce", "num_iterations": 1}
    alone = duration.work_of(recipe("reinforce", max_completion_length=12, **once))
    assert alone.learned == 64 * (10 + 12) and alone.drawn == 4 * 12 + 2 * 2 * 12 * 2
    half = duration.work_of(recipe("ppo_half", critic_layers=1, max_completion_length=48, **settings))
    assert half.learned == 64 * 30 * 3 * 1.5  # of two layers


def test_the_work_of_an_evaluation(recipe, tmp_path, tiny_model_folder):
    # 40 prompts of 10 tokens, completions like the references 20, the longest 40; 64 prompts at once: one batch each
    adapter = {"base_model_name_or_path": str(tiny_model_folder), "peft_type": "LORA"}
    for name in ("sft", "ppo"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "adapter_config.json").write_text(json.dumps(adapter))
        save_file({"x": torch.zeros(1)}, tmp_path / name / "adapter_model.safetensors")
    named = {"base": str(tiny_model_folder), "sft": str(tmp_path / "sft"), "ppo": str(tmp_path / "ppo")}
    asked = {"candidates": [{name: path} for name, path in named.items()], "reference": "sft"}
    asked |= {"model_name_or_path": None, "rewards": [{"name": "learned", "path": "x"}], "max_completion_length": 48}

    def work(name, **settings):
        path = recipe(name, **asked | settings)
        written = yaml.safe_load(path.read_text())
        path.write_text(yaml.safe_dump({key: value for key, value in written.items() if value is not None}))
        return duration.work_of(path)

    plain = work("eval", sharpened=False)
    # three candidates, greedy and sampled; a reward model, the reference and the base look at each
    assert plain.drawn == 3 * 2 * 40 and plain.looked == 3 * 2 * 40 * 30 * 3
    best = work("eval_b", sharpened=False, best_of=16)
    assert best.drawn == plain.drawn + 40 * 40 * 16 / 64  # 640 samples are ten batches of 64
    assert best.looked == plain.looked + 40 * 16 * 30  # which the reward model looks at
    control = work("eval_c")  # of ppo alone: the base is what the reference stands on
    assert control.drawn == plain.drawn + (7 + 1) * 40  # seven temperatures, then the answers
    # entropies of three candidates and at each temperature; four look at the control's answers: itself, the reference,
    # the base, the reward model
    assert control.looked == plain.looked + 3 * 40 * 30 + 7 * 40 * 30 + 4 * 40 * 30
    greedy = work("eval_d", candidates=asked["candidates"][:1], reference=None, outputs="answers.txt")
    assert greedy.drawn == 40 and greedy.looked == 0


def test_seconds_are_work_times_pace():
    work = duration.Work("ppo", None, torch.float32, 16, Batch(1, 1), learned=10, learned_all=3, looked=20, drawn=4)
    assert work.seconds(Pace(learn=1.0, learn_all=2.0, look=0.5, draw=0.25)) == duration.START + 10 + 6 + 10 + 1


def test_what_is_not_here_is_guessed_or_said(tmp_path):
    rows = duration.rows_of("somebody/pairs", None)
    assert rows.count == 10_000 and "somebody/pairs was not read" in rows.guess
    assert (
        duration.model_of("Qwen/Qwen2.5-0.5B-Instruct", None) is not None
    )  # from the cache, or by the size in its name
    (tmp_path / "broken.jsonl").write_text('{"prompt": "a"}\n{"prompt"\n')
    (tmp_path / "mine.csv").write_text("kind,note\nlamp,äh\nrug,b\n", "utf-8")
    assert duration.rows_of(str(tmp_path / "mine.csv"), None) == duration.Rows(2, {"kind": 3.5, "note": 2.0})
    with pytest.raises(UserError, match="broken.jsonl cannot be read as JSON lines: "):
        duration.rows_of(str(tmp_path / "broken.jsonl"), None)
    with pytest.raises(UserError, match="somebody/model is not on this machine"):
        duration.model_of("somebody/model", None)


@pytest.mark.parametrize("like", new_recipe.names())
def test_every_recipe_is_reckoned(like):
    for path in doctor.files_of(str(ROOT / "recipes" / like)):
        try:
            work = duration.work_of(path)
        except UserError as error:
            assert "is not on this machine" in str(error) or "train.csv cannot be read" in str(error), path
            continue
        if work is None:
            assert path.stem == "base"  # read from a GGUF file
            continue
        assert work.learned + work.learned_all + work.drawn > 0 and 1 < work.batch.length <= 4096, (path, work)


# ------------------------------------------------------------ the probe
def test_a_large_model_is_measured_with_two_layers():
    config = probe.shortened(SIZES["0.5B"])
    assert config.num_hidden_layers == 2 and len(config.layer_types) == 2 and config.hidden_size == 896
    assert Architecture.of(config).parameters < Architecture.of(SIZES["0.5B"]).parameters / 2


def test_a_pace_is_measured(tiny_model_folder):
    config = duration.model_of(str(tiny_model_folder), None)
    pace = probe.pace(config, torch.float32, "cpu", 4, Batch(2, 16, 3), whole=True)
    assert all(0 < seconds < 60 for seconds in pace)
    pace = probe.pace(config, torch.float32, "cpu", 4, Batch(2, 16), whole=False)
    assert pace.draw == pace.learn_all == 0 < pace.look


def test_seconds_in_words():
    said = [doctor.in_words(x) for x in (4.4, 89, 90, 7199, 7200, 172_799, 172_800)]
    assert said == ["4 s", "89 s", "2 min", "120 min", "2.0 h", "48.0 h", "2.0 days"]


# ------------------------------------------------------------ the command
def test_the_command_prints_the_machine_and_the_time(warm, recipe, tmp_path):
    recipe("sft", max_steps=2)
    done = warm.run(["-m", "plumbline", "doctor", str(tmp_path)], tmp_path)
    assert done.returncode == 0, done.stderr
    assert "GFLOP/s in float32" in done.stdout and "expect half of it to twice as much" in done.stdout
    assert [line.split()[0] for line in done.stdout.splitlines() if "batches of 8 rows of 30" in line] == ["sft"]
    broken = recipe("ppo", learning_rat=1)
    done = warm.run(["-m", "plumbline", "doctor", str(broken)], tmp_path)
    assert "no such setting learning_rat, did you mean learning_rate" in " ".join(done.stdout.split())


def test_a_folder_without_stages_is_no_recipe(tmp_path):
    with pytest.raises(UserError, match="it is no recipe"):
        doctor.files_of(str(tmp_path))
    assert [path.stem for path in doctor.files_of(None)] == ["base", "sft", "reward", "ppo", "eval"]


def test_long_values_are_wrapped(capsys):
    doctor.show([("what", "word " * 40)])
    lines = capsys.readouterr().out.splitlines()
    assert (
        len(lines) > 1 and all(len(line) <= doctor.WIDTH for line in lines) and lines[1].startswith(" " * doctor.LEFT)
    )


def test_what_it_says_fits_a_terminal(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "60")
    doctor.show([("packages", "torch 2.13.0, transformers 5.23.0, trl 1.16.0, peft 0.21.0")])
    assert capsys.readouterr().out.splitlines() == [
        "packages        torch 2.13.0, transformers 5.23.0, trl",
        "                1.16.0, peft 0.21.0",
    ]


def test_nothing_is_added_up_where_nothing_is_known(monkeypatch, recipe):
    monkeypatch.setattr(doctor.probe, "flops", lambda dtype, device: 1e9)
    said = list(doctor.times([recipe("sft", model_name_or_path="runs/made/base", max_steps=1)], "mine"))
    assert len(said) == 3 and said[2].split()[:2] == ["sft", "?"]


@pytest.mark.parametrize("busy", [0, 90])
def test_times_that_were_measured_beside_other_programs_say_so(monkeypatch, recipe, busy):
    monkeypatch.setattr(doctor.torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(doctor.psutil, "cpu_count", lambda: 2)
    monkeypatch.setattr(doctor.psutil, "cpu_percent", lambda seconds: busy)
    monkeypatch.setattr(doctor.probe, "flops", lambda dtype, device: 1e9)
    monkeypatch.setattr(doctor.probe, "pace", lambda *of, whole: Pace(1.0, 1.0, 1.0, 1.0))
    said = "Other programs kept 1.8 cores busy while it was measured: without them it takes less."
    assert (said in list(doctor.times([recipe("sft", max_steps=1)], "mine"))) == (busy > 0)
