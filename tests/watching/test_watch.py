"""The watchers: runs that are made to go wrong, figures around the thresholds, and stopping."""

import json

import pytest
import toy
from short_runs import prompts_file, run_ppo

from pipeline.errors import UserError
from pipeline.exam.exam import Exam, ExamCallback
from pipeline.report import write_report
from pipeline.runs.folder import HELDOUT, RunFolder, read_metrics
from pipeline.watching.watch import WatchCallback, note_warning, read_warnings, row_of


def many_a(prompts, completions, **columns):
    return [float(text.count("a")) for text in completions]


def constant(prompts, completions, **columns):
    return [1.0] * len(completions)


def letters_used(text, row):
    return {"variety": float(len(set(text)))}


# ---------------------------------------------------------------- runs that go wrong
@pytest.fixture(scope="module")
def hacked(tmp_path_factory):
    """PPO without a KL penalty and with a rate far too high, paid for the letter a: it ends in nothing but a's."""
    folder = tmp_path_factory.mktemp("hacked")
    trainer = toy.make_trainer(
        folder,
        # wide enough that the policy can be nearly certain
        toy.build_model(hidden_size=64, intermediate_size=64, initializer_range=0.15),
        reward=many_a,
        peft_config=toy.lora(r=4, lora_alpha=8),
        kl_coef=0.0,
        learning_rate=2e-2,
        max_completion_length=24,
        total_episodes=18 * 8,
    )
    rows = [{"prompt": prompt} for prompt in toy.PROMPTS]
    exam = Exam(trainer, None, rows, {"a": many_a}, {"a": 1.0}, letters_used)
    exams = ExamCallback(exam, folder, 2)
    exams.write(exam.take(None, greedy=False)[0], kl=0.0)
    trainer.add_callback(RunFolder(folder).metrics_callback())
    trainer.add_callback(exams)
    trainer.add_callback(WatchCallback(folder))
    trainer.train()
    return folder, {row["watcher"]: row for row in read_warnings(folder)}, trainer.state.log_history


@pytest.mark.parametrize("watcher", ["kl", "entropy", "cut", "variance", "repetition", "over-optimization"])
def test_a_run_that_goes_wrong_is_told(hacked, watcher):
    assert watcher in hacked[1]


def test_each_warns_once_with_the_figure_of_its_log(hacked):
    folder, warnings, history = hacked
    assert len(read_warnings(folder)) == len(warnings) == 6
    logs = {row["step"]: row for row in history if "loss" in row}
    at = logs[warnings["kl"]["step"]]
    assert f"{at['kl']:.1f} nats a completion, {at['kl'] / at['length/mean']:.2f} a token" in warnings["kl"]["text"]
    at = logs[warnings["entropy"]["step"]]
    first = logs[min(logs)]["entropy"]
    assert f"{at['entropy']:.3f} nats a token, {first:.3f} at first" in warnings["entropy"]["text"]
    assert "at 24 tokens" in warnings["cut"]["text"]


def test_report_and_terminal_show_the_warnings(hacked, tmp_path, capsys):
    page = write_report(hacked[0], tmp_path / "page.html").read_text(encoding="utf-8")
    assert page.count("<li>Step ") == 6 and "the KL to the reference runs away" in page
    note_warning(tmp_path, 3, "kl", "<script>alert(1)</script>")
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 1.0}\n')
    page = write_report(tmp_path).read_text(encoding="utf-8")
    assert "&lt;script&gt;alert(1)" in page and "<script>alert(1)" not in page


def test_a_critic_that_does_not_learn_is_told(tmp_path):
    trainer = toy.make_trainer(
        tmp_path,
        critic_learning_rate=1e-12,  # its head stays at 0: V = 0 explains nothing
        learning_rate=1e-3,
        num_iterations=1,
        per_device_train_batch_size=8,
        gradient_accumulation_steps=1,
        max_completion_length=3,
        total_episodes=50 * 8,
    )
    trainer.add_callback(WatchCallback(tmp_path))
    trainer.train()
    (text,) = [row["text"] for row in read_warnings(tmp_path) if (row["step"], row["watcher"]) == (50, "critic")]
    assert "median 0.00 in the last 30 logs" in text


