"""What a person sees while a stage runs: rows that fit, samples as text, plain lines in a log file."""

import io
import json
import math
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import toy
from rich.cells import cell_len
from rich.console import Console
from safetensors.torch import load_file
from short_runs import WORDS, prompts_file, run_ppo
from toy import ANSWERS
from transformers import TrainerControl, TrainerState

from pipeline.config import DataArguments, ModelArguments, RewardStage, SFTStage
from pipeline.errors import UserError
from pipeline.ppo.config import PPOStage
from pipeline.stages import reward_model, sft
from pipeline.watching import terminal
from pipeline.watching.progress import as_clock

NASTY = "\x1b[2J\x1b]0;owned\x07[bold]wide 東京[/bold] :smile: \u202etxt\x9b31m"


class Screen(io.StringIO):
    """A terminal of 80 columns, or as many as are given, that keeps what is written to it."""

    def __init__(self, width: int = 80, terminal: bool = True):
        super().__init__()
        # Without colors what is left of control sequences is the bar's: they are the ones that move the cursor.
        self.console = Console(file=self, width=width, force_terminal=terminal, color_system=None)

    def lines(self) -> list[str]:
        """The lines that stay on the screen: the bar is wiped out again before each of them, and at the end."""
        lines = [line.rpartition("\x1b[2K")[2].rstrip() for line in self.getvalue().split("\n")]
        return [line for line in lines if line and "━" not in line]

    def bars(self) -> list[str]:
        """What the bar said, each time."""
        return [line for part in self.getvalue().split("\n") for line in part.split("\x1b[2K") if "━" in line]


@pytest.fixture
def screen(monkeypatch):
    """`screen(width)` makes the stages write there instead of to standard output."""

    def make(width=80, terminal_=True):
        made = Screen(width, terminal_)
        monkeypatch.setattr(terminal, "Console", lambda **options: made.console)
        return made

    return make


def watch(
    width=80, is_terminal=True, sample_every=0, total=4, per_update=2, logs=None, clock=time.monotonic
) -> tuple[Screen, object]:
    """A watcher of a training that is told step by step what happens, by hand."""
    shown = Screen(width, is_terminal)
    args = SimpleNamespace(steps_per_generation=1, num_iterations=per_update, gradient_accumulation_steps=1)
    trainer = SimpleNamespace(args=args, _logs=logs)
    kind = terminal.Rows if is_terminal else terminal.Lines
    watcher = kind(trainer, "ppo", sample_every, shown.console, clock)
    state = TrainerState(max_steps=total * per_update, is_world_process_zero=True)

    def step(number, **logs):
        state.global_step = number
        watcher.on_step_end(args, state, TrainerControl(should_log=bool(logs)))
        if logs:
            watcher.on_log(args, state, TrainerControl(), logs={k.replace("__", "/"): v for k, v in logs.items()})

    watcher.on_train_begin(args, state, TrainerControl())
    watcher.step = step
    watcher.state = state
    return shown, watcher


# ------------------------------------------------------------ text of models is text
def test_what_could_drive_a_terminal_is_spelt_out():
    assert terminal.visible(NASTY) == "\\x1b[2J\\x1b]0;owned\\x07[bold]wide 東京[/bold] :smile: \\u202etxt\\x9b31m"
    assert terminal.visible("a\tb\nc\r\x00\x7f\u200b\u2028\ud800") == "a    b\nc\\r\\x00\\x7f\\u200b\\u2028\\ud800"
    # the joiners of Persian words and of emoji are ordinary letters
    assert terminal.visible("می\u200cخواهم 👩\u200d🚀 é") == "می\u200cخواهم 👩\u200d🚀 é"


def test_a_sample_is_one_line_of_limited_length():
    assert terminal.one_line("\n a\nb\x1b \n", 10) == "a⏎ b\\x1b"
    assert terminal.one_line("abcdefgh", 5) == "abcd…"


