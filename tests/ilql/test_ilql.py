"""Implicit language Q-learning: formulas by pencil, exact values on a toy that can be enumerated, decoding."""

import itertools
import math as numbers

import numpy as np
import pytest
import torch
import toy
from datasets import Dataset
from toy import EOS, A, B, C

from pipeline.errors import UserError
from pipeline.exam import evaluation
from pipeline.ilql import math
from pipeline.ilql.config import ILQLStage
from pipeline.ilql.data import Collator, mean_return
from pipeline.ilql.decoding import Shift, load_shift, shifted
from pipeline.ilql.network import TARGET, VALUES, Network
from pipeline.ilql.trainer import ILQLTrainer
from pipeline.models.adapters import POLICY, use_adapter


# ------------------------------------------------------------ formulas
def test_td_targets_are_the_reward_and_the_discounted_value_of_what_follows():
    rewards = torch.tensor([[1.0, 2.0, 3.0], [4.0, 0.0, 0.0]])
    values = torch.tensor([[0.5, 0.25, 2.0], [7.0, 9.0, 9.0]])  # after the end nothing counts, whatever stands there
    mask = torch.tensor([[1, 1, 1], [1, 0, 0]])
    assert math.td_targets(rewards, values, mask, 0.5).tolist() == [[1.125, 3.0, 3.0], [4.0, 0.0, 0.0]]


def test_td_lambda_mixes_the_value_with_what_was_earned():
    rewards, values = torch.tensor([[1.0, 2.0, 4.0]]), torch.tensor([[9.0, 0.5, 2.0]])
    # 4; 2 + ½ (½ 2 + ½ 4) = 3.5; 1 + ½ (½ 0.5 + ½ 3.5) = 2
    assert math.td_targets(rewards, values, torch.ones(1, 3), 0.5, lam=0.5).tolist() == [[2.0, 3.5, 4.0]]


def test_returns_are_what_is_still_earned():
    rewards, mask = torch.tensor([[1.0, 2.0, 4.0], [3.0, 9.0, 9.0]]), torch.tensor([[1, 1, 1], [1, 0, 0]])
    assert math.returns(rewards, mask, 0.5).tolist() == [[3.0, 4.0, 4.0], [3.0, 0.0, 0.0]]
    # the mean of 3, 4, 4 and 3
    assert mean_return(Dataset.from_list([{"rewards": [1.0, 2.0, 4.0]}, {"rewards": [3.0]}]), 0.5) == 3.5


def test_expectile_loss_weighs_what_is_above_by_tau():
    q, values = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0]], requires_grad=True)
    loss = math.expectile_loss(q.requires_grad_(), values, 0.8)
    assert loss.tolist()[0] == pytest.approx([0.8, 0.2 * 4])
    loss.sum().backward()
    assert values.grad.tolist()[0] == pytest.approx([-2 * 0.8 * 1, 2 * 0.2 * 2]) and q.grad is None


def test_td_loss_moves_q_alone():
    q, targets = torch.tensor([[1.0]], requires_grad=True), torch.tensor([[3.0]], requires_grad=True)
    math.td_loss(q, targets).sum().backward()
    assert q.grad.item() == -4 and targets.grad is None


def test_conservative_loss_is_the_cross_entropy_of_q():
    q = torch.tensor([[[0.0, numbers.log(3)], [0.0, numbers.log(3)]]])
    loss = math.conservative_loss(q, torch.tensor([[0, 1]]))
    assert loss.tolist()[0] == pytest.approx([numbers.log(4), numbers.log(4 / 3)])


def test_polyak_goes_a_part_of_the_way():
    target = torch.tensor([1.0, 0.0])
    math.polyak([target], [torch.tensor([5.0, -2.0])], 0.25)
    assert target.tolist() == [2.0, -0.5]


def test_shifted_logits():
    logits, q = torch.tensor([[[0.0, 1.0]]]), torch.tensor([[[1.0, 3.0]]])
    assert math.shifted(logits, q, torch.tensor([[1.0]]), 2.0).tolist() == [[[0.0, 5.0]]]


@pytest.mark.parametrize(
    ("setting", "wrong"),
    [("tau", 1.0), ("gamma", 1.1), ("polyak", 0.0), ("beta", -1.0), ("cql_coef", -0.1), ("temperature", 0.0)],
)
def test_settings_that_will_not_do_are_named(setting, wrong):
    with pytest.raises(UserError, match=f"^{setting}: {wrong} is not valid"):
        ILQLStage(**{"output_dir": "x", "use_cpu": True, setting: wrong})


