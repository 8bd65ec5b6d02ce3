"""`critic_layers`: the upper layers learn, and go on from what was kept of the lower ones."""

import pytest
import tiny_architectures as tiny
import torch
import toy
from peft import get_peft_model
from safetensors.torch import load_file
from test_critic import IDS, MASK, policy, reward_folder
from toy import A, B, C, D

from pipeline.errors import UserError
from pipeline.models.adapters import CRITIC
from pipeline.models.generation import count_positions_from_the_mask
from pipeline.models.structure import name_trunk
from pipeline.ppo.critic import Critic


@pytest.fixture
def base(tmp_path):
    toy.build_model().save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def test_the_upper_layers_go_on_from_what_entered_them():
    model = get_peft_model(toy.build_model(), toy.lora())
    count_positions_from_the_mask(model)
    critic = Critic(model, layers=1)
    toy.randomize(model, CRITIC, 3)
    torch.nn.init.normal_(critic.head.weight)
    ids, mask = torch.tensor([[C, D, A, B, B, A], [0, 0, A, B, D, C]]), torch.tensor([[1] * 6, [0, 0, 1, 1, 1, 1]])
    values, states = critic.values_and_states(ids, mask, 3)
    assert states.shape == (2, 6, 16) and not states.requires_grad
    torch.testing.assert_close(values, critic.values(ids, mask, 3))
    calls = [0, 0]
    for i, layer in enumerate(critic._trunk.layers):
        layer.mlp.register_forward_pre_hook(lambda module, args, i=i: calls.__setitem__(i, calls[i] + 1))
    torch.testing.assert_close(critic.values(ids, mask, 3, states), values, atol=1e-6, rtol=1e-5)
    assert calls == [0, 1]


def test_only_the_upper_layers_learn_and_all_are_saved(base, tmp_path):
    reward_folder(base, tmp_path / "reward", target_modules=["q_proj", "down_proj"])
    settings = {"critic_path": str(tmp_path / "reward"), "critic_layers": 1, "total_episodes": 16}
    trainer = toy.make_trainer(tmp_path / "run", policy(base), **settings)
    before = {n: p.clone() for n, p in trainer.model.named_parameters() if CRITIC in n.split(".")}
    trainer.train()
    moved = {n: not torch.equal(p, before[n]) for n, p in trainer.model.named_parameters() if n in before}
    assert {n for n, m in moved.items() if m} == {n for n in moved if ".layers.1." in n}
    trainer.save_model(str(tmp_path / "run"))
    saved = load_file(tmp_path / "run" / "critic" / "adapter_model.safetensors")
    assert sum(".layers.0." in name for name in saved) == 4  # what the reward stage left there


def test_training_is_the_same_whether_states_are_kept_or_not(base, tmp_path):
    """The lower layers run again in every pass where the upper ones do not run alone; nothing else may differ."""
    ends, settings = [], {"critic_layers": 1, "total_episodes": 16, "optim": "sgd", "learning_rate": 0.1}
    for keeps in (True, False):
        torch.manual_seed(0)
        trainer = toy.make_trainer(tmp_path / str(keeps), policy(base), **settings)
        trainer.critic.resumable = keeps
        start = {name: x.clone() for name, x in toy.learned(trainer).items()}
        trainer.train()
        assert ("critic_states" in trainer._buffered_inputs[0]) is keeps
        ends.append(toy.learned(trainer))
    for name, end in ends[0].items():
        assert (end - ends[1][name]).norm() <= 1e-3 * (end - start[name]).norm(), name


def test_more_layers_than_there_are(base):
    with pytest.raises(UserError, match="critic_layers is 3, but the model has 2 layers"):
        Critic(policy(base), layers=3)


# ---------------------------------------------------------------- models whose layers differ
# What the upper layer is that the lower is not: full attention above a window, a window above full attention, no
# positions above rotary ones, attention above a recurrence; and positions that are added before the first layer.
FAMILIES = "gemma2 gemma3_text cohere2 gpt_oss llama4_text qwen2 smollm3 qwen3_next opt gpt2".split()


