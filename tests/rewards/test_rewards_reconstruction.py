"""The reconstruction reward: log-probabilities of the prompt after the completion, by pencil and on a tiny model."""

import math

import pytest
import torch
from scored import NOTHING, V, by_hand, ids, make_model, make_tokenizer, tiny_config

from rewards import Reconstruction, build_rewards


def test_the_prompt_is_read_after_the_completion_and_a_newline():
    model = make_model()
    reward = Reconstruction(model=model, tokenizer=make_tokenizer())
    prompts, texts = ["the cat", "the dog"], [" sat on the mat ", "ran home"]
    expected = [
        by_hand(model, ids("sat on the mat\n"), ids("the cat")),
        by_hand(model, ids("ran home\n"), ids("the dog")),
    ]
    assert reward(prompts, texts) == pytest.approx(expected, abs=1e-5)
    assert reward(prompts[::-1], texts[::-1]) == pytest.approx(expected[::-1], abs=1e-5)


def test_a_reader_of_one_slot_by_pencil():
    """It says "a" with 3/4 where the text has an "x" in it, with 1/4 elsewhere, and "b" otherwise."""

    class Reader:
        config = tiny_config()

        def __call__(self, input_ids, attention_mask):
            logits = torch.full((*input_ids.shape, V), -1e9)
            for row, read in enumerate(input_ids):
                p = 3 / 4 if ids("x")[0] in read.tolist() else 1 / 4
                logits[row, :, ids("a")[0]], logits[row, :, ids("b")[0]] = math.log(p), math.log(1 - p)
            return type("Output", (), {"logits": logits})

    reward = Reconstruction(model=Reader(), tokenizer=make_tokenizer())
    found = reward(["a", "a", "b"], ["x", "y", "y"])
    assert found == pytest.approx([math.log(3 / 4), math.log(1 / 4), math.log(3 / 4)], abs=1e-6)


def test_messages_are_read_as_text_and_a_text_of_nothing_scores_minus_log_v():
    model = make_model()
    reward = Reconstruction(model=model, tokenizer=make_tokenizer())
    prompt, said = [{"role": "user", "content": "the cat"}], [{"role": "assistant", "content": "sat"}]
    [expected] = reward(["the cat"], ["sat"])
    assert reward([prompt, "the cat", "the cat"], [said, " \n", "sat"]) == pytest.approx([expected, NOTHING, expected])


def test_it_is_named_in_a_recipe(tmp_path):
    make_model().save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    spec = {"name": "reconstruction", "path": str(tmp_path), "device": "cpu", "clip": [-2, 0], "weight": 4.0}
    [(reward, weight)] = build_rewards([spec])
    assert reward.__name__ == "reconstruction" and weight == 4.0
    assert reward(["the cat"], ["sat on the mat"]) == [-2.0]  # far from likely for a random model