def test_a_sample_of_a_hostile_model_stays_text():
    prompts = ["[red]c[/red]\x1b[31m", "cd"]
    kept = {
        "prompt": [[{"role": "user", "content": prompts[0]}], prompts[1]],
        "completion": [[{"role": "assistant", "content": NASTY}], "b"],
        "rewards": {"[i]letters": [0.25, 1.0], "none": [math.nan, 2.0]},
    }
    shown, watcher = watch(200, sample_every=1, logs=kept)
    watcher.step(2, score=1.0)
    watcher.close()
    text = "\n".join(shown.lines())
    assert "[red]c[/red]\\x1b[31m" in text
    assert "\\x1b[2J\\x1b]0;owned\\x07[bold]wide 東京[/bold] :smile: \\u202etxt\\x9b31m" in text
    assert "[i]letters 0.250, none -" in text
    assert "\x1b[31m" not in shown.getvalue() and "\x1b[2J" not in shown.getvalue() and "\x07" not in text


# ------------------------------------------------------------ the table
def test_a_real_run_fits_80_columns_with_a_row_an_update(screen, tmp_path):
    shown = screen()
    trainer = toy.make_trainer(
        tmp_path, toy.with_sft_adapter(), total_episodes=32, rollout_func=toy.canned(ANSWERS), num_iterations=2
    )
    with terminal.show_progress(trainer, "ppo", sample_every=2):
        trainer.train()
    lines = shown.lines()
    assert max(cell_len(line) for line in lines) <= 80
    heading = "update score kl entropy length expl.var clipped finished grad left".split()
    rows = [line.split() for line in lines if line.lstrip().startswith(("update", "1/4", "2/4", "3/4", "4/4"))]
    # the heading comes again after a sample
    assert [row[0] for row in rows] == ["update", "1/4", "2/4", "update", "3/4", "4/4"]
    assert rows[0] == rows[3] == heading and all(len(row) == len(heading) for row in rows)
    # letters of the canned answers: 3 in 8 completions of 30 tokens, 6 of 8 finished (tests/watching/test_ppo_logs.py)
    for row in (rows[1], rows[2], rows[4], rows[5]):
        assert (row[1], row[4], row[7]) == ("0.375", f"{30 / 8:.1f}", "0.75")
    assert rows[1][2] == "0.00" and rows[5][-1] == "0:00"
    assert sum(line.startswith("  prompt") for line in lines) == 2
    prompt = next(line for line in lines if line.startswith("  prompt")).split()[1]
    completion = next(line for line in lines if line.startswith("  completion")).split()[1:]
    assert completion == toy.tokenizer().decode(ANSWERS[prompt], skip_special_tokens=True).split()


@pytest.mark.parametrize(
    ("width", "heading"),
    [
        (200, "update score kl entropy length expl.var clipped finished grad left"),
        (60, "update score kl entropy length expl.var left"),
        (40, "update score kl entropy left"),
        (20, "update left"),
    ],
)
def test_a_narrow_terminal_shows_the_figures_that_matter_most(width, heading):
    shown, watcher = watch(width)
    figures = {"score": 1.0, "kl": 2.0, "entropy": 3.0, "length__mean": 4.0, "explained_variance": 0.5}
    figures |= {"clip_fraction__policy": 0.1, "finished": 1.0, "grad_norm": 0.3}
    watcher.step(2, **figures)
    watcher.close()
    lines = shown.lines()
    assert lines[0].split() == heading.split() and max(map(cell_len, lines)) <= width
    assert lines[1].split()[0] == "1/4" and len(lines[1].split()) == len(heading.split())
    assert all(cell_len(bar.rstrip()) <= width for bar in shown.bars())


def test_logs_of_single_steps_make_one_row_an_update():
    shown, watcher = watch(per_update=2)
    watcher.step(1, score=0.5, kl=1.0, loss=9.0)
    watcher.step(2, loss=8.0, grad_norm=0.25)
    watcher.step(3, score=0.75, kl=math.nan, loss=7.0)
    watcher.step(4, loss=6.0, grad_norm=123456.0)
    watcher.on_log(None, watcher.state, None, logs={"train_runtime": 3.0, "train_loss": 7.5})
    watcher.close()
    rows = [line.split() for line in shown.lines()]
    assert rows[0] == ["update", "score", "kl", "grad", "left"]
    assert rows[1][:4] == ["1/4", "0.500", "1.00", "0.25"]
    assert rows[2][:4] == ["2/4", "0.750", "-", "1.2e+05"]  # a missing figure, and one too long for its column
    assert len(rows) == 3


