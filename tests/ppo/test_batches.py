"""Rollouts as tensors: weighing of scores, and the packing of a mini-batch by length."""

import pytest
import torch
from torch import nn

from pipeline.ppo import batches
from pipeline.ppo.batches import CRITIC_STATES, Part, pack, parts, tokens_a_pass
from pipeline.rollouts.scoring import weigh


def test_a_silent_reward_is_left_out_of_the_sum():
    nan = float("nan")
    scores, scorable = weigh(torch.tensor([[1.0, 2.0], [nan, 2.0], [nan, nan]]), torch.tensor([0.5, 2.0]))
    assert scores.tolist() == [4.5, 4.0, 0.0] and scorable.tolist() == [True, True, False]


def micro_batch(prompt_lengths, completion_lengths, first_id):
    """Rows whose tokens say which row they are: prompts left-padded to 4, completions right-padded to 5."""
    rows = len(prompt_lengths)
    prompt_mask = (torch.arange(4)[None] >= 4 - torch.tensor(prompt_lengths)[:, None]).long()
    completion_mask = (torch.arange(5)[None] < torch.tensor(completion_lengths)[:, None]).long()
    ids = first_id + torch.arange(rows)[:, None]
    return {
        "prompt_ids": prompt_mask * ids,
        "prompt_mask": prompt_mask,
        "completion_ids": completion_mask * ids,
        "completion_mask": completion_mask,
        "advantages": completion_mask * ids * 0.5,
        "num_items_in_batch": torch.tensor(7),
    }


@pytest.fixture
def every_shape(monkeypatch):
    """Parts of any number of rows and columns."""
    monkeypatch.setattr(batches, "_ROWS", 1)
    monkeypatch.setattr(batches, "_COLUMNS", 1)


@pytest.mark.usefixtures("every_shape")
def test_packing_sorts_by_length_and_drops_shared_padding():
    packed = pack([micro_batch([2, 4], [5, 1], 10), micro_batch([1, 3], [2, 3], 20)])
    # completion lengths 1, 2 | 3, 5; their prompts 4, 1 | 3, 2
    assert [m["completion_ids"].tolist() for m in packed] == [
        [[11, 0], [20, 20]],
        [[21, 21, 21, 0, 0], [10, 10, 10, 10, 10]],
    ]
    assert [m["prompt_ids"].tolist() for m in packed] == [
        [[11, 11, 11, 11], [0, 0, 0, 20]],
        [[21, 21, 21], [0, 10, 10]],
    ]
    assert packed[0]["advantages"].tolist() == [[5.5, 0], [10, 10]] and packed[0]["num_items_in_batch"] == 7


def test_packing_leaves_images_alone():
    batch = [micro_batch([2, 4], [5, 1], 10) | {"pixel_values": torch.zeros(3, 8)}]
    assert pack(batch) is batch
    batch = [micro_batch([2, 4], [5, 1], 10) | {"num_images": [1, 2]}]
    assert pack(batch) is batch


def lengths(prompts, completions):
    """Masks of rows with so many tokens: prompts on the right, completions on the left."""
    prompt_mask = torch.arange(max(prompts))[None] >= max(prompts) - torch.tensor(prompts)[:, None]
    completion_mask = torch.arange(max(completions))[None] < torch.tensor(completions)[:, None]
    return prompt_mask.long(), completion_mask.long()


@pytest.mark.usefixtures("every_shape")
def test_parts_are_cut_where_padding_costs_more_than_a_pass():
    """A pass is worth 128 tokens here."""
    # together 10 x 210 + 128 = 2228; apart 8 x 20 + 2 x 210 + 2 x 128 = 836
    found = list(parts(*lengths([10] * 10, [10, 200, 10, 10, 10, 10, 200, 10, 10, 10]), size=16, a_pass=128))
    assert [sorted(part.rows.tolist()) for part in found] == [[0, 2, 3, 4, 5, 7, 8, 9], [1, 6]]
    assert [(part.prompt, part.tokens) for part in found] == [(10, 10), (10, 200)]
    # together 8 x 22 + 128 = 304; apart 4 x 20 + 4 x 22 + 2 x 128 = 424
    assert len(list(parts(*lengths([10] * 8, [10, 12] * 4), size=16, a_pass=128))) == 1
    # three lengths, the best cut is the one between the second and the third: 4 x 2 x 20 + 2 x 500 + ...
    found = list(parts(*lengths([10, 10, 9, 9, 4, 4], [5, 10, 5, 10, 490, 490]), size=16, a_pass=128))
    assert [sorted(part.rows.tolist()) for part in found] == [[0, 1, 2, 3], [4, 5]] and found[1].prompt == 4


def test_no_part_is_larger_than_asked_for():
    found = list(parts(*lengths([3] * 7, [2] * 7), size=3, a_pass=128))
    assert sorted(len(part.rows) for part in found) == [1, 3, 3]
    assert sorted(row for part in found for row in part.rows.tolist()) == list(range(7))


def test_parts_have_shapes_that_come_again():
    """Rows in fours, columns in eights, where there are so many."""
    # 300 tokens are worth a pass: 3 x 5 and 5 x 60 tokens are cut after the fourth row, not after the third
    found = list(parts(*lengths([10] * 8, [3, 3, 3, 60, 60, 60, 60, 70]), size=8, a_pass=100))
    assert [len(part.rows) for part in found] == [8]  # 8 x 80 + 100 = 740; apart 4 x 70 + 4 x 80 + 200 = 800
    found = list(parts(*lengths([10] * 8, [3, 3, 3, 3, 60, 60, 60, 70]), size=8, a_pass=100))
    assert [(len(part.rows), part.prompt, part.tokens) for part in found] == [(4, 10, 8), (4, 10, 70)]
    # a micro-batch of three rows keeps its three
    assert sorted(len(part.rows) for part in parts(*lengths([3] * 7, [2] * 7), size=3, a_pass=1)) == [1, 3, 3]


def test_a_part_cuts_states_as_it_cuts_ids():
    batch = micro_batch([2, 4, 1], [5, 1, 2], 10)
    states = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)[:, :, None] * 0.5
    found = Part(torch.tensor([2, 0]), prompt=2, tokens=3).cut(batch | {CRITIC_STATES: states})
    assert found[CRITIC_STATES][:, :, 0].tolist() == [[0, 6, 6, 6, 0], [5, 5, 5, 5, 5]]
    assert found["prompt_ids"].tolist() == [[0, 12], [10, 10]]
    assert found["completion_ids"].tolist() == [[12, 12, 0], [10, 10, 10]] and found["num_items_in_batch"] == 7


def test_a_pass_is_worth_fewer_tokens_the_larger_the_model():
    # two layers of 10,000 weights, biases and adapters not counted: 2 x 5e8 / 2e4
    layers = nn.ModuleList(nn.Linear(100, 100) for _ in range(2))
    assert tokens_a_pass(layers, 2) == 50_000
    layers[0].lora_A = nn.Linear(100, 1)
    assert tokens_a_pass(layers, 2) == 50_000