def test_a_policy_that_is_another_one_in_the_update_is_told(tmp_path):
    trainer = toy.make_trainer(tmp_path, toy.with_sft_adapter(), total_episodes=16, learning_rate=0.0)
    trainer.add_callback(WatchCallback(tmp_path))
    asked = trainer._prepare_inputs

    def meddle(batch):
        inputs = asked(batch)
        toy.randomize(trainer.model, "default", seed=7)
        return inputs

    trainer._prepare_inputs = meddle
    trainer.train()
    # in the first rollout the adapter changes between sampling and update; afterwards it is the same random one
    first, second = toy.logged(trainer, "ratio/first")
    assert first > 0.05 and second == pytest.approx(0, abs=1e-5)
    assert [row["watcher"] for row in read_warnings(tmp_path)] == ["ratio"]


# ---------------------------------------------------------------- around the thresholds
def told(folder, logs, **settings) -> list[str]:
    """Which watchers speak, over `logs`."""
    watch = WatchCallback(folder, **settings)
    return [name for step, log in enumerate(logs) for name, _ in watch.read({"loss": 0.0, "step": step} | log)]


def said(*shares):
    return [{"repetition": share} for share in shares]


@pytest.mark.parametrize(
    ("watcher", "quiet", "loud"),
    [
        ("kl", [{"kl": 19.9, "length/mean": 5}] * 9, [{"kl": 20.1, "length/mean": 5}] * 3),
        ("kl", [{"kl": 99, "length/mean": 100}] * 9, [{"kl": 101, "length/mean": 100}] * 3),
        ("kl", [{"kl": 50, "length/mean": 5}, {"kl": 50, "length/mean": 5}, {"kl": 9, "length/mean": 5}] * 3, None),
        ("entropy", [{"entropy": 2.0}] + [{"entropy": 0.21}] * 9, [{"entropy": 2.0}] + [{"entropy": 0.19}] * 3),
        ("cut", [{"finished": 0.0}, {"finished": 0.0}, {"finished": 0.1}] * 3, [{"finished": 0.0}] * 3),
        ("variance", [{"score_std": 1e-3, "score": 1}] * 9, [{"score_std": 0.0, "score": 1}] * 3),
        ("variance", None, [{"score_std": 5e-6, "score": -9.0}] * 3),  # rounding
        ("ratio", [{"ratio/first": 0.04}] * 9, [{"ratio/first": 0.06}]),
        ("repetition", said(0.3, 0.49, 0.49, 0.49), said(0.3, 0.51, 0.51, 0.51)),
        ("critic", [{"explained_variance": x} for x in (-1, 0.1, 0.2)] * 50, [{"explained_variance": -0.1}] * 50),
        ("critic", [{"explained_variance": -0.1}] * 49, None),
    ],
)
def test_thresholds(tmp_path, watcher, quiet, loud):
    if quiet:
        assert told(tmp_path, quiet) == []
    if loud:
        assert told(tmp_path, loud) == [watcher]
        assert told(tmp_path, loud * 3) == [watcher]


def test_the_critic_has_its_warmup_on_top(tmp_path):
    logs = [{"explained_variance": 0.0}] * 54
    assert told(tmp_path, logs, warmup=5) == [] and told(tmp_path, logs, warmup=4) == ["critic"]


