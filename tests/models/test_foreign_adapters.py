"""Adapters made elsewhere, one for every setting of PEFT's LoraConfig: taken for what PEFT says they are, or refused
by the name of the setting, wherever an adapter can be given.

Expected values are those of `PeftModel.from_pretrained` on a fresh base.
"""

# ruff: noqa: F811 (fixtures come by import)
import dataclasses
from contextlib import nullcontext

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
from peft import LoraConfig

from pipeline.config import ModelArguments
from pipeline.errors import UserError
from pipeline.eval.candidates import active_adapter, adapter_name, by_base, load_group, read_candidates
from pipeline.ilql.network import TARGET, VALUES, Network
from pipeline.models import adapter_files, precision
from pipeline.models import loading as models
from pipeline.models.adapters import CRITIC, POLICY, REFERENCE, use_adapter
from pipeline.ppo.critic import Critic
from pipeline.ppo.reward_adapter import put_on_base
from pipeline.stages.merge import MergeArguments, merge
from rewards import build_rewards
from rewards.foreign import _KNOWN


def test_every_setting_of_the_library_is_in_the_table():
    asked = {key for case in CASES.values() for key in case.settings} | {
        key for edit, _ in EDITED.values() for key in edit
    }
    silent = {"runtime_config", "megatron_core", "qalora_group_size"}  # nothing without those that are refused
    starts = {"loftq_config", "eva_config", "corda_config", "lora_ga_config"}  # of a start that is over
    of_the_file = {"auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode"}
    there = {field.name for field in dataclasses.fields(LoraConfig)}
    assert there - asked == silent | starts | of_the_file
    assert _KNOWN <= there


# ---------------------------------------------------------------- alone on its base: SFT, eval, merge, rewards
@every(PLAIN, ALONE)
def test_sft_goes_on_from_it(case, tmp_path):
    model, wanted = load(case.folder, case.at, trainable=True), of_peft(case.folder, case.at, is_trainable=True)
    same(logits(model), logits(wanted))
    if case.output:
        with pytest.raises(UserError, match="adapts lm_head too, which TRL does not train"):
            adapter_files.check_output_layer(model, case.folder)
        return
    adapter_files.check_output_layer(model, case.folder)
    assert trained(model) == trained(wanted)
    precision.train_in_float32(model)
    model(input_ids=IDS, labels=IDS).loss.backward()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.sub_(0.05 * parameter.grad)
    assert (logits(model) - logits(wanted)).abs().max() > 1e-4
    model.save_pretrained(tmp_path)
    same(logits(of_peft(tmp_path, case.at)), logits(model))


@every(PLAIN, ALONE)
def test_it_becomes_one_model_with_its_base(case, tmp_path):
    merge(MergeArguments(run=str(case.folder), output=str(tmp_path / "whole")))
    same(logits(raw(tmp_path / "whole")), logits(of_peft(case.folder, case.at)))


@every(PLAIN, ALONE)
def test_eval_hears_it_and_the_base_beside_it(place, case):
    other = make(place, "r, lora_alpha", CASES["r, lora_alpha"]) if case.base == "llama" else case.folder
    specs = [{"it": str(case.folder)}, {"base": str(case.at)}, {"other": str(other)}]
    wanted = {"it": of_peft(case.folder, case.at), "base": raw(case.at), "other": of_peft(other, case.at)}
    args, heard = ModelArguments(), set()
    for group in by_base(read_candidates(specs, args), "base"):
        model = load_group(group, args)
        for i, candidate in enumerate(group):
            with active_adapter(model, candidate.stage.adapter and adapter_name(i)):
                same(logits(model), logits(wanted[candidate.name]))
                heard.add(candidate.name)
    assert heard == set(wanted)


