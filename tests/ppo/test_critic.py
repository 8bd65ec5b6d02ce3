"""The critic: values, start from a reward model, and files that PEFT reads without this project."""

import pytest
import torch
import toy
from peft import AutoPeftModelForTokenClassification, get_peft_model
from safetensors.torch import load_file, save_file
from saved import reward_folder
from toy import A, B, C, D

from pipeline.errors import UserError
from pipeline.models.adapters import CRITIC, POLICY, REFERENCE
from pipeline.ppo.critic import Critic

IDS, MASK = torch.tensor([[C, D, A, B, B, A]]), torch.ones(1, 6, dtype=torch.long)


@pytest.fixture
def base(tmp_path):
    toy.build_model().save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def policy(base):
    return get_peft_model(toy.LlamaForCausalLM.from_pretrained(base), toy.lora())


def test_a_fresh_critic_says_zero(base):
    critic = Critic(policy(base))
    assert critic.values(IDS, MASK, 4).tolist() == [[0.0] * 4]


def test_saved_critic_is_read_by_peft_alone(base, tmp_path):
    critic = Critic(policy(base))
    toy.randomize(critic.model, CRITIC, 3)
    torch.nn.init.normal_(critic.head.weight)
    torch.nn.init.constant_(critic.head.bias, 0.7)
    values = critic.values(IDS, MASK, 4)
    critic.save(tmp_path / "critic")
    loaded = AutoPeftModelForTokenClassification.from_pretrained(tmp_path / "critic", num_labels=1).eval()
    # the label of position i is V after token i: the last four before the end stand before tokens 2 to 5
    with torch.no_grad():
        expected = loaded(input_ids=IDS, attention_mask=MASK).logits[0, 1:5, 0]
    assert expected.abs().min() > 1e-3
    torch.testing.assert_close(values[0], expected)
    # with the bias that was saved, which PEFT's own loading keeps
    again = Critic(policy(base), tmp_path / "critic")
    torch.testing.assert_close(again.values(IDS, MASK, 4), values, atol=0, rtol=0)


def test_a_critic_starts_as_the_reward_model(base, tmp_path):
    reward = reward_folder(base, tmp_path / "reward")
    critic = Critic(policy(base), str(tmp_path / "reward"))
    with torch.no_grad():
        for length in (3, 5, 6):  # the reward of every prefix is the value after it
            score = reward(input_ids=IDS[:, :length], attention_mask=MASK[:, :length]).logits[0, 0]
            ids = torch.cat([IDS[:, :length], torch.tensor([[A]])], 1)  # a next token, which V must not see
            value = critic.values(ids, torch.ones_like(ids), 1)[0, 0]
            torch.testing.assert_close(value, score, atol=1e-6, rtol=1e-5)
    assert critic.model.peft_config[CRITIC].r == 3 and critic.model.peft_config[POLICY].r == 2


def test_training_from_a_reward_model(base, tmp_path):
    reward_folder(base, tmp_path / "reward")
    model = toy.LlamaForCausalLM.from_pretrained(base)
    trainer = toy.make_trainer(tmp_path / "run", model, critic_path=str(tmp_path / "reward"))
    assert toy.sample(trainer)["old_values"].abs().max() > 0.1
    before = toy.learned(trainer)
    trainer.train()
    assert all(not torch.equal(p, before[n]) for n, p in toy.learned(trainer).items())


def test_a_fresh_critic_next_to_a_policy_that_took_weights_from_the_base(base):
    """PiSSA moves the base's main components into the adapter; a second one must not move them again."""
    model = get_peft_model(toy.LlamaForCausalLM.from_pretrained(base), toy.lora(init_lora_weights="pissa"))
    before = model(input_ids=IDS).logits
    critic = Critic(model)
    torch.testing.assert_close(model(input_ids=IDS).logits, before)
    assert critic.values(IDS, MASK, 4).tolist() == [[0.0] * 4]


def test_folders_that_are_no_start(base, tmp_path):
    with pytest.raises(UserError, match="no LoRA adapter"):
        Critic(policy(base), str(base))
    with pytest.raises(UserError, match="no LoRA adapter"):
        Critic(policy(base), str(tmp_path / "nowhere"))
    toy.with_sft_adapter().save_pretrained(tmp_path / "sft")
    with pytest.raises(UserError, match="no score head"):
        Critic(policy(base), str(tmp_path / "sft"))


def test_a_head_of_another_shape(base, tmp_path):
    reward_folder(base, tmp_path / "two", num_labels=2)
    with pytest.raises(UserError, match="2 label"):
        Critic(policy(base), str(tmp_path / "two"))
    toy.build_model(hidden_size=32).save_pretrained(tmp_path / "wide")
    reward_folder(tmp_path / "wide", tmp_path / "wide_reward")
    with pytest.raises(UserError, match="hidden size 32 .* base has hidden size 16"):
        Critic(policy(base), str(tmp_path / "wide_reward"))


def test_weights_that_do_not_fit(base, tmp_path):
    reward_folder(base, tmp_path / "reward")
    file = tmp_path / "reward" / "adapter_model.safetensors"
    weights = load_file(file)
    odd = sorted(n for n in weights if "q_proj" in n)[0]
    del weights[odd]
    save_file(weights, file)
    with pytest.raises(UserError, match="does not fit .*layers.0.self_attn.q_proj"):
        Critic(policy(base), str(tmp_path / "reward"))


def test_values_are_float32_on_a_sixteen_bit_base(base):
    model = get_peft_model(toy.LlamaForCausalLM.from_pretrained(base, dtype=torch.bfloat16), toy.lora())
    critic = Critic(model)
    torch.nn.init.normal_(critic.head.weight)
    values = critic.values(IDS, MASK, 4)
    assert values.dtype == critic.head.weight.dtype == torch.float32
    # 0.1 % of a step, which bfloat16 could not tell apart
    critic.head.bias.data.fill_(1000.0)
    moved = critic.values(IDS, MASK, 4)
    critic.head.bias.data.fill_(1000.01)
    torch.testing.assert_close(critic.values(IDS, MASK, 4) - moved, torch.full((1, 4), 0.01), atol=2e-4, rtol=0)


def test_the_policy_does_not_change_when_the_critic_looks(base):
    model = policy(base)
    toy.randomize(model, POLICY, 1)
    critic = Critic(model)
    before = model(input_ids=IDS).logits
    toy.randomize(model, CRITIC, 3)
    critic.values(IDS, MASK, 4)
    torch.testing.assert_close(model(input_ids=IDS).logits, before, atol=0, rtol=0)
    assert REFERENCE not in model.peft_config