@pytest.mark.parametrize("family", FAMILIES)
def test_values_are_those_of_the_whole_model_on_texts_that_grow_past_the_window(family):
    """Windows have 4 tokens. What is kept of a text must give the values of the text alone, unpadded, run whole."""
    base, targets = tiny.build(family), tiny.targets_of(family)
    name_trunk(base)
    adapter = toy.lora() if targets == ["all-linear"] else toy.lora(target_modules=targets)  # Llama 4: no routers
    model = get_peft_model(base, adapter).eval()
    count_positions_from_the_mask(model)
    critic = Critic(model, layers=1)
    toy.randomize(model, CRITIC, 3)
    torch.nn.init.normal_(critic.head.weight)
    for length in (4, 20):
        rows = torch.randint(3, 259, (2, length), generator=torch.Generator().manual_seed(length))
        mask, half = torch.ones_like(rows), length // 2
        mask[1, :half] = 0
        with torch.no_grad():
            _, states = critic.values_and_states(rows, mask, 1)
            assert states is not None
            kept = critic.values(rows, mask, 1, states)
            alone = [critic.values(row, torch.ones_like(row), 1) for row in (rows[:1], rows[1:, half:])]
        torch.testing.assert_close(kept, torch.cat(alone), atol=1e-5, rtol=1e-4)


def test_upper_layers_that_need_more_than_states_are_run_with_the_lower_ones(capsys):
    """In Gemma 3n the upper layers read keys and values of lower ones."""
    model = get_peft_model(tiny.build("gemma3n_text"), toy.lora()).eval()
    critic = Critic(model, layers=1)
    torch.nn.init.normal_(critic.head.weight)
    ids = torch.arange(3, 15)[None]
    values, states = critic.values_and_states(ids, torch.ones_like(ids), 4)
    assert states is None and not critic.resumable
    assert capsys.readouterr().out.count("the upper layers of gemma3n_text do not run alone") == 1
    torch.testing.assert_close(values, critic.values(ids, torch.ones_like(ids), 4))


def test_what_only_long_rows_show_is_found_out_with_the_first_long_row():
    """An upper layer that beyond six tokens reads what a lower one attended to, as layers do that share an index of
    the best keys. A check of the first, short batch alone would let it pass."""
    model = get_peft_model(toy.build_model(), toy.lora())
    lower, upper = model.get_base_model().model.layers
    attended = []
    lower.self_attn.register_forward_hook(lambda module, args, output: attended.append(output[0]))

    def read_lower(module, args):
        found = attended.pop() if attended else 0.0
        return (args[0] + found, *args[1:]) if args[0].shape[1] > 6 else None

    upper.mlp.register_forward_pre_hook(read_lower)
    critic = Critic(model, layers=1)
    torch.nn.init.normal_(critic.head.weight)
    assert critic.values_and_states(IDS, MASK, 4)[1] is not None
    longer = torch.cat([IDS, IDS], dim=1)
    values, states = critic.values_and_states(longer, torch.ones_like(longer), 4)
    assert states is None and critic.values_and_states(IDS, MASK, 4)[1] is None
    torch.testing.assert_close(critic.values(longer, torch.ones_like(longer), 4, torch.zeros(1, 12, 16)), values)


def test_blocks_that_all_layers_share_stay_as_they_are():
    """In Zamba one attention block is part of several layers: what the critic learns above would change it below."""
    model = get_peft_model(tiny.build("zamba"), toy.lora())
    critic = Critic(model, layers=1)
    below = {id(p) for p in critic._trunk.layers[:-1].parameters()}
    learned = {id(p) for p in critic.learned()}
    assert not learned & below and len(learned) > 2


def test_no_layers_to_choose_from():
    """HRM runs its layers over and over, so that none of them is the upper one."""
    model = get_peft_model(tiny.build("hrm_text"), toy.lora())
    with pytest.raises(UserError, match="critic_layers is 1, but the model has 0 layers"):
        Critic(model, layers=1)
