"""Four roles on one base: the reward model's adapter stands on the policy's base, and says what it said alone."""

import gc
from contextlib import nullcontext

import pytest
import torch
import toy
from saved import reward_folder

from pipeline.models.adapters import CRITIC, POLICY, REFERENCE
from pipeline.ppo.reward_adapter import REWARD, put_on_base
from rewards import Instant, Mixture, RewardError, build_rewards

TEXTS = ["a", "bad", "", "deeeec", "ab"]


@pytest.fixture
def base(tmp_path):
    toy.build_model().save_pretrained(tmp_path / "base")
    return tmp_path / "base"


@pytest.fixture
def reward(base, tmp_path):
    folder = tmp_path / "reward"
    reward_folder(base, folder)
    toy.tokenizer().save_pretrained(folder)
    return folder


def policy(base):
    model = toy.LlamaForCausalLM.from_pretrained(base)
    return toy.with_sft_adapter(model)


def learned(folder, **options):
    return build_rewards([{"name": "learned", "path": str(folder), **options}])[0][0]


def storages() -> dict[int, int]:
    """Bytes of every parameter and buffer that lives, by the address of its memory: shared memory counts once."""
    gc.collect()
    found = {}
    for thing in gc.get_objects():
        if isinstance(thing, torch.nn.Module):
            for tensor in [*thing.parameters(recurse=False), *thing.buffers(recurse=False)]:
                found[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
    return found


def test_the_scores_are_those_of_the_reward_model_alone(base, reward):
    alone, shared = learned(reward), learned(reward)
    model = policy(base)
    assert len(put_on_base([shared], model, nullcontext)) == 1
    prompts = toy.PROMPTS[: len(TEXTS)]
    expected = alone(prompts, TEXTS)
    assert shared(prompts, TEXTS) == expected and len(set(expected)) == len(TEXTS)
    # and the policy says what it said
    assert list(model.peft_config) == [POLICY, REWARD]
    assert not any(p.requires_grad for n, p in model.named_parameters() if REWARD in n.split("."))


def test_four_roles_hold_the_base_once(base, reward, tmp_path):
    before = storages()
    trainer = toy.make_trainer(tmp_path / "run", policy(base), learned(reward), critic_path=str(reward))
    trainer.train()
    model = trainer.model
    assert set(model.peft_config) == {POLICY, REFERENCE, CRITIC, REWARD}
    parts = dict(model.named_parameters())
    adapters = sum(p.nbytes for n, p in parts.items() if "lora_" in n)
    weights = sum(p.nbytes for n, p in parts.items() if "lora_" not in n and "value_head" not in n)
    heads = 4 * (16 + 1) + 4 * 16  # the critic's has a bias
    rotary = sum(b.nbytes for b in model.get_base_model().buffers())
    new = {address: size for address, size in storages().items() if address not in before}
    assert sum(new.values()) <= weights + adapters + heads + rotary


def test_the_reward_adapter_does_not_learn(base, reward, tmp_path):
    rewarded = learned(reward)
    trainer = toy.make_trainer(tmp_path / "run", policy(base), rewarded, critic_path=str(reward))
    said = rewarded(toy.PROMPTS, TEXTS + TEXTS[:3])
    trainer.train()
    assert rewarded(toy.PROMPTS, TEXTS + TEXTS[:3]) == said
    assert trainer.model.active_adapters == [POLICY]


def test_rewards_inside_others_are_found(base, reward):
    inner = [learned(reward) for _ in range(3)]
    rewards = [Instant(inner[0]), Mixture([inner[1]]), inner[2]]
    assert len(put_on_base(rewards, policy(base), nullcontext)) == 1
    assert all(part.is_loaded for part in inner) and inner[0].model is inner[2].model


@pytest.mark.parametrize(
    "options, words", [({"pessimism": 1.0}, "pessimism is for an ensemble"), ({"label": "good"}, "has one output")]
)
def test_options_that_fit_no_reward_model_are_told_at_once(base, reward, options, words):
    with pytest.raises(RewardError, match=words):
        put_on_base([learned(reward, **options)], policy(base), nullcontext)


@pytest.mark.parametrize("why", ["other base", "dtype", "no adapter", "other layers"])
def test_what_does_not_fit_loads_beside_and_says_so(base, reward, tmp_path, capsys, why):
    options = {"dtype": "float32"} if why == "dtype" else {}
    folder, model = reward, policy(base)
    if why == "other base":
        toy.build_model(seed=5).save_pretrained(tmp_path / "other")
        folder = tmp_path / "reward2"
        reward_folder(tmp_path / "other", folder)
        toy.tokenizer().save_pretrained(folder)
    if why == "no adapter":
        folder = base
    if why == "other layers":
        model = toy.with_sft_adapter(toy.build_model(intermediate_size=32))
        model.get_base_model().name_or_path = str(base)
    rewarded = learned(folder, **options)
    if why == "no adapter":  # and no head: said now, not in the middle of a run
        with pytest.raises(RewardError, match="no score head"):
            put_on_base([rewarded], model, nullcontext)
    else:
        assert put_on_base([rewarded], model, nullcontext) == []
        assert rewarded.is_loaded
    said = capsys.readouterr().out
    assert "loads its own model beside the policy's base (" in said and "MB)" in said
    assert list(model.peft_config) == [POLICY]
    if why == "other base":
        rewarded(["c"], ["a"])  # it works all the same
