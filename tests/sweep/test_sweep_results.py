"""What a sweep reads: values of its space, the exams of each stage, which way is better, which setting mattered."""

import pytest
from toy_sweep import ROOT, TOY, asked, random, rows, write

from pipeline.sweep import measures, results, run, trials
from pipeline.sweep.results import best, importances
from pipeline.sweep.settings import plan
from pipeline.sweep.space import Dimension, put, read_space
from pipeline.sweep.study import Study
from pipeline.worlds import field_notes


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(trials, "POLL", 0.02)
    monkeypatch.setattr(results, "draw", lambda study, found, path: path.touch())  # test_sweep.py draws


def test_values_of_a_space():
    space = read_space({"a": {"log": ["1e-4", 1]}, "b": {"int": [2, 4]}, "c": {"choice": [None, ["x", "y"], "1e-3"]}})
    assert space["a"] == Dimension("log", 1e-4, 1)
    assert space["a"].value(0.00123456) == 0.001235
    assert space["b"].grid("b") == [2, 3, 4]
    assert space["c"].grid("c") == [None, '["x", "y"]', 0.001]
    assert [space["c"].value(param) for param in space["c"].grid("c")] == [None, ["x", "y"], 0.001]


def test_a_value_inside_a_setting():
    settings = {"rewards": ["bleu", {"name": "keyword", "log_name": "my.words"}], "kwargs": {"low": 1}}
    put(settings, "rewards.bleu.weight", 0.5)
    put(settings, "rewards.my.words.weight", 2)
    put(settings, "kwargs.low", 0)
    assert settings == {
        "rewards": [{"name": "bleu", "weight": 0.5}, {"name": "keyword", "log_name": "my.words", "weight": 2}],
        "kwargs": {"low": 0},
    }


def test_exams_of_ppo(tmp_path):
    exam = {"kl": 2.0, "score": 1.5, "rewards": {"bleu": 0.4}, "referee": {"gold": 0.7}, "corpus_bleu": 30.0}
    found = measures.exams(write(tmp_path, heldout=[{"step": 0} | exam, {"step": 8, "episodes": 64} | exam]))
    assert found == [
        {"step": 8, "episodes": 64, "kl": 2.0, "score": 1.5, "corpus_bleu": 30.0, "rewards.bleu": 0.4, "gold": 0.7}
    ]
    assert measures.within(found[0], 2.0) and not measures.within(found[0], 1.9) and measures.within(found[0], None)
    assert measures.ends(found[0], {"total_episodes": 64}) and not measures.ends(found[0], {"total_episodes": 65})


def test_exams_of_sft_and_the_reward_model(tmp_path):
    logs = [{"step": 0, "eval_loss": 2.0}, {"step": 5, "loss": 1.0}, {"step": 5, "epoch": 0.5, "eval_loss": 1.5}]
    found = measures.exams(write(tmp_path, metrics=logs))
    assert found == [{"step": 5, "epoch": 0.5, "loss": 1.5}]
    assert not measures.ends(found[0], {"max_steps": -1, "num_train_epochs": 1.0})
    last = measures.exams(write(tmp_path, summary={"steps": 9, "accuracy": 0.8, "stage": "reward"}))[-1]
    assert (last["step"], last["accuracy"], last["loss"]) == (9, 0.8, 1.5)
    assert measures.ends(last, {"max_steps": 9}) and not measures.ends(found[0], {"max_steps": 9})


def test_which_way_is_better(tmp_path):
    settings = asked(tmp_path, stage="sft", stage_config="recipes/tiny/sft.yaml", measure="loss", pruner="none")
    settings.overrides = {}
    assert not plan(settings).higher_is_better
    assert plan(asked(tmp_path, measure="rewards.bleu")).higher_is_better


@pytest.mark.slow
def test_the_lower_the_better_where_it_is_so(tmp_path, monkeypatch):
    monkeypatch.setitem(field_notes.HIGHER_IS_BETTER, "gold", False)
    settings = asked(tmp_path, pruner="none")
    run(settings, TOY)
    assert [row[2] for row in rows(settings)[1:]] == ["0.750", "0.750", "1.000"]


@pytest.mark.slow
def test_what_mattered(tmp_path):
    """The toy looks at its learning rate alone; three trials are too few to say so."""
    space = {"learning_rate": {"log": [1e-7, 1e-3]}, "kl_coef": {"uniform": [0.0, 1.0]}}
    settings = random(tmp_path, space=space, trials=3, pruner="none")
    run(settings, TOY)
    study = Study(plan(settings))
    assert importances(study, study.trials()) == {}
    settings.trials = 16
    run(settings, TOY)
    study = Study(plan(settings))
    parts = importances(study, study.trials())
    assert sum(parts.values()) == pytest.approx(1) and parts["learning_rate"] > 0.7
    closest = max(study.trials(), key=lambda trial: trial.params["learning_rate"])
    assert best(study.plan, study.trials()).number == closest.number