# ------------------------------------------------------------ exact values
LETTERS, HORIZON, GAMMA = (A, B, C), 3, 0.9


def reward(sequence: tuple[int, ...]) -> float:
    """What the last token of `sequence` earns; depends on all that came before."""
    generator = np.random.default_rng([7, *sequence])
    return float(generator.choice([-1.0, 0.0, 1.0]) * generator.uniform(0.2, 1.0))


def completions(of: tuple[int, ...] = LETTERS) -> list[tuple[int, ...]]:
    """All of one to three letters, the shorter ones closed by the end token; some stand twice or three times."""
    found = []
    for length in range(1, HORIZON + 1):
        for letters in itertools.product(of, repeat=length):
            whole = letters if length == HORIZON else (*letters, EOS)
            found += [whole] * (1 + (sum(whole) + length) % 3)
    return found


def expectile(q: list[float], weights: list[int], tau: float) -> float:
    """The m with τ Σ w (q - m)+ = (1 - τ) Σ w (m - q)+, by halving."""
    low, high = min(q), max(q)
    for _ in range(60):
        middle = (low + high) / 2
        above = sum(w * max(x - middle, 0) for x, w in zip(q, weights, strict=True))
        below = sum(w * max(middle - x, 0) for x, w in zip(q, weights, strict=True))
        low, high = (middle, high) if tau * above > (1 - tau) * below else (low, middle)
    return low


def exact(data: list[tuple[int, ...]], tau: float, lam: float = 0.0) -> tuple[dict, dict]:
    """Q of (prefix, token) and V of prefix by value iteration from the leaves, under the counts of the data.

    V(s) is the expectile of Q(s, a) over the data's tokens a; Q(s, a) = r + γ ((1 - λ) V(s') + λ mean of Q(s', a')).
    """
    q, v = {}, {}

    def value(prefix: tuple[int, ...]) -> float:
        """What the backup takes of a prefix."""
        counts: dict[int, int] = {}
        for whole in data:
            if len(whole) > len(prefix) and whole[: len(prefix)] == prefix:
                counts[whole[len(prefix)]] = counts.get(whole[len(prefix)], 0) + 1
        if not counts:
            return 0.0
        for token in counts:
            q[prefix, token] = reward((*prefix, token)) + GAMMA * value((*prefix, token))
        each = [q[prefix, token] for token in counts]
        v[prefix] = expectile(each, list(counts.values()), tau)
        return (1 - lam) * v[prefix] + lam * np.average(each, weights=list(counts.values()))

    value(())
    return q, v


def test_the_exact_values_have_the_known_limits():
    data = completions()
    q, v = exact(data, 0.5)
    last = [whole[:2] for whole in data if len(whole) == 3]
    for prefix in set(last):
        counts = [(whole[2], 1) for whole in data if len(whole) == 3 and whole[:2] == prefix]
        assert v[prefix] == pytest.approx(np.mean([q[prefix, token] for token, _ in counts]))
    near, best = exact(data, 0.9999)[1], max(reward((A, A, token)) for token in LETTERS)
    assert near[A, A] == pytest.approx(best, abs=0.01)


LONG = [pytest.param(LETTERS, tau, lam, marks=pytest.mark.slow) for tau, lam in ((0.5, 0.0), (0.9, 0.0), (0.9, 0.5))]


@pytest.mark.parametrize(("of", "tau", "lam"), [((A, B), 0.9, 0.0), *LONG])
def test_learned_values_are_those_of_value_iteration(tmp_path, of, tau, lam):
    """Every Q and V within 0.05, on a tree of 39 different completions and 13 states; with two letters 14 and 7."""
    data = completions(of)
    rows = [
        {
            "prompt_ids": [toy.D],
            "completion_ids": list(whole),
            "rewards": [reward(whole[: t + 1]) for t in range(len(whole))],
        }
        for whole in data
    ]
    settings = {"cql_coef": 0.0, "tau": tau, "lam": lam, "gamma": GAMMA, "polyak": 0.2}
    settings |= {"max_steps": 400, "learning_rate": 1e-2}
    trainer = make_trainer(tmp_path, rows, per_device_train_batch_size=len(rows), **settings)
    trainer.train()
    q, v = exact(data, tau, lam)
    batch = Collator(toy.PAD)(rows)
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
    mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
    with torch.no_grad():
        found = trainer.network(ids, mask)
    for i, whole in enumerate(data):
        for t, token in enumerate(whole):
            prefix = whole[:t]
            assert found.values[i, t].item() == pytest.approx(v[prefix], abs=0.05), prefix
            for learned in (found.logits, found.q2):
                assert learned[i, t, token].item() == pytest.approx(q[prefix, token], abs=0.05), (prefix, token)