def test_the_time_that_is_left_by_hand():
    now = [100.0]
    shown, watcher = watch(total=4, per_update=2, clock=lambda: now[0])
    now[0] = 130.0
    watcher.step(1)
    now[0] = 160.0
    watcher.step(2, score=1.0)  # 2 of 8 steps in 60 s: 6 more take 180 s
    watcher.close()
    assert shown.lines()[1].split() == ["1/4", "1.000", "3:00"]
    assert as_clock(3723.4) == "1:02:03"


def test_a_resumed_run_counts_on():
    now = [0.0]
    shown, watcher = watch(total=4, per_update=2, clock=lambda: now[0])
    watcher.state.global_step = 4
    watcher.on_train_begin(None, watcher.state, None)
    now[0] = 10.0
    watcher.step(6, score=1.0)  # 2 steps in 10 s, 2 more
    watcher.close()
    assert [line.split() for line in shown.lines()][1] == ["3/4", "1.000", "0:10"]


def test_held_out_figures_of_an_evaluation_have_a_line_of_their_own():
    shown, watcher = watch()
    watcher.step(2, score=0.5)
    watcher.on_log(None, watcher.state, None, logs={"eval_score": 0.25, "eval_kl": 1.0, "eval_runtime": 3.0})
    watcher.close()
    assert shown.lines()[2] == "held out: score 0.250, kl 1.00"


def test_other_processes_print_nothing():
    shown, watcher = watch(sample_every=1, logs={"prompt": ["c"], "completion": ["a"], "rewards": {}})
    watcher.close()
    shown.truncate(0)
    watcher.state.is_world_process_zero = False
    watcher.on_train_begin(None, watcher.state, None)
    watcher.step(2, score=0.5)
    assert shown.getvalue() == ""


def test_prints_of_a_reward_stand_above_the_bar_and_the_screen_is_given_back(screen, tmp_path):
    shown = screen()

    def reward(prompts, completions, **columns):
        print("hello from a reward")
        return [1.0] * len(prompts)

    trainer = toy.make_trainer(tmp_path, reward=reward)
    before = sys.stdout
    with terminal.show_progress(trainer, "ppo"):
        trainer.train()
    assert "hello from a reward" in shown.lines()
    assert sys.stdout is before and shown.getvalue().endswith("\x1b[2K")  # the bar is gone
    assert shown.getvalue().count("\x1b[?25l") == shown.getvalue().count("\x1b[?25h") == 1  # the cursor is back


def test_a_run_that_fails_gives_the_screen_back(screen, tmp_path):
    shown = screen()

    def reward(prompts, completions, **columns):
        raise UserError("no such thing")

    trainer = toy.make_trainer(tmp_path, reward=reward)
    before = sys.stdout
    with pytest.raises(ValueError, match="no such thing"), terminal.show_progress(trainer, "ppo"):
        trainer.train()
    assert sys.stdout is before and shown.getvalue().rstrip().endswith("\x1b[2K")
    assert shown.getvalue().count("\x1b[?25l") == shown.getvalue().count("\x1b[?25h") == 1
    assert not [c for c in trainer.callback_handler.callbacks if isinstance(c, terminal.Watch)]


# ------------------------------------------------------------ log files
def test_a_log_file_gets_the_first_update_and_about_ten_plain_lines():
    shown, watcher = watch(is_terminal=False, total=25, per_update=1)
    for step in range(1, 26):
        watcher.step(step, score=step / 2, kl=1.0, loss=9.0)
    lines = shown.lines()
    assert [line.split()[2].rstrip(",") for line in lines] == [
        f"{n}/25" for n in (1, 3, 5, 8, 10, 13, 15, 18, 20, 23, 25)
    ]
    assert lines[-1] == "ppo: update 25/25, about 0 s left, score 12.500, kl 1.00"


