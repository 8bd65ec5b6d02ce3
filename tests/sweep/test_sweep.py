"""`make sweep`: Optuna and SQLite as they are, over a stage that is a short script (tests/support/toy_stage.py)."""

import json
import math
import multiprocessing
import signal
import subprocess
import sys
from pathlib import Path
from statistics import median

import optuna
import pytest
import yaml
from recipe_files import settings_for
from toy_sweep import RATES, ROOT, TOY, asked, random, rows, write

from pipeline.cli import parse
from pipeline.errors import UserError
from pipeline.sweep import SweepSettings, measures, results, run, trials
from pipeline.sweep.results import draw
from pipeline.sweep.settings import plan
from pipeline.sweep.study import Study, _lock


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(trials, "POLL", 0.02)
    monkeypatch.setattr(results, "draw", lambda study, found, path: path.touch())  # once is enough, see below


def kept(settings: SweepSettings) -> list[optuna.trial.FrozenTrial]:
    """The trials in the study, those that were put back left out."""
    study = optuna.load_study(study_name="sweep", storage=f"sqlite:///{settings.output_dir}/study.db")
    return [trial for trial in study.trials if "put_back" not in trial.user_attrs]


def states(found: list[optuna.trial.FrozenTrial]) -> list[str]:
    return [trial.state.name for trial in found]


def rates(found: list[optuna.trial.FrozenTrial]) -> list[float]:
    return sorted(trial.params["learning_rate"] for trial in found)


def fork(settings: SweepSettings) -> multiprocessing.Process:
    """The sweep in a process of its own, which has the libraries already."""
    process = multiprocessing.get_context("fork").Process(target=run, args=(settings, TOY))
    process.start()
    return process


def test_the_best_is_the_best_within_the_kl_limit(tmp_path, capsys):
    space = {"learning_rate": {"choice": [1e-4, 1e-3, 1e-2, 0.9]}}
    settings = asked(tmp_path, space=space, kl_limit=0.5)
    run(settings, TOY)
    head, *found = rows(settings)
    assert head == ["trial", "learning_rate", "gold", "KL, nats", "exams", "minutes", "outcome"]
    assert [row[1:] for row in found] == [
        ["0.0001", "0.750", "0.10", "4", "4.0", "**best**"],
        ["0.001", "1.000", "1.00", "4", "4.0", "over the KL limit"],
        ["0.01", "0.750", "10.00", "4", "4.0", "over the KL limit"],
        ["0.9", "–", "–", "0", "–", "failed: the loss is not finite: lower learning_rate \\| at once"],
    ]
    said = capsys.readouterr().out
    assert "stopped early" not in said and "To run it: python recipes/ppo.py --config" in said
    study = Study(plan(settings))
    for name in ("a.svg", "b.svg", "c.png"):
        draw(study, study.trials(), tmp_path / name)
        assert (tmp_path / name).stat().st_size > 5_000
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def test_the_best_yaml_is_the_stages_own_and_says_where_it_comes_from(tmp_path):
    space = RATES | {"rewards.bleu.weight": {"choice": [0.25]}}
    settings = asked(tmp_path, space=space, overrides={"eval_every": 1, "total_episodes": 128})
    run(settings, TOY)
    path = tmp_path / "sweep/best.yaml"
    *_, reward_args, config = parse(*settings_for("ppo"), argv=["--config", str(path)])
    assert (config.learning_rate, config.total_episodes, config.kl_coef) == (1e-3, 128, 0.05)
    assert [(spec["name"], spec["weight"]) for spec in reward_args.rewards] == [
        ("keyword", 1.0),
        ("learned", 0.5),
        ("bleu", 0.25),
    ]
    assert config.output_dir == "runs/tiny/ppo-best"
    best_trial = next(row[0] for row in rows(settings) if row[-1] == "**best**")
    assert [line for line in path.read_text("utf-8").splitlines() if line.startswith("#")] == [
        f"# The best of 3 trials in {path.parent}: trial {best_trial}, gold 1.000 at a KL of 1.00 nats, one seed.",
        "# Tried: learning_rate 0.001, rewards.bleu.weight 0.25",
        "# As in all trials: eval_every 1 (recipes/tiny/ppo.yaml has no such key)",
        "# As in all trials: total_episodes 128 (recipes/tiny/ppo.yaml has 2560)",
    ]


