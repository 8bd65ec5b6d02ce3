"""Adapters from elsewhere that cannot share a base, or are read nowhere: refused by the name of the setting."""

# ruff: noqa: F811 (fixtures come by import)
import json
from contextlib import nullcontext
from pathlib import Path

import peft
import pytest
import torch
import toy
from foreign_adapters import (  # noqa: F401
    ALONE,
    CASES,
    EDITED,
    IDS,
    MASK,
    NOWHERE,
    PLAIN,
    base_of,
    beside,
    case,
    every,
    hidden,
    load,
    logits,
    make,
    of_peft,
    place,
    quiet,
    raw,
    same,
    score_model,
    trained,
)
from peft import get_peft_model
from transformers import AutoModelForSequenceClassification

from pipeline.config import ModelArguments
from pipeline.errors import UserError
from pipeline.eval.candidates import read_candidates
from pipeline.ilql.network import Network
from pipeline.models import adapter_files
from pipeline.models import loading as models
from pipeline.ppo.critic import Critic
from pipeline.ppo.reward_adapter import put_on_base
from pipeline.stages.merge import MergeArguments, merge
from rewards import RewardError, build_rewards


# ---------------------------------------------------------------- refused by name
@every(ALONE)
def test_what_changes_the_base_is_merged_first(case, tmp_path):
    says = f"has {case.says}.*, which changes the base itself"
    with pytest.raises(UserError, match=says):
        models.start_score_adapter(score_model(case.at), ModelArguments(), str(case.folder))
    with pytest.raises(UserError, match=says):
        adapter_files.check_shares_base(case.folder)  # PPO, GRPO, RLOO, ILQL: tests/faults
    with pytest.raises(UserError, match=says):
        toy.make_trainer(tmp_path, load(case.folder, case.at, trainable=True))
    model = get_peft_model(raw(case.at), toy.lora())
    model.get_base_model().name_or_path = str(case.at)
    with pytest.raises(UserError, match=says):
        Network(model, str(case.folder))
    if "lm_head" not in str(case.settings):
        folder = case.reward()
        with pytest.raises(UserError, match=says):
            Critic(model, str(folder))
        alone, beside = (build_rewards([{"name": "learned", "path": str(folder)}])[0][0] for _ in "ab")
        assert put_on_base([beside], model, nullcontext) == []
        assert beside(["c"], ["ab"]) == alone(["c"], ["ab"])
    same(logits(model), logits(raw(case.at)))  # and nothing of it was left on the base


@every(NOWHERE)
def test_what_is_not_read_is_refused_everywhere(case, tmp_path):
    refused_everywhere(case.folder, case.at, case.says, tmp_path)


@pytest.mark.parametrize("name", EDITED)
def test_settings_that_are_not_read(place, tmp_path, name):
    changes, says = EDITED[name]
    for scores in (False, True):
        made = make(place, "r, lora_alpha", CASES["r, lora_alpha"], scores)
        folder = tmp_path / str(scores)
        folder.mkdir()
        for file in made.iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
        config = json.loads((folder / "adapter_config.json").read_text())
        (folder / "adapter_config.json").write_text(json.dumps(config | changes))
    refused_everywhere(tmp_path / "False", base_of(place, "llama"), says, tmp_path, tmp_path / "True")


def refused_everywhere(folder: Path, base: Path, says: str, aside: Path, reward: Path | None = None) -> None:
    model = get_peft_model(raw(base), toy.lora())
    for act in (
        lambda: load(folder, base),
        lambda: models.start_score_adapter(score_model(base), ModelArguments(), str(folder)),
        lambda: Critic(model, str(reward or folder)),
        lambda: Network(model, str(folder)),
        lambda: merge(MergeArguments(run=str(folder), output=str(aside / "whole"))),
        lambda: read_candidates([{"it": str(folder)}], ModelArguments()),
        lambda: build_rewards([{"name": "perplexity", "path": str(folder)}])[0][0](["c"], ["ab"]),
        lambda: build_rewards([{"name": "learned", "path": str(reward or folder)}])[0][0](["c"], ["ab"]),
    ):
        with pytest.raises((UserError, RewardError), match=says):
            act()


@pytest.mark.parametrize(
    "config", [peft.IA3Config(target_modules=["q_proj"], feedforward_modules=[]), peft.LoHaConfig()]
)
def test_ppo_by_its_class_takes_lora_alone(tmp_path, config):
    with pytest.raises(UserError, match=config.peft_type.value):
        toy.make_trainer(tmp_path, peft_config=config)


@pytest.mark.parametrize("task", ["SEQ_CLS", "TOKEN_CLS", "FEATURE_EXTRACTION", "SEQ_2_SEQ_LM", "QUESTION_ANS"])
def test_an_adapter_for_another_task_is_no_language_model(place, tmp_path, task):
    made = make(place, "r, lora_alpha", CASES["r, lora_alpha"], scores=task == "SEQ_CLS")
    for file in made.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(config | {"task_type": task}))
    with pytest.raises(UserError, match=f"is an adapter for {task}, not of a language model"):
        load(tmp_path, base_of(place, "llama"))


def test_weights_of_the_base_that_lie_with_an_adapter(place, tmp_path):
    """`save_embedding_layers` puts embeddings into the file, which PEFT then loads into the base."""
    base = base_of(place, "llama")
    model = get_peft_model(raw(base), toy.lora(target_modules=["q_proj"]))
    toy.randomize(model, "default", 4)
    model.save_pretrained(tmp_path / "same", save_embedding_layers=True)
    started = models.start_score_adapter(score_model(base), ModelArguments(), str(tmp_path / "same"))
    same(hidden(started.eval()), hidden(model))
    adapter_files.check_brought(raw(base), tmp_path / "same")
    with torch.no_grad():
        model.get_input_embeddings().weight.add_(0.5)
    model.save_pretrained(tmp_path / "other", save_embedding_layers=True)
    for act in (
        lambda: models.start_score_adapter(score_model(base), ModelArguments(), str(tmp_path / "other")),
        lambda: adapter_files.check_brought(raw(base), tmp_path / "other"),
        lambda: Network(get_peft_model(raw(base), toy.lora()), str(tmp_path / "other")),
    ):
        with pytest.raises(UserError, match=r"brings model\.embed_tokens\.weight along"):
            act()


def test_a_score_head_of_several_outputs_is_no_start(place, tmp_path):
    base = base_of(place, "llama")
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=2)
    get_peft_model(model, toy.lora(task_type="SEQ_CLS")).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="score head of other outputs than one"):
        models.start_score_adapter(score_model(base), ModelArguments(), str(tmp_path))