def test_a_log_file_gets_no_control_characters(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("FORCE_COLOR", "1")  # as many build machines set it
    trainer = toy.make_trainer(tmp_path, num_iterations=1)
    with terminal.show_progress(trainer, "ppo", sample_every=1):
        trainer.train()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("ppo: update 1/1, about 0 s left, score ") and lines[1].startswith("  prompt ")
    assert not any("\x1b" in line for line in lines)


def test_samples_come_in_a_log_file_too():
    kept = {"prompt": ["c"], "completion": ["a b"], "rewards": {"letters": [1.0]}}
    shown, watcher = watch(is_terminal=False, sample_every=2, logs=kept)
    for step in (2, 4, 6, 8):
        watcher.step(step, score=0.5)
    assert sum(line.split() == ["completion", "a", "b"] for line in shown.lines()) == 2


# ------------------------------------------------------------ the stages
@pytest.fixture(scope="module")
def ppo_runs(tmp_path_factory, tiny_model_folder):
    """One training, in a terminal with a sample an update, and in a log file with none: folders and output."""
    folder, found = tmp_path_factory.mktemp("watched"), {}
    data = prompts_file(folder)
    with pytest.MonkeyPatch.context() as patch:
        for name, is_terminal in (("terminal", True), ("file", False)):
            shown = Screen(terminal=is_terminal)
            patch.setattr(terminal, "Console", lambda shown=shown, **options: shown.console)
            rewards = [{"name": "test_exam:noisy"}, {"name": "keyword", "column": "facts"}]
            every = 1 if is_terminal else 0
            run_ppo(folder / name, tiny_model_folder, data, rewards, eval_every=2, sample_every=every)
            found[name] = (folder / name, shown)
    return found


def test_the_ppo_stage_shows_rows_and_samples(ppo_runs):
    lines = ppo_runs["terminal"][1].lines()
    assert [line.split()[0] for line in lines if "/3 " in line] == ["1/3", "2/3", "3/3"]
    samples = [line for line in lines if line.startswith("  prompt")]
    assert len(samples) == 3 and all(any(f"say {word} =>" in line for word in WORDS) for line in samples)
    assert sum("keyword" in line for line in lines if line.startswith("  scores")) == 3
    assert max(map(cell_len, lines)) <= 80


def test_watching_does_not_change_the_training(ppo_runs):
    weights = [load_file(folder / "adapter_model.safetensors") for folder, _ in ppo_runs.values()]
    assert weights[0].keys() == weights[1].keys()
    assert all((weights[0][key] == weights[1][key]).all() for key in weights[0])
    assert all("\x1b" not in line for line in ppo_runs["file"][1].getvalue().splitlines())


def test_sft_and_reward_model_show_loss_and_accuracy(screen, tmp_path, tiny_model_folder, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pairs = [{"prompt": f"{w} =>", "chosen": f" {w}.", "rejected": f" {w}!", "completion": "x"} for w in WORDS]
    for name, columns in (("sft", ("prompt", "completion")), ("pairs", ("prompt", "chosen", "rejected"))):
        rows = [{key: row[key] for key in columns} for row in pairs]
        Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    model = ModelArguments(str(tiny_model_folder), lora_r=2)
    common = {"use_cpu": True, "max_length": 64, "save_strategy": "no", "logging_steps": 1, "max_steps": 2}

    shown = screen()
    sft.run(model, DataArguments("sft.jsonl"), SFTStage(output_dir="sft", **common))
    rows = [line.split() for line in shown.lines() if line.strip()]
    assert rows[0][:3] == ["step", "loss", "accuracy"] and [row[0] for row in rows[1:3]] == ["1/2", "2/2"]

    shown = screen()
    data = DataArguments("pairs.jsonl", eval_fraction=0.25)
    settings = {"eval_strategy": "steps", "eval_steps": 1}
    reward_model.run(model, data, RewardStage(output_dir="reward", **common | settings))
    lines = shown.lines()
    assert lines[0].split()[:4] == ["step", "loss", "accuracy", "margin"]
    metrics = [json.loads(line) for line in Path("reward/metrics.jsonl").read_text().splitlines()]
    losses = [f"{row['loss']:.3f}" for row in metrics if "loss" in row]
    assert [line.split()[1] for line in lines if "/2 " in line] == losses
    assert sum(line.startswith("held out: loss ") for line in lines) == 2


def test_sample_every_is_checked():
    with pytest.raises(UserError, match="sample_every: -1 is not valid: a whole number from 0 up"):
        PPOStage(output_dir="x", use_cpu=True, bf16=False, sample_every=-1)
