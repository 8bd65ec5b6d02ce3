"""What a run says while it goes on: lines of a log file by a clock that is given in, counted passes, the number of
episodes that it really makes, and what its start is called at the end."""

import json
import threading
from functools import partial
from types import SimpleNamespace

import pytest
import toy
from test_terminal import Screen, watch
from toy import ANSWERS
from transformers import TrainerControl

from pipeline.exam.evaluation import ScoredAnswers
from pipeline.exam.exam import Exam
from pipeline.models.folders import name_of_start
from pipeline.stages import rl
from pipeline.watching import terminal
from pipeline.watching.journal import Journal
from pipeline.watching.progress import Pulse, _Lines, counting


class Clock:
    """Seconds that go on when the test says so."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


# ---------------------------------------------------------------- training, in a log file
def lines_of(clock, updates: list[float], per_update: int = 1, total: int = 1000) -> list[str]:
    """What is said of a run whose updates take so many seconds each."""
    shown, watcher = watch(is_terminal=False, total=total, per_update=per_update, clock=clock)
    for number, seconds in enumerate(updates, 1):
        for step in range(1, per_update + 1):
            clock.now += seconds / per_update
            last = {"score": number / 2} if step == per_update else {}
            watcher.step((number - 1) * per_update + step, **last)
    return shown.lines()


def test_the_first_update_and_then_every_two_minutes(clock):
    lines = lines_of(clock, [75.0] * 6)
    assert [line.partition(", about")[0] for line in lines] == [f"ppo: update {n}/1000" for n in (1, 3, 5)]
    # 75 s for each of 999 updates are 1248.75 minutes
    assert lines[0] == "ppo: update 1/1000, about 20.8 h left, score 0.500"


def test_within_a_long_update(clock):
    """Updates of an hour in six steps: a line a step, of which that at the end of an update has its figures."""
    lines = lines_of(clock, [3600.0] * 2, per_update=6, total=20)
    assert lines[0] == "ppo: update 0/20, about 19.8 h left"  # 119 steps of ten minutes
    assert lines[5] == "ppo: update 1/20, about 19.0 h left, score 0.500"
    assert [line.split()[2] for line in lines] == ["0/20,"] * 5 + ["1/20,"] * 6 + ["2/20,"]
    assert lines[-1].endswith("score 1.000") and "score" not in lines[-2]


def test_within_one_call_that_takes_long(clock):
    """Nothing calls back while a rollout is made: the pulse comes from another thread."""
    shown, watcher = watch(is_terminal=False, total=20, per_update=1, clock=clock)
    watcher.trainer.journal = SimpleNamespace(doing="generation")
    for seconds in (60, 60, 60, 200):
        clock.now += seconds
        watcher.beat()
    watcher.trainer.journal.doing = None
    clock.now += 20
    watcher.step(1, score=0.5)  # after 400 s: 19 more of these are 127 minutes
    watcher.trainer.journal.doing = "scoring"
    clock.now += 130
    watcher.beat()
    assert shown.lines() == [
        "ppo: update 0/20, 2 min so far, now generation",
        "ppo: update 0/20, 6 min so far, now generation",
        "ppo: update 1/20, about 2.1 h left, score 0.500",
        "ppo: update 1/20, about 2.1 h left, now scoring",  # 125 minutes
    ]


def test_the_pulse_beats_until_it_is_closed():
    beats, answers = [], iter([False, False, False, True])
    pulse = Pulse(lambda: beats.append(threading.current_thread()), lambda: next(answers))
    pulse.close()
    assert len(beats) == 3 and threading.current_thread() not in beats
    idle = Pulse(lambda: beats.append(None))  # by the clock, it would be long before the first beat
    idle.close()
    assert len(beats) == 3


def test_the_pulse_of_a_training_and_of_a_pass_end_with_them(tmp_path, clock):
    before = set(threading.enumerate())
    trainer = toy.make_trainer(tmp_path, total_episodes=8, num_iterations=1)
    shown, during = Screen(terminal=False), []
    with terminal.show_progress(trainer, "ppo", console=shown.console, clock=clock):
        watcher = next(c for c in trainer.callback_handler.callbacks if isinstance(c, terminal.Watch))
        watcher.on_step_begin = lambda *args, **kwargs: during.append(set(threading.enumerate()) - before)
        trainer.train()
    with counting("exam", 10, console=shown.console, clock=clock):
        during.append(set(threading.enumerate()) - before)
    assert all(during) and set(threading.enumerate()) == before


# ---------------------------------------------------------------- where the time went
SECONDS = {"time__generation": 12.0, "time__scoring": 3.0, "time__forward": 15.0, "time__training": 30.0}


def test_the_first_update_says_where_its_time_went(clock):
    shown, watcher = watch(is_terminal=False, total=4, per_update=2, clock=clock)
    watcher.step(1, score=0.5, time__generation=24.0, time__training=30.0)  # logged in two parts
    clock.now += 120
    watcher.step(2, kl=0.0, time__generation=0.0, time__training=66.0)
    watcher.step(4, score=1.0, **SECONDS)
    # 24 and 96 of 120 seconds; three times as many updates are to come
    first = "ppo: update 1/4, about 6 min left, score 0.500, kl 0.00; 2 min an update: generation 20%, training 80%"
    assert shown.lines()[-2:] == [first, "ppo: update 2/4, about 2 min left, score 1.000"]


def test_so_does_a_terminal_below_the_first_row(clock):
    shown, watcher = watch(total=4, per_update=1, clock=clock)
    for step in (1, 2):
        clock.now += 60
        watcher.step(step, score=0.5, **SECONDS)
    watcher.close()
    lines = shown.lines()
    assert lines[2] == "  60 s an update: generation 20%, scoring 5%, forward 25%, training 50%"
    assert [line.split()[0] for line in lines] == ["update", "1/4", "60", "2/4"]


def test_figures_of_several_updates_are_divided():
    assert terminal.split({"generation": 3.0, "training": 1.0}, 8) == "0.5 s an update: generation 75%, training 25%"
    assert terminal.split({}, 1) == terminal.split({"generation": 0.0}, 1) == ""


def test_a_journal_knows_what_it_is_doing():
    journal = Journal(None)
    seen = [journal.doing]
    with journal.clock("forward"):
        with journal.clock("scoring"):
            seen.append(journal.doing)
        seen.append(journal.doing)
    with pytest.raises(ZeroDivisionError), journal.clock("generation"):
        1 / 0  # noqa: B018
    assert [*seen, journal.doing] == [None, "scoring", "forward", None]


def test_within_a_long_step_and_a_long_evaluation(clock):
    shown, watcher = watch(is_terminal=False, total=20, per_update=1, clock=clock)
    clock.now += 60
    watcher.step(1, score=0.5)
    for tell in (watcher.on_substep_end, watcher.on_prediction_step):
        clock.now += 100
        tell(None, watcher.state, TrainerControl())
        clock.now += 100
        tell(None, watcher.state, TrainerControl())
    assert [line.partition(", about")[0] for line in shown.lines()] == ["ppo: update 1/20"] * 3


def test_a_quick_run_says_no_more_than_its_tenths(clock):
    assert len(lines_of(clock, [1.0] * 1000)) == 11  # the first and ten


def test_the_trainer_passes_the_clock_on(tmp_path, clock):
    shown = Screen(terminal=False)
    trainer = toy.make_trainer(tmp_path, total_episodes=8, num_iterations=1)
    with terminal.show_progress(trainer, "ppo", console=shown.console, clock=clock):
        watcher = next(c for c in trainer.callback_handler.callbacks if isinstance(c, terminal.Watch))
        assert watcher.clock is clock


# ---------------------------------------------------------------- counted passes
def counted(clock, seconds: list[float], is_terminal: bool = False, **options) -> Screen:
    shown = Screen(terminal=is_terminal)
    with counting("held-out prompts", 10 * len(seconds), console=shown.console, clock=clock, **options) as count:
        for each in seconds:
            clock.now += each
            count(10)
    return shown


def test_a_long_pass_in_a_log_file(clock):
    lines = counted(clock, [30.0] * 20).lines()
    assert lines == [
        "held-out prompts: 10/200, about 10 min left",  # 19 more of 30 s each: 570 s
        "held-out prompts: 50/200, about 8 min left",
        "held-out prompts: 90/200, about 6 min left",
        "held-out prompts: 130/200, about 4 min left",
        "held-out prompts: 170/200, about 90 s left",
    ]


def test_a_short_pass_in_a_log_file(clock):
    assert counted(clock, [2.0] * 4).lines() == ["held-out prompts: 10/40, about 6 s left"]
    assert counted(clock, [2.0] * 4, first=False).lines() == []
    assert counted(clock, [500.0]).lines() == []  # done with its first part
    assert len(counted(clock, [100.0] * 4, first=False).lines()) == 1


def test_a_pass_whose_parts_take_long(clock):
    shown = Screen(terminal=False)
    lines = _Lines("held-out prompts", 40, shown.console, clock, first=True)
    for seconds, count in ((100, 0), (30, 0), (100, 20), (100, 0), (30, 20), (200, 0)):
        clock.now += seconds
        if count:
            lines.count(count)
        else:
            lines.beat()
    assert shown.lines() == [
        "held-out prompts: 0/40, 2 min so far",  # 130 s
        "held-out prompts: 20/40, about 4 min left",  # 230 s for half of them
        "held-out prompts: 40/40, 9 min so far",  # all are answered, and now they are scored
    ]


def test_a_pass_in_a_terminal(clock):
    shown = counted(clock, [30.0] * 4, is_terminal=True)
    assert shown.lines() == [] and shown.getvalue().endswith("\x1b[2K")  # the bar is gone
    assert any("held-out prompts" in bar and "0/40" in bar for bar in shown.bars())


def test_exams_count_their_answers(tmp_path):
    """Sampled and greedy answers of eight prompts in batches of three, and two looks at each for the KL."""
    trainer = toy.make_trainer(tmp_path, toy.with_sft_adapter())
    rows = [{"prompt": prompt} for prompt in toy.PROMPTS]
    exam = Exam(trainer, trainer.reference_adapter, rows, {"letters": toy.letters}, {"letters": 1.0}, batch_size=3)
    shown = Screen(terminal=False)
    slow = Clock()

    def ticking() -> float:
        slow.now += 200
        return slow.now

    show = partial(counting, "exam", console=shown.console, clock=ticking)
    judged = exam.take(trainer.reference_adapter, shown=show)
    exam.kl(judged[0], show)
    said = [line.split()[1].rstrip(",") for line in shown.lines()]
    # the pass that ends at 16 of 16 says nothing more
    assert said == ["3/16", "6/16", "8/16", "11/16", "14/16", "3/16", "6/16", "8/16", "11/16", "14/16"]


def test_evaluations_count_their_batches(tmp_path, capsys, monkeypatch):
    from pipeline.config import DataArguments, ModelArguments, SFTStage
    from pipeline.stages import sft

    monkeypatch.chdir(tmp_path)
    toy.build_model(vocab_size=9).save_pretrained("base")
    toy.tokenizer().save_pretrained("base")
    for name, first in (("rows", "a"), ("heldout", "b")):
        rows = [{"prompt": first + second, "completion": third} for second in "abcd" for third in "cd"]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = SFTStage(
        output_dir="sft", max_steps=1, use_cpu=True, save_strategy="no", per_device_eval_batch_size=2, max_length=16
    )
    data = DataArguments(dataset="rows.jsonl", eval_dataset="heldout.jsonl")
    sft.run(ModelArguments(model_name_or_path="base", lora_r=2), data, config)
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("held-out rows")]
    assert [line.partition(", about")[0] for line in said] == [
        "held-out rows, before training: 1/4",
        "held-out rows, after training: 1/4",
    ]


# ---------------------------------------------------------------- how many episodes
@pytest.mark.parametrize(
    ("prompts", "settings", "episodes", "says"),
    [
        (
            20,
            {"num_train_epochs": 2},
            32,
            "20 prompts x 2 epochs become 32 episodes: a rollout takes 16 prompts, so each epoch leaves out 4",
        ),
        (20, {"num_train_epochs": 1.5}, 32, "20 prompts x 1.5 epochs become 32 episodes"),
        (16, {"num_train_epochs": 2}, 32, None),
        (20, {"total_episodes": 32}, 32, None),
        (20, {"total_episodes": 33}, 48, "total_episodes 33 is rounded up to 48: whole rollouts of 16"),
        (20, {"max_steps": 2}, 16, None),
    ],
)
def test_another_number_of_episodes_than_asked_for_is_said(tmp_path, prompts, settings, episodes, says):
    texts = [toy.PROMPTS[i % len(toy.PROMPTS)] for i in range(prompts)]
    sizes = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 2}
    trainer = toy.make_trainer(
        tmp_path, prompts=texts, rollout_func=toy.canned(ANSWERS), **sizes, **{"total_episodes": None} | settings
    )
    note = rl.episodes_note(trainer.args, prompts)
    assert note is None if says is None else says in note
    trainer.train()
    assert trainer.journal.episodes == episodes


# ---------------------------------------------------------------- what the start is called
def judged(text: str) -> ScoredAnswers:
    return ScoredAnswers([text], [[3]], [True], {"bleu": [0.5]})


@pytest.mark.parametrize(
    ("made_by", "name"),
    [
        (None, "base"),
        ({"stage": "sft"}, "SFT"),
        ({"algorithm": "grpo"}, "GRPO"),
        ({"algorithm": "ppo"}, "start"),
        ({}, "start"),
    ],
)
def test_the_start_is_called_what_it_is(tmp_path, capsys, made_by, name):
    folder = None
    if made_by is not None:
        folder = tmp_path / "some-adapter"
        folder.mkdir()
        (folder / "summary.json").write_text(json.dumps(made_by))
    means = {"bleu": 0.5}
    summary = {"algorithm": "ppo", "heldout": 1, "before": means, "after": means, "kl": 0.0, "episodes": 8}
    summary |= {"greedy": {"before": means, "after": means}, "seconds": 1.0, "started_from": folder and str(folder)}
    rl._show(summary, [{"prompt": "say red"}], judged("one"), judged("two"), 1, tmp_path, tmp_path / "report.html")
    lines = capsys.readouterr().out.splitlines()
    heading = next(line for line in lines if "greedy" in line).split()
    assert [word for word in heading if word.isalpha()] == [name, "PPO", name, "greedy", "PPO", "greedy"]
    width = max(3, len(name))
    assert f"  {name:<{width}}  one" in lines and f"  {'PPO':<{width}}  two" in lines


def test_an_adapter_of_unknown_making(tmp_path):
    assert name_of_start(str(tmp_path / "somebody/lora")) == "start"
    assert name_of_start(str(tmp_path / "runs/x/sft")) == "SFT"