def test_nothing_within_the_limit_is_no_best(tmp_path, capsys):
    run(asked(tmp_path, kl_limit=0.01), TOY)
    assert "No trial came to its end within a KL of 0.01 nats, so there is no best.yaml" in capsys.readouterr().out
    assert not (tmp_path / "sweep/best.yaml").exists()


@pytest.mark.parametrize("pruner", ["median", pytest.param("halving", marks=pytest.mark.slow)])
def test_an_unpromising_trial_is_stopped_early(tmp_path, pruner):
    """Four come to their end; of the next, those with less than 0.4 would wait for ever, were they not stopped."""
    run(random(tmp_path, pruner=pruner), TOY)
    assert median(trial.value for trial in kept(random(tmp_path))) > 0.4
    (tmp_path / "wait-below").write_text("0.4")
    run(settings := random(tmp_path, pruner=pruner, trials=7), TOY)
    found = kept(settings)
    bad = [trial for trial in found[4:] if trial.params["learning_rate"] < 10**-5.4]
    assert bad and states(found).count("COMPLETE") == 7 - len(bad)
    for trial in bad:
        assert trial.state.name == "PRUNED" and trial.user_attrs["exam"]["exams"] == 1 and trial.value < 0.4 / 4
    assert [row[-1] for row in rows(settings)].count("stopped early") == len(bad)


def test_ctrl_c_puts_back_what_ran_and_the_same_command_goes_on(tmp_path, capsys):
    calm, stopped = tmp_path / "calm", tmp_path / "stopped"
    calm.mkdir(), stopped.mkdir()
    run(random(calm, trials=3), TOY)
    (stopped / "interrupt").touch()
    with pytest.raises(KeyboardInterrupt):
        run(random(stopped, trials=3), TOY)
    assert "Stopping the trials after the step that they are at" in capsys.readouterr().out
    assert states(kept(random(stopped))) == ["WAITING"]
    run(random(stopped, trials=3), TOY)
    found = kept(random(stopped))
    assert states(found) == ["COMPLETE"] * 3
    assert rates(found) == rates(kept(random(calm)))  # stopped or not, the same settings are tried
    assert [trial.user_attrs["folder"] for trial in found] == ["trial-000", "trial-002", "trial-003"]
    assert words(stopped)[-1] == "--resume"


def test_a_killed_sweep_goes_on_when_its_stage_has_ended(tmp_path, capsys):
    (tmp_path / "kill").touch()
    process = fork(asked(tmp_path))
    process.join()
    assert process.exitcode == -signal.SIGKILL
    run(asked(tmp_path), TOY)
    assert "trial 0 lost its sweep and goes on" in capsys.readouterr().out
    found = kept(asked(tmp_path))
    assert states(found) == ["COMPLETE"] * 3 and rates(found) == [1e-4, 1e-3, 1e-2]
    assert words(tmp_path)[-1] == "--resume"


def words(folder: Path, trial: str = "trial-000") -> list[str]:
    """What the launcher of that trial was called with at last."""
    return json.loads((folder / "sweep" / trial / "summary.json").read_text())["words"]


def test_two_processes_share_a_sweep(tmp_path):
    (tmp_path / "meet").touch()  # no trial ends before there are two
    space = {"learning_rate": {"choice": [1e-4, 1e-3]}, "num_iterations": {"int": [1, 2]}}
    settings = asked(tmp_path, space=space)
    processes = [fork(settings), fork(settings)]
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    found = kept(settings)
    tried = [(trial.params["learning_rate"], trial.params["num_iterations"]) for trial in found]
    assert sorted(tried) == [(1e-4, 1), (1e-4, 2), (1e-3, 1), (1e-3, 2)]
    assert states(found) == ["COMPLETE"] * 4


def test_a_trial_that_ends_while_another_process_looks_is_not_taken_over(tmp_path, monkeypatch):
    todo = plan(asked(tmp_path, space={"learning_rate": {"choice": [1e-4, 1e-3]}}))
    theirs, ours = Study(todo), Study(todo)
    trial = theirs.take()

    def lock(path):
        if trial.number in theirs._claims:
            theirs.complete(trial, 0.5)  # between our look at the running trials and our look at its lock
        return _lock(path)

    monkeypatch.setattr("pipeline.sweep.study._lock", lock)
    ours.take()
    assert [trial.state.name for trial in ours.trials()] == ["COMPLETE", "RUNNING"]