@pytest.mark.parametrize(
    ("referee", "score", "loud"),
    [
        ([0.5, 0.6, 0.5, 0.5, 0.5], [0, 1, 2, 2, 2], True),
        ([0.5, 0.6, 0.5, 0.5, 0.55], [0, 1, 2, 2, 2], False),  # the last fall is less than a tenth
        ([0.5, 0.6, 0.5, 0.5, 0.5], [0, 1, 2, 2, 0.9], False),  # the score has fallen as well
        ([0.5, 0.6, 0.5, 0.5], [0, 1, 2, 2], False),  # two exams after the best
        ([0.5, 0.6, 0.7, 0.8, 0.9], [0, 1, 2, 3, 4], False),
        ([0.5, 0.3, 0.3, 0.3], [0, 1, 2, 2], True),  # worse from the start
    ],
)
@pytest.mark.parametrize("lower", [False, True])
def test_over_optimization(tmp_path, referee, score, loud, lower):
    sign = -1 if lower else 1
    rows = [
        {"step": i, "update": i, "score": s, "referee": {"gold": sign * r}}
        for i, (r, s) in enumerate(zip(referee, score, strict=True))
    ]
    (tmp_path / HELDOUT).write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = told(tmp_path, [{}], lower_is_better={"gold"} if lower else set())
    assert found == (["over-optimization"] if loud else [])


def test_grpo_has_other_names():
    row = row_of(
        {"step": 3, "reward": 1.5, "reward_std": 0.0, "kl": 0.5, "entropy": 1.0, "completions/mean_length": 30.0}
        | {"completions/clipped_ratio": 0.25}
    )
    # TRL's KL is per token
    wanted = {"score": 1.5, "score_std": 0.0, "kl": 15.0, "length/mean": 30.0, "finished": 0.75, "entropy": 1.0}
    assert row.step == 3 and {name: row.metrics[name] for name in wanted} == wanted


# ---------------------------------------------------------------- stopping
def test_watch_stop_saves_and_ends_the_run_and_a_resumed_run_does_not_warn_again(tmp_path, tiny_model_folder, capsys):
    data, out = prompts_file(tmp_path), tmp_path / "out"
    arguments = (out, tiny_model_folder, data, [{"name": constant}], None)
    with pytest.raises(UserError, match="stopped at step 6 .watch: stop., .*checkpoint-6 is saved: all completions"):
        run_ppo(*arguments, total_episodes=20, watch="stop")
    assert capsys.readouterr().out.count("Warning (step 6)") == 2  # all were cut, and scored alike
    assert (out / "checkpoint-6/adapter_model.safetensors").exists() and not (out / "summary.json").exists()
    assert [row["step"] for row in read_metrics(out) if "loss" in row] == [2, 4, 6]
    run_ppo(*arguments, total_episodes=20, resume_from_checkpoint=str(out / "checkpoint-6"))
    assert [row["step"] for row in read_metrics(out) if "loss" in row] == [2, 4, 6, 8, 10]
    assert [(row["step"], row["watcher"]) for row in read_warnings(out)] == [(6, "cut"), (6, "variance")]
    assert "A warning at step 6 of the training:" in (out / "README.md").read_text(encoding="utf-8")


def test_watch_off_says_nothing(tmp_path, tiny_model_folder, capsys):
    run_ppo(tmp_path / "out", tiny_model_folder, prompts_file(tmp_path), [{"name": constant}], None, watch="off")
    assert read_warnings(tmp_path / "out") == [] and "Warning" not in capsys.readouterr().out


def test_watch_is_checked(tmp_path, tiny_model_folder):
    with pytest.raises(UserError, match="watch: 'loud' is not valid: one of warn, stop, off"):
        run_ppo(tmp_path / "out", tiny_model_folder, prompts_file(tmp_path), [{"name": constant}], None, watch="loud")


@pytest.mark.parametrize(
    ("scoring", "generation", "says"),
    [
        (30.0, 0.3, "30.0 s of an update, generation 0.3 s (100 times)"),
        (3.0, 0.31, None),  # 9.7 times
        (0.5, 0.001, None),  # 500 times, but nobody waits
    ],
)
def test_a_reward_far_slower_than_generation_is_warned_of_once_with_the_figures(scoring, generation, says, tmp_path):
    callback, said = WatchCallback(tmp_path), []
    for _ in range(2):
        said += callback.read({"loss": 0.1, "time/scoring": scoring, "time/generation": generation, "score": 1.0})
    assert [name for name, _ in said] == ["slow rewards"] * (says is not None)
    assert all(says in text for _, text in said)
