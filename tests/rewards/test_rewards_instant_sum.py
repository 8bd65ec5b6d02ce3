"""What the tokens earn adds up to the score of the completion, for every reward."""

import functools

import pytest
import torch
from byte_tokens import byte_level, ids_of, paid
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import BertConfig, BertForSequenceClassification

from rewards import (
    Instant,
    Learned,
    build_rewards,
    pays_tokens,
    token_ends,
    token_rewards_of,
)


@functools.cache
def learned():
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = BertConfig(vocab_size=300, max_position_embeddings=256, num_labels=2, **sizes)
    tokenizer = byte_level()
    tokenizer.pad_token = "<x>"
    return Learned(model=BertForSequenceClassification(config).eval(), tokenizer=tokenizer, label="LABEL_1")


SPECS = {
    "bleu": "{name: bleu}",
    "bleu add-k": "{name: bleu, smoothing: add-k, lowercase: true}",
    "rouge1": "rouge1",
    "rouge2": "rouge2",
    "rougeL": "{name: rougeL, measure: recall}",
    "fraction": "{name: keyword, column: facts, wanted: [cat, 猫], unwanted: [sat, 坐, '👍'], unwanted_cost: 0.4}",
    "facts": "{name: keyword, column: facts}",
    "all": "{name: keyword, wanted: [cat, the], mode: all}",
    "any": "{name: keyword, wanted: [cat, 猫], unwanted: the, mode: any}",
    "words": "{name: length, min: 2, max: 3}",
    "characters": "{name: length, min: 4, max: 7, unit: characters}",
    "tokens": "{name: length, min: 3, max: 5.5, unit: tokens}",
    "repetition": "{name: repetition, n: 2}",
    "clip": "{name: keyword, column: facts, wanted: cat, clip: [-0.2, 0.6]}",
    "normalize": "{name: repetition, n: 1, normalize: running, clip: [-0.5, 0.5]}",
    "normalized bleu": "{name: bleu, normalize: running}",
    "mixture": "{name: mixture, clip: [-1, 1.5], rewards: [{name: bleu, weight: 2}, "
    "{name: keyword, column: facts, normalize: running, instant: words}, {name: length, max: 4}]}",
}


ROWS = st.lists(
    st.tuples(
        st.lists(st.sampled_from(["the ", "cat", " sat", "猫", "坐", "👍", "é", " ", ".", "-"]), max_size=12),
        st.sampled_from([None, "", "the cat sat on the mat", ["猫坐在上面", "a cat"], []]),
        st.sampled_from([None, [], ["cat"], ["the", "猫|dog"]]),
        st.sampled_from(["bytes", "canonical", "unaligned"]),
    ),
    min_size=1,
    max_size=4,
)


def check_sums(reward, rows):
    texts = ["".join(parts) for parts, *_ in rows]
    ids = [
        ids_of(text.encode()) if how == "bytes" else byte_level()(text, add_special_tokens=False)["input_ids"]
        for text, (*_, how) in zip(texts, rows, strict=True)
    ]
    ids = [row + [0] for row in ids]  # eos
    ends = token_ends(ids, texts, byte_level())
    assert None not in ends
    ends = [None if how == "unaligned" else row for row, (*_, how) in zip(ends, rows, strict=True)]
    columns = {"references": [r for _, r, _, _ in rows], "facts": [f for _, _, f, _ in rows]}
    scores = reward(["p"] * len(rows), texts, completion_ids=ids, **columns)
    paid_rows = token_rewards_of(reward, ["p"] * len(rows), texts, ids, ends, **columns)
    assert pays_tokens(reward)
    for score, row, row_ids in zip(scores, paid_rows, ids, strict=True):
        assert (row is None) == (score is None)
        if score is not None:
            assert len(row) == len(row_ids) and sum(row) == pytest.approx(score, abs=1e-6)


@pytest.mark.parametrize("instant", [True, "words", "tokens"])
@pytest.mark.parametrize("name", SPECS)
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_the_sum_is_the_score(name, instant, data):
    spec = SPECS[name] if SPECS[name].startswith("{") else f"{{name: {SPECS[name]}}}"
    ((reward, _),) = build_rewards([f"{spec[:-1]}, instant: {str(instant).lower()}}}"])
    for rows in data.draw(st.lists(ROWS, min_size=1, max_size=2)):
        check_sums(reward, rows)


@settings(max_examples=10, deadline=None)
@given(rows=ROWS)
def test_the_sum_is_the_score_of_a_model(rows):
    check_sums(Instant(learned()), rows)


def test_a_model_pays_each_word_the_difference_that_it_makes():
    reward, texts = learned(), ["the", "the cat", "the cat sat"]
    one, two, three = reward(["p"] * 3, texts)
    assert paid(Instant(reward), "the", " cat", " sat") == pytest.approx([one, two - one, three - two], abs=1e-6)
    assert len({one, two, three}) == 3


def test_completions_without_tokens_get_an_empty_list():
    for spec in SPECS.values():
        ((reward, _),) = build_rewards([spec])
        assert Instant(reward).token_rewards(["p"], [""], [[]], [[]], references=["x"], facts=[["x"]]) == [[]]