def test_jobs_run_at_once_with_a_thread_each(tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    (tmp_path / "meet").touch()
    run(asked(tmp_path, jobs=2, trials=2), TOY)
    assert states(kept(asked(tmp_path))) == ["COMPLETE"] * 2
    assert json.loads((tmp_path / "sweep/trial-001/summary.json").read_text())["threads"] == "1"


@pytest.mark.slow
def test_a_finished_sweep_does_nothing_again_and_more_trials_go_on(tmp_path):
    run(random(tmp_path), TOY)
    before = rates(kept(random(tmp_path)))
    run(random(tmp_path), TOY)
    assert rates(kept(random(tmp_path))) == before
    run(random(tmp_path, trials=5), TOY)
    after = rates(kept(random(tmp_path)))
    assert len(after) == 5 and set(before) < set(after)


@pytest.mark.slow
def test_an_exam_over_the_limit_counts_as_one_that_says_nothing(tmp_path):
    settings = random(tmp_path, kl_limit=1e-9, pruner="none", trials=1)
    run(settings, TOY)
    (trial,) = kept(settings)
    assert [math.isnan(value) for value in trial.intermediate_values.values()] == [True] * 3
    assert trial.constraints["kl"] == pytest.approx(trial.params["learning_rate"] * 1000, rel=1e-3)


@pytest.mark.parametrize(
    "changes, says",
    [
        (
            {"space": {"learning_rate": {"choice": [1e-4]}}},
            r"choice was \[0.0001, 0.001, 0.01\] and is \[0.0001\] now",
        ),
        ({"measure": "score"}, "measure was 'gold' and is 'score' now"),
        ({"overrides": {"eval_every": 2}}, "eval_every was 1 and is 2 now"),
    ],
)
def test_a_sweep_goes_on_as_it_began(tmp_path, changes, says):
    Study(plan(asked(tmp_path, space={"learning_rate": {"choice": [1e-4, 1e-3, 1e-2]}})))
    with pytest.raises(UserError, match=f"was begun with other settings .*{says}.*give another --output_dir"):
        Study(plan(asked(tmp_path, **{"space": {"learning_rate": {"choice": [1e-4, 1e-3, 1e-2]}}} | changes)))


@pytest.mark.parametrize(
    "changes, says",
    [
        ({"stage": "eval"}, "stage: 'eval' is not valid: one of sft, reward, ppo"),
        ({"stage_config": "recipes/tiny/pp.yaml"}, "pp.yaml: there is no such file"),
        ({"space": {}}, "space is empty: name at least one setting"),
        ({"space": {"learning_rat": {"choice": [1]}}}, "no such setting learning_rat, did you mean learning_rate"),
        ({"space": {"learning_rate": {"choice": ["fast"]}}}, "learning_rate wants a number, got 'fast'"),
        ({"space": {"learning_rate": [1e-4, 1e-2]}}, "learning_rate wants one of .choice: .* got .0.0001, 0.01."),
        ({"space": {"learning_rate": {"log": [1e-2, 1e-4]}}}, "learning_rate wants the lower number first"),
        ({"space": {"learning_rate": {"log": [0, 1e-4]}}}, "both above 0"),
        ({"space": {"num_iterations": {"int": [1, 2.5]}}}, "num_iterations wants two whole numbers after int"),
        ({"space": {"seed": {"choice": [1, 1.0]}}}, "seed has 1.0 twice"),
        ({"space": {"learning_rate": {"log": [1e-4, 1e-2]}}}, "infinitely many values, which sampler: grid"),
        ({"space": {"rewards.blue.weight": {"choice": [1]}}}, "one of these names: keyword, learned, bleu"),
        ({"space": {"kl_coef.low": {"choice": [1]}}}, "kl_coef is no list of named items, and no mapping"),
        ({"space": {"output_dir": {"choice": ["a"]}}}, "output_dir is not a setting to try"),
        ({"space": {"eval_samples": {"choice": [9]}}}, "eval_samples decides what is examined"),
        ({"overrides": {"output_dir": "runs/x"}}, "overrides: output_dir cannot be set there"),
        ({"overrides": {"eval_evry": 1}}, "with overrides: no such setting eval_evry, did you mean eval_every"),
        ({"measure": "golden"}, "'golden' is none of ppo's: choose from score, corpus_bleu, .* rewards.bleu, gold"),
        ({"measure": "score", "space": {"rewards.bleu.weight": {"choice": [1]}}}, "score adds up the rewards, which"),
        (
            {"overrides": {}},
            "pruner: median compares exams during training, and this stage takes none: set eval_every",
        ),
        ({"sampler": "bayes"}, "sampler: 'bayes' is not valid: one of tpe, random, grid"),
        ({"pruner": "soon"}, "pruner: 'soon' is not valid"),
        (
            {
                "stage": "ilql",
                "stage_config": "recipes/tiny/ilql.yaml",
                "overrides": {},
                "space": {"beta": {"int": [1, 3]}},
            },
            "pruner: runs of ilql are not stopped early; set pruner",
        ),
        ({"kl_limit": 0}, "kl_limit: 0 is not valid"),
        ({"trials": 0}, "trials: 0 is not valid"),
    ],
)
def test_what_does_not_fit_is_one_sentence_before_the_first_trial(tmp_path, changes, says):
    with pytest.raises(UserError, match=says):
        run(asked(tmp_path, **changes), TOY)
    assert not (tmp_path / "sweep").exists()


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep/mine.txt").touch()
    with pytest.raises(UserError, match="holds files, but no sweep"):
        run(asked(tmp_path), TOY)
    assert [path.name for path in (tmp_path / "sweep").iterdir()] == ["mine.txt"]


def test_without_optuna_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(UserError, match=r"needs Optuna, which is not installed: pip install -e '\.\[sweep\]'"):
        run(asked(tmp_path), TOY)


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*/sweep*.yaml")), ids=lambda path: path.parent.name)
def test_every_recipes_sweep_can_be_run(path):
    (settings,) = parse(SweepSettings, argv=["--config", str(path)])
    found = plan(settings)
    assert found.trials >= 1 and settings.output_dir.startswith(f"runs/{path.parent.name}/sweep")


@pytest.mark.slow
def test_real_stages(tmp_path, tiny_model_folder):
    """SFT and PPO by their own launchers; what best.yaml makes is what its trial was."""
    words = [f"w{i}" for i in range(16)]
    lines = [{"prompt": f"say {w} =>\n", "completion": f"It is {w}.", "facts": [w]} for w in words]
    data = str(write(tmp_path, rows=lines) / "rows.jsonl")
    common = {"model_name_or_path": str(tiny_model_folder), "dataset": data, "eval_fraction": 0.25, "use_cpu": True}
    common |= {"per_device_train_batch_size": 4, "save_strategy": "no"}
    space = {"learning_rate": {"choice": [1e-2]}}
    stages = {
        "sft": ({"num_train_epochs": 1, "eval_strategy": "steps", "eval_steps": 1, "max_length": 64}, "loss"),
        "ppo": (
            {"total_episodes": 16, "max_completion_length": 8, "eval_samples": 4, "eval_every": 1}
            | {"rewards": [{"name": "keyword", "column": "facts"}]},
            "score",
        ),
    }
    for stage, (settings, measure) in stages.items():
        config = tmp_path / f"{stage}.yaml"
        config.write_text(yaml.safe_dump(common | settings | {"output_dir": str(tmp_path / stage)}))
        folder = tmp_path / f"sweep-{stage}"
        ask = {"stage": stage, "stage_config": str(config), "output_dir": str(folder), "measure": measure}
        settings = SweepSettings(**ask, space=space, sampler="grid")
        run(settings)
        (trial,) = kept(settings)
        assert trial.state.name == "COMPLETE" and trial.user_attrs["exam"]["exams"] >= 1
    subprocess.run([sys.executable, "recipes/ppo.py", "--config", str(folder / "best.yaml")], check=True)
    again = measures.exams(tmp_path / "ppo-best")[-1]
    assert (measures.value(again, "score"), measures.value(again, "kl")) == (
        trial.value,
        trial.user_attrs["exam"]["kl"],
    )
