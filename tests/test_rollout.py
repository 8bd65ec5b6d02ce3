"""Rollouts as tensors: weighing of scores, and the packing of a mini-batch by length."""

import torch

from pipeline.ppo.batches import pack
from pipeline.ppo.rollout import weigh


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