@every(PLAIN, ALONE)
def test_as_a_reward_of_its_own(case):
    if case.base == "gpt2" and case.settings.get("target_modules") is None:
        return
    texts = ["ab", "", "deec"]
    model = of_peft(case.folder, case.at)
    [(fluent, _)] = build_rewards([{"name": "perplexity", "path": str(case.folder)}])
    found = fluent(["c", "d"], ["ab", "eed"])
    for prompt, text, score in zip(["c", "d"], ["ab", "eed"], found, strict=True):
        before, ids = toy.tokenizer()(prompt)["input_ids"], toy.tokenizer()(prompt + text)["input_ids"]
        each = toy.hand_logprobs(model, before, ids[len(before) :])
        assert score == pytest.approx(each.mean().item(), abs=1e-5)
    folder = case.reward()
    scorer = of_peft(folder, case.at, scores=True)
    [(learned, _)] = build_rewards([{"name": "learned", "path": str(folder)}])
    for text, score in zip(texts, learned(["c"] * 3, texts), strict=True):
        ids = torch.tensor([toy.tokenizer()(f"c{text}<eos>")["input_ids"]])
        assert score == pytest.approx(scorer(input_ids=ids).logits.item(), abs=1e-5)


# ---------------------------------------------------------------- on one base with others: reward stage, PPO, ILQL
@every(PLAIN)
def test_the_reward_stage_starts_from_it(case, tmp_path):
    model = models.start_score_adapter(score_model(case.at), ModelArguments(), str(case.folder)).eval()
    same(hidden(model), hidden(of_peft(case.folder, case.at)))
    model.save_pretrained(tmp_path / "reward")
    same(logits(of_peft(tmp_path / "reward", case.at, scores=True)), logits(model))
    # and on from there: a critic, and one more reward model, whose head is kept
    critic = Critic(beside(case), str(tmp_path / "reward"))
    critic.model.eval()
    same(critic.values(IDS, MASK, 1)[0, 0], head_on(model))
    again = models.start_score_adapter(score_model(case.at), ModelArguments(), str(tmp_path / "reward")).eval()
    same(logits(again), logits(model))


@torch.no_grad()
def head_on(model) -> torch.Tensor:
    """The score of the text without its last token."""
    return model(input_ids=IDS[:, :-1], attention_mask=MASK[:, :-1]).logits[0, 0]


@every(PLAIN)
def test_ppo_starts_from_it(case, tmp_path):
    wanted, base = of_peft(case.folder, case.at), raw(case.at)
    policy = load(case.folder, case.at, trainable=True)
    if case.output:
        return
    trainer = toy.make_trainer(tmp_path, policy, total_episodes=8)
    model = trainer.model.eval()
    with use_adapter(model, POLICY):
        same(logits(model), logits(wanted))
    with use_adapter(model, REFERENCE):
        same(logits(model), logits(wanted))
    with use_adapter(model, CRITIC):
        same(hidden(model), hidden(base))
    learns = {name for name in trained(trainer.model) if f".{POLICY}" in name}
    assert learns >= trained(of_peft(case.folder, case.at, is_trainable=True))
    trainer.train()
    assert toy.logged(trainer, "kl")[0] == pytest.approx(0, abs=1e-5)
    model.eval()
    with use_adapter(model, REFERENCE):
        same(logits(model), logits(wanted))
    with use_adapter(model, POLICY):
        moved = logits(model)
    assert (moved - logits(wanted)).abs().max() > 1e-4
    trainer.save_model(str(tmp_path / "policy"))
    same(logits(of_peft(tmp_path / "policy", case.at)), moved)
    with use_adapter(model, CRITIC):
        states = hidden(model)
    same(hidden(of_peft(tmp_path / "policy" / "critic", case.at)), states)


@every(PLAIN)
def test_a_critic_and_a_reward_on_the_policys_base_start_from_it(case):
    folder = case.reward()
    scorer = of_peft(folder, case.at, scores=True)
    model = beside(case)
    critic = Critic(model, str(folder))
    model.eval()
    same(critic.values(IDS, MASK, 1)[0, 0], head_on(scorer))
    alone, shared = (build_rewards([{"name": "learned", "path": str(folder)}])[0][0] for _ in "ab")
    assert len(put_on_base([shared], model, nullcontext)) == 1
    model.eval()
    assert shared(["c", "d"], ["ab", "e"]) == pytest.approx(alone(["c", "d"], ["ab", "e"]), abs=1e-5)


@every(PLAIN)
def test_ilql_starts_from_it(case):
    wanted = hidden(of_peft(case.folder, case.at))
    with_policy = Network(load(case.folder, case.at))
    with_values = Network(beside(case), str(case.folder))
    for network in (with_policy, with_values):
        for adapter in (VALUES, TARGET):
            with use_adapter(network.lm, adapter):
                same(hidden(network.lm.eval()), wanted)
