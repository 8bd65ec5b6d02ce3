"""Decoding that drops rows which have ended: the tokens of plain decoding, with ever fewer rows."""

import pytest
import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GenerationConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
)

from pipeline.models.decoding import Decoder, Rollouts, cut

ROWS, LONGEST, MOST = 24, 7, 40
ENDS = [1, 2]
SMALL = {"vocab_size": 20, "bos_token_id": 0, "eos_token_id": 1}
LLAMA = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
MAMBA = {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4, "pad_token_id": 0}
MODELS = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SMALL, **LLAMA)),
    "positions that are learned": lambda: GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=2, **SMALL)),
    "a window": lambda: Gemma2ForCausalLM(
        Gemma2Config(**SMALL, **LLAMA, head_dim=16, num_key_value_heads=1, sliding_window=6)
    ),
    "a state": lambda: MambaForCausalLM(MambaConfig(**SMALL, **MAMBA)),
}


def build(kind: str):
    """A random model whose logits differ enough for rounding not to matter, and padded prompts of 2 to 7 tokens."""
    torch.manual_seed(0)
    model = MODELS[kind]().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    model.generation_config = GenerationConfig()
    ids = torch.randint(3, 20, (ROWS, LONGEST))
    mask = torch.stack([(torch.arange(LONGEST) >= row % 6).long() for row in range(ROWS)])
    return model, {"input_ids": ids * mask, "attention_mask": mask}


@pytest.mark.parametrize(("kind", "drops"), [(kind, kind != "a state") for kind in MODELS])
def test_the_same_tokens_as_plain_decoding(kind, drops, monkeypatch):
    model, inputs = build(kind)
    config = GenerationConfig(max_new_tokens=MOST, eos_token_id=ENDS, pad_token_id=0, do_sample=False)
    plain = model.generate(**inputs, generation_config=config)[:, LONGEST:].tolist()
    decoder, generate, sizes, lengths = Decoder(model, config), model.generate, [], []

    def spied(**given):
        sizes.append(len(given["input_ids"]))
        lengths.append(given["input_ids"].shape[1])
        return generate(**given)

    monkeypatch.setattr(model, "generate", spied)
    found = decoder(**inputs)
    assert found == [cut(row, ENDS) for row in plain]
    assert {len(row) for row in found} > {MOST} or kind == "a state"  # some ended, some were cut
    assert decoder.drops is drops
    if not drops:
        assert sizes == [ROWS, ROWS]  # seen on the first batch, decoded again; from then on once
        assert decoder(**inputs) == found and sizes == [ROWS] * 3
        return
    assert len(sizes) > 2 and sizes == sorted(set(sizes), reverse=True)
    assert lengths == sorted(set(lengths)) and lengths[0] == LONGEST
    # the first call ended with the first eighth of the rows, three of 24; later ones with an eighth of theirs
    done = sorted(len(row) for row in found)
    assert lengths[1] == LONGEST + done[2] and sizes[1] == sum(length > done[2] for length in done)


def test_a_single_row_and_rows_that_all_end_at_once():
    model, inputs = build("llama")
    config = GenerationConfig(max_new_tokens=MOST, eos_token_id=list(range(20)), pad_token_id=0, do_sample=False)
    assert [len(row) for row in Decoder(model, config)(**inputs)] == [1] * ROWS
    config.eos_token_id = 1  # a bare number
    alone = {name: rows[:1] for name, rows in inputs.items()}
    plain = model.generate(**alone, generation_config=config)[0, LONGEST:].tolist()
    assert Decoder(model, config)(**alone) == [cut(plain, [1])]


def test_cut_keeps_the_first_end():
    assert cut([5, 2, 6, 1], [1, 2]) == [5, 2] and cut([5, 6], [1]) == [5, 6] and cut([], [1]) == []


def test_what_rides_on_a_cache_is_not_dropped():
    """Values of Q-learning keep their own cache there (pipeline/ilql/decoding.py)."""
    model, inputs = build("llama")
    plain = Decoder(model, config := GenerationConfig(max_new_tokens=MOST, eos_token_id=ENDS, pad_token_id=0))
    wanted = plain(**inputs)

    def ride(module, args, kwargs, output):
        output.past_key_values.rider = "of its own"
        return output

    model.register_forward_hook(ride, with_kwargs=True)
    decoder = Decoder(model, config)
    assert decoder(**inputs) == wanted and plain.drops and not decoder.drops


# ---------------------------------------------------------------- rollouts
def spy(model, monkeypatch):
    """How many rows each call of `generate` has."""
    generate, sizes = model.generate, []

    def spied(**given):
        sizes.append(len(given["input_ids"]))
        return generate(**given)

    monkeypatch.setattr(model, "generate", spied)
    return sizes


def test_a_rollout_comes_back_as_from_plain_generation(monkeypatch):
    model, inputs = build("llama")
    config = GenerationConfig(max_new_tokens=MOST, eos_token_id=ENDS, pad_token_id=0, do_sample=False)
    plain = model.generate(**inputs, generation_config=config)
    rollouts = Rollouts(model)
    with rollouts.without_ended_rows():
        pass
    assert "generate" not in vars(model)
    sizes = spy(model, monkeypatch)
    for _ in range(2):
        with rollouts.without_ended_rows():
            found = model.generate(**inputs, generation_config=config)
        for row, wanted in zip(found.tolist(), plain.tolist(), strict=True):
            ids = cut(wanted[LONGEST:], ENDS)
            assert row == wanted[:LONGEST] + ids + [0] * (MOST - len(ids))
    assert sizes[0] == ROWS > sizes[1] and sizes.count(ROWS) == 2
    model.generate(**inputs, generation_config=config)
    assert sizes[-1] == ROWS  # outside of the block everything is as before


def test_sampled_rows_have_the_models_distribution(monkeypatch):
    """One row in two ends at once; how the others go on is up to the model, not to who was dropped."""
    model, _ = build("llama")
    prompt = torch.tensor([[5, 6]] * 4000)
    config = GenerationConfig(max_new_tokens=2, eos_token_id=list(range(10)), pad_token_id=0, do_sample=True, top_k=0)
    sizes = spy(model, monkeypatch)
    torch.manual_seed(0)
    with Rollouts(model).without_ended_rows():
        found = model.generate(input_ids=prompt, attention_mask=torch.ones_like(prompt), generation_config=config)
    first, second = found[:, 2], found[:, 3]
    going = first >= 10
    assert sizes == [4000, int(going.sum())] and not second[~going].any()  # those that ended are padded
    likeliest = int(first[going].mode().values)
    logits = model(torch.tensor([[5, 6, likeliest]])).logits[0]
    for seen, p in ((first, logits[1].softmax(0)), (second[first == likeliest], logits[2].softmax(0))):
        share, error = seen.bincount(minlength=20) / len(seen), (p * (1 - p) / len(seen)).sqrt()
        assert ((share - p).abs() < 4 * error + 1e-3).all()


@pytest.mark.parametrize(
    "more", [{"max_time": 9.0}, {"cache_implementation": "static"}, {"num_beams": 2}, {"eos_token_id": None}]
)
def test_what_counts_steps_or_seconds_is_left_alone(more, monkeypatch):
    model, inputs = build("llama")
    config = GenerationConfig(**{"max_new_tokens": MOST, "eos_token_id": ENDS, "pad_token_id": 0} | more)
    sizes = spy(model, monkeypatch)
    with Rollouts(model).without_ended_rows():
        model.generate(**inputs, generation_config=config)
    assert sizes == [ROWS]