# ------------------------------------------------------------ the trainer
def make_network(seed: int = 1) -> Network:
    torch.manual_seed(seed)
    return Network(toy.with_sft_adapter())


def make_trainer(folder, rows, network=None, **settings) -> ILQLTrainer:
    defaults = {
        "use_cpu": True,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "lr_scheduler_type": "linear",
        "logging_steps": 100,
    }
    args = ILQLStage(**{"output_dir": str(folder)} | defaults | settings)
    return ILQLTrainer(network or make_network(), args, Dataset.from_list(rows), toy.tokenizer())


ROWS = [
    {"prompt_ids": [toy.C, toy.D], "completion_ids": [A, B, EOS], "rewards": [0.0, 0.5, 1.0]},
    {"prompt_ids": [toy.E], "completion_ids": [B, EOS], "rewards": [0.0, -1.0]},
    {"prompt_ids": [toy.C], "completion_ids": [A], "rewards": [0.25]},
    {"prompt_ids": [toy.D, toy.E, toy.D], "completion_ids": [C, C, A, EOS], "rewards": [0.0, 0.0, 0.0, 2.0]},
]


def test_the_batch_is_padded_towards_the_border_of_prompt_and_completion():
    batch = Collator(0)(ROWS[:2])
    assert batch["prompt_ids"].tolist() == [[toy.C, toy.D], [0, toy.E]]
    assert batch["prompt_mask"].tolist() == [[1, 1], [0, 1]]
    assert batch["completion_ids"].tolist() == [[A, B, EOS], [B, EOS, 0]]
    assert batch["completion_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
    assert batch["rewards"].tolist() == [[0.0, 0.5, 1.0], [0.0, -1.0, 0.0]]


def test_a_batch_of_four_is_four_micro_batches_of_one(tmp_path):
    """Every token counts the same, however the rows are cut up."""
    found = []
    for size in (4, 1):
        trainer = make_trainer(
            tmp_path, ROWS, per_device_train_batch_size=size, gradient_accumulation_steps=4 // size, max_steps=3
        )
        trainer.train()
        found.append({n: p.detach().clone() for n, p in trainer.network.named_parameters() if p.requires_grad})
    assert all(torch.allclose(found[0][name], found[1][name], atol=1e-5) for name in found[0])


def test_only_the_values_learn_and_the_target_follows(tmp_path):
    network = make_network()
    before = {name: parameter.detach().clone() for name, parameter in network.named_parameters()}
    trainer = make_trainer(
        tmp_path, ROWS, network, per_device_train_batch_size=4, max_steps=1, polyak=0.25, learning_rate=1e-2
    )
    trainer.train()
    moved = {name for name, parameter in network.named_parameters() if not torch.equal(parameter, before[name])}
    assert moved and all(VALUES in n.split(".") or TARGET in n.split(".") or "heads." in n for n in moved)
    for target, learned in zip(network.averaged(), network.learned(), strict=True):
        name = next(n for n, p in network.named_parameters() if p is target)
        torch.testing.assert_close(target, 0.75 * before[name] + 0.25 * learned)


# ------------------------------------------------------------ decoding
def hand_made(network: Network, wanted: torch.Tensor, beta: float) -> Shift:
    """A shift whose Q of the nine tokens is `wanted` in every state, and V is 1."""
    heads, embeddings = network.target_heads, network.lm.get_base_model().get_output_embeddings().weight
    factor = torch.linalg.lstsq(embeddings.double(), (wanted - 0.5).double()[:, None]).solution[:, 0]
    with torch.no_grad():
        for head in (heads.q1, heads.q2):
            head.outer.bias.copy_(torch.cat([factor.float(), torch.tensor([0.5])]))
        heads.q2.outer.bias[-1] += 3  # the smaller one counts
        heads.v.outer.bias.fill_(1.0)
    return Shift(TARGET, heads, beta)


def test_a_hand_made_q_gives_the_expected_distribution():
    network = make_network()
    wanted = torch.tensor([0.0, 0.0, 1.0, 2.0, 0.0, -1.0, 0.0, 0.0, 0.5])
    shift = hand_made(network, wanted, beta=1.5)
    ids = torch.tensor([[toy.C, toy.D]])
    plain = network.lm(input_ids=ids).logits
    with shifted(network.lm, shift):
        found = network.lm(input_ids=ids).logits
    expected = torch.softmax(plain[0, -1] + 1.5 * wanted, dim=-1)  # V takes the same from every token
    torch.testing.assert_close(torch.softmax(found[0, -1], dim=-1), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(found, plain + 1.5 * (wanted - 1), atol=1e-4, rtol=0)
    assert torch.equal(network.lm(input_ids=ids).logits, plain)  # and outside the block nothing is left of it


def any_network() -> tuple[Network, Shift]:
    """Values that differ from state to state."""
    network = make_network()
    toy.randomize(network.lm, TARGET, seed=5, scale=0.5)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for head in (network.target_heads.q1, network.target_heads.q2, network.target_heads.v):
            head.outer.weight.copy_(torch.randn(head.outer.weight.shape, generator=generator))
    return network, Shift(TARGET, network.target_heads, 2.0)


def by_hand(network: Network, shift: Shift, ids: list[int]) -> torch.Tensor:
    """Shifted logits after `ids`, from two whole passes over one unpadded row."""
    lm, row = network.lm, torch.tensor([ids])
    with use_adapter(lm, TARGET):
        states = lm.get_base_model().model(input_ids=row).last_hidden_state[0, -1]
    embeddings, heads = lm.get_base_model().lm_head.weight, shift.heads
    both = []
    for head in (heads.q1, heads.q2):
        out = head.outer(torch.relu(head.inner(states)))
        both.append(embeddings @ out[:-1] + out[-1])
    value = heads.v.outer(torch.relu(heads.v.inner(states)))
    return lm(input_ids=row).logits[0, -1] + shift.beta * (torch.minimum(*both) - value)


@torch.no_grad()
def test_generation_with_caches_and_padding_decodes_by_the_shift():
    network, shift = any_network()
    prompts = ["c", "dcec"]
    with shifted(network.lm, shift):
        found = evaluation.complete(network.lm, toy.tokenizer(), prompts, 6, [EOS], temperature=0)
        each = evaluation.logprobs(network.lm, toy.tokenizer(), prompts, found)
    plain = evaluation.complete(network.lm, toy.tokenizer(), prompts, 6, [EOS], temperature=0)
    assert found != plain and max(map(len, found)) > 2
    for prompt, ids, logprobs in zip(prompts, found, each, strict=True):
        context = toy.tokenizer()(prompt)["input_ids"]
        for t, token in enumerate(ids):
            logits = by_hand(network, shift, context + ids[:t])
            assert logits.argmax() == token
            assert logprobs[t].item() == pytest.approx(torch.log_softmax(logits, -1)[token].item(), abs=1e-4)


def test_what_was_saved_decodes_as_what_was_trained(tmp_path):
    network, shift = any_network()
    network.save(tmp_path / "values", beta=2.0)
    again = toy.with_sft_adapter()
    ids = torch.tensor([[toy.C, A, B]])
    with shifted(network.lm, shift), torch.no_grad():
        wanted = network.lm(input_ids=ids).logits
    loaded = load_shift(again, tmp_path / "values", "anything")
    with use_adapter(again, POLICY), shifted(again, loaded), torch.no_grad():
        assert torch.equal(again(input_ids=ids).logits, wanted)


@pytest.mark.parametrize("name", ["heads.safetensors", "ilql.json", "adapter_model.safetensors"])
def test_half_a_value_network_is_refused(tmp_path, name):
    make_network().save(tmp_path, beta=1.0)
    (tmp_path / name).unlink()
    with pytest.raises(UserError, match=f"no whole value network \\({name} is missing\\)"):
        load_shift(toy.with_sft_adapter(), tmp_path, "x")


def test_a_value_network_of_another_base_is_refused(tmp_path):
    network = make_network()
    network.save(tmp_path, beta=1.0)
    other = toy.with_sft_adapter(toy.build_model(hidden_size=32))
    with pytest.raises(UserError, match="does not fit its base"):
        load_shift(other, tmp_path, "x")
