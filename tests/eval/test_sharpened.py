"""The control for sharpening: temperatures by pencil on two tokens, and the whole stage on random models."""

import json
import math

import pytest
import torch
from conftest import build_tokenizer
from eval_world import PROMPTS, arguments, make_world
from peft import PeftModel
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from pipeline.errors import UserError
from pipeline.eval import stage
from pipeline.eval.sharpened import HALVINGS, in_words, sharpen
from pipeline.exam import evaluation

GAP = 2.0  # between the logits of two tokens


def entropy_of(temperature: float) -> float:
    """Of softmax((GAP, 0) / T) = (1-q, q): -(1-q) log (1-q) - q log q = log(1 + exp(-GAP/T)) + q GAP/T."""
    gap = GAP / temperature
    return math.log1p(math.exp(-gap)) + gap / (1 + math.exp(gap))


def two_tokens(tokenizer) -> GPT2LMHeadModel:
    """Says one of two tokens whatever was said before, with logits GAP and 0: its last norm has a bias alone."""
    ids = {"vocab_size": len(tokenizer), "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    model = GPT2LMHeadModel(GPT2Config(**ids, n_embd=4, n_layer=1, n_head=1, n_positions=64)).eval()
    with torch.no_grad():
        model.transformer.ln_f.weight.zero_()
        model.transformer.ln_f.bias.copy_(torch.tensor([1.0, 0, 0, 0]))
        model.lm_head.weight[:, 0] = -1e4
        model.lm_head.weight[5, 0], model.lm_head.weight[6, 0] = GAP, 0.0
    return model


def test_by_pencil():
    """At T = 1 the entropy of (0.8808, 0.1192) is 0.3653 nats; that of (0.9820, 0.0180), 0.0901, is at T = 1/2."""
    assert entropy_of(1.0) == pytest.approx(0.36533, abs=1e-5) and entropy_of(0.5) == pytest.approx(0.09009, abs=1e-5)
    asked = []
    found = sharpen("sft", "ppo", 0.09009, 0.36533, lambda t: asked.append(t) or entropy_of(t), 1.0)
    assert found.temperature == 0.5 and asked == [0.5] and found.name == "sft as sharp as ppo"
    found = sharpen("sft", "ppo", entropy_of(0.7), entropy_of(1.0), entropy_of, 1.0)
    assert found.temperature == pytest.approx(0.7, abs=1.0 / 2**HALVINGS)
    assert found.entropy_found == pytest.approx(entropy_of(0.7), rel=0.03)
    found = sharpen("sft", "ppo", entropy_of(1.2), entropy_of(1.6), entropy_of, 1.6)  # sampled at 1.6, both of them
    assert found.temperature == pytest.approx(1.2, abs=1.6 / 2**HALVINGS)


def test_a_policy_that_is_less_sure_has_no_control():
    found = sharpen("sft", "ppo", 0.5, 0.4, lambda t: pytest.fail("asked for nothing"), 1.0)
    assert found.temperature is None and found.entropy_found is None
    assert "ppo is no surer of its words than sft (entropy 0.500 nats" in in_words("ppo", "sft", found._asdict())
    asked = []
    silent = sharpen("sft", "ppo", 0.0, 0.4, lambda t: asked.append(t) or entropy_of(t), 1.0)
    assert len(asked) == HALVINGS and silent.temperature == 1 / 2**HALVINGS


def test_entropy_of_a_known_distribution():
    """Where each token was drawn, at the temperature at which it was drawn, whatever was drawn."""
    tokenizer = build_tokenizer()
    model = two_tokens(tokenizer)
    for temperature in (1.0, 0.6):
        ids = evaluation.complete(model, tokenizer, PROMPTS, 7, [2], temperature, batch_size=4)
        assert {token for row in ids for token in row} == {5, 6}
        found = evaluation.entropies(model, tokenizer, PROMPTS, ids, temperature, 4)
        assert [row.shape for row in found] == [(7,)] * 6
        assert torch.cat(found).tolist() == pytest.approx([entropy_of(temperature)] * 42, abs=1e-5)


@pytest.fixture(scope="module")
def result(tmp_path_factory, tiny_model_folder):
    """One sharper and one flatter than the reference: its adapter, and its base with the head's weights scaled."""
    folder = tmp_path_factory.mktemp("sharpened")
    world, output = make_world(folder, tiny_model_folder), folder / "out"
    for name, scale in (("sharp", 4.0), ("flat", 0.25)):
        model = AutoModelForCausalLM.from_pretrained(tiny_model_folder)
        model = PeftModel.from_pretrained(model, world / "one").merge_and_unload()
        with torch.no_grad():
            model.get_output_embeddings().weight *= scale
        model.save_pretrained(folder / name)
        build_tokenizer().save_pretrained(folder / name)
    candidates = [{"base": str(tiny_model_folder)}, {"one": str(world / "one")}]
    candidates += [{name: str(folder / name)} for name in ("sharp", "flat")]
    rows = [{"prompt": f"w{i} =>\n"} for i in range(60)]
    (folder / "many.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    changes = {"candidates": candidates, "dataset": str(folder / "many.jsonl"), "eval_batch_size": 30}
    summary = stage.run(arguments(world, tiny_model_folder, output, **changes))
    return output, summary, folder


def test_each_trained_candidate_has_its_control(result):
    """Logits four times as large are those of a quarter of the temperature: 0.8 / 4 where all were sampled at 0.8."""
    output, summary, _ = result
    assert set(summary["sharpened"]) == {"sharp", "flat"}  # the base is what the reference was made from
    sharp, flat = summary["sharpened"]["sharp"], summary["sharpened"]["flat"]
    assert sharp["temperature"] == pytest.approx(0.2, abs=0.03) and flat["temperature"] is None
    assert sharp["entropy"] == pytest.approx(sharp["entropy_found"], rel=0.1)
    assert flat["entropy"] > flat["entropy_start"] == sharp["entropy_start"] > sharp["entropy"]
    name = "one as sharp as sharp"
    assert set(summary["candidates"]) == {"base", "one", "sharp", "flat", name}
    assert set(summary["candidates"][name]) == {"path", "sampled"}  # greedy answers are the reference's own
    compared = {(c["candidate"], c["against"], c["decoding"]) for c in summary["comparisons"]}
    assert {(name, "one", "sampled"), ("sharp", name, "sampled")} <= compared
    assert name not in {who for who, _, decoding in compared if decoding == "greedy"}
    text = (output / "table.md").read_text()
    assert f"sharp against {name}, sampled" in text and "flat is no surer of its words than one" in text
    assert f"{name}: one sampled at temperature {sharp['temperature']:.3g}" in text


def test_a_candidate_cannot_have_the_name_of_a_control(tmp_path, tiny_model_folder):
    world = make_world(tmp_path, tiny_model_folder)
    candidates = [{name: str(world / "one")} for name in ("one", "two", "one as sharp as two")]
    with pytest.raises(UserError, match="candidate one as sharp as two has the name of the control for two"):
        stage.run(arguments(world, tiny_model_folder, tmp_path / "out", candidates=candidates))


def test_the_control_is_the_reference_at_that_temperature(result, tiny_model_folder):
    output, summary, folder = result
    temperature, name = summary["sharpened"]["sharp"]["temperature"], "one as sharp as sharp"
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model_folder), folder / "one").eval()
    tokenizer, prompts = build_tokenizer(), [f"w{i} =>\n" for i in range(60)]
    ids = evaluation.complete(model, tokenizer, prompts, 12, [2], temperature, batch_size=30, seed=3)
    entries = [json.loads(row)["candidates"][name] for row in (output / "rows.jsonl").read_text().splitlines()]
    assert [entry["sampled"]["completion"] for entry in entries] == tokenizer.batch_decode(ids, True)
    mine, theirs = (evaluation.logprobs(model, tokenizer, prompts, ids, t) for t in (temperature, 0.8))
    kl = [(a.sum() - b.sum()).item() for a, b in zip(mine, theirs, strict=True)]
    assert [entry["sampled"]["kl"] for entry in entries] == pytest.approx(kl, abs=1e-3)
