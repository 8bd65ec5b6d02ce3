"""The reward-model stage end to end on a random two-layer Llama, and its figures against a pencil."""

import gzip
import json
import math

import pytest
import torch
from conftest import build_model, build_tokenizer
from peft import PeftModel
from reward_stage import PAIRS, runner
from safetensors.torch import load_file, save_file
from saved import make_adapter
from transformers import AutoModelForSequenceClassification

from pipeline.config import ModelArguments
from pipeline.errors import UserError
from pipeline.models import loading as models
from pipeline.stages import reward_model

SCORE = "base_model.model.score.weight"


@pytest.fixture
def run(tmp_path, tiny_model_folder, monkeypatch):
    return runner(tmp_path, tiny_model_folder, monkeypatch)


def test_figures_by_pencil():
    # margins: log 3 -> sigmoid 3/4, -log 3 -> 1/4, 0 -> 1/2, log 9 -> 9/10
    chosen = torch.tensor([math.log(3), 0.0, 1.0, math.log(9)])
    rejected = torch.tensor([0.0, math.log(3), 1.0, 0.0])
    found = reward_model.preference_metrics(chosen, rejected)
    assert found["accuracy"] == pytest.approx(2.5 / 4)  # a tie is half right
    assert found["margin"] == pytest.approx(math.log(9) / 4)
    assert found["log_loss"] == pytest.approx(
        -(math.log(3 / 4) + math.log(1 / 4) + math.log(1 / 2) + math.log(0.9)) / 4
    )
    assert found["heldout_pairs"] == 4
    assert found["accuracy_se"] == pytest.approx(math.sqrt(0.625 * 0.375 / 4))
    assert found["score_mean"] == pytest.approx((2 * math.log(3) + 2 + math.log(9)) / 8)


def test_a_tenth_is_held_out_where_nothing_is_named(run, capsys):
    pairs = [{"prompt": f"say {i} ", "chosen": "a b", "rejected": "c d"} for i in range(20)]
    summary, _, _ = run(pairs, eval_fraction=0.0, max_steps=1)
    assert (summary["pairs"], summary["heldout_pairs"]) == (18, 2)
    assert "no held-out pairs are named: 2 set aside (eval_fraction 0.1)" in capsys.readouterr().out


def test_calibration_by_pencil():
    # Two pairs at confidence 0.78, one right: |1/2 - 0.78|. Two at 0.92, both right: |1 - 0.92|. Half the weight each.
    logit = {p: math.log(p / (1 - p)) for p in (0.78, 0.92)}
    margins = torch.tensor([logit[0.78], -logit[0.78], logit[0.92], logit[0.92]])
    error, bins = reward_model.calibrate(margins)
    assert error == pytest.approx(0.5 * 0.28 + 0.5 * 0.08, abs=1e-6)
    assert [row["pairs"] for row in bins] == [0, 0, 0, 0, 0, 2, 0, 0, 2, 0]
    assert bins[5] == pytest.approx({"from": 0.75, "to": 0.8, "pairs": 2, "confidence": 0.78, "accuracy": 0.5})


def test_calibration_at_the_edges():
    assert reward_model.calibrate(torch.tensor([0.0, 0.0]))[0] == 0  # a coin that says it is one
    error, bins = reward_model.calibrate(torch.tensor([100.0, -100.0]))
    assert error == pytest.approx(0.5) and bins[-1]["pairs"] == 2


def test_a_well_calibrated_model_has_a_small_error():
    generator = torch.Generator().manual_seed(0)
    p = 0.5 + 0.5 * torch.rand(200_000, generator=generator, dtype=torch.float64)
    right = torch.rand(200_000, generator=generator, dtype=torch.float64) < p
    margins = torch.where(right, 1.0, -1.0) * torch.log(p / (1 - p))
    assert reward_model.calibrate(margins)[0] < 0.005
    assert reward_model.calibrate(3 * margins)[0] > 0.1  # over-confident


def test_untrained_it_is_a_coin(run):
    summary, _, _ = run(PAIRS, learning_rate=0.0)
    assert summary["log_loss"] == pytest.approx(math.log(2), abs=0.01)
    assert abs(summary["margin"]) < 0.1 and abs(summary["score_mean"]) < 0.5


def test_it_learns_and_the_saved_adapter_is_plain(run, tiny_model_folder, capsys):
    summary, out, trainer = run(PAIRS, learning_rate=1e-2, num_train_epochs=8)
    assert summary["accuracy"] == 1.0 and summary["margin"] > 1 and summary["heldout_pairs"] == 9
    told = capsys.readouterr().out
    assert "right on 100.0% of 9 held-out pairs" in told and "Next: plumbline ppo --config" in told
    assert json.loads((out / "summary.json").read_text()) == summary
    assert not list(out.glob("*.bin"))
    # With PEFT and transformers alone, one text at a time: the scores of the trained model, so no padding matters.
    base = AutoModelForSequenceClassification.from_pretrained(tiny_model_folder, num_labels=1)
    model = PeftModel.from_pretrained(base, str(out)).eval()
    chosen, rejected = reward_model.score_pairs(trainer)
    with torch.no_grad():
        for side, scores in (("chosen_ids", chosen), ("rejected_ids", rejected)):
            alone = [model(torch.tensor([row[side]])).logits.item() for row in trainer.eval_dataset]
            torch.testing.assert_close(torch.tensor(alone), scores, atol=1e-4, rtol=1e-4)
    config = json.loads((out / "adapter_config.json").read_text())
    assert config["task_type"] == "SEQ_CLS" and sorted(config["modules_to_save"]) == ["classifier", "score"]
    assert models.load_scorer(str(out))


def test_prompt_and_answer_are_one_text_with_one_end_token(run):
    _, _, trainer = run(PAIRS)
    for side in ("chosen", "rejected"):
        seen = {tuple(row[f"{side}_ids"]) for part in (trainer.train_dataset, trainer.eval_dataset) for row in part}
        assert seen == {tuple(ids_of(row["prompt"] + row[side])) for row in PAIRS}


def test_implicit_prompts_and_conversations(run):
    implicit = [{side: row["prompt"] + row[side] for side in ("chosen", "rejected")} for row in PAIRS]
    with_prompt = run(PAIRS, "a", seed=1)[2].train_dataset.to_list()
    without = run(implicit, "b", seed=1)[2].train_dataset.to_list()
    assert len(with_prompt) + 9 == len(PAIRS) == 36
    assert {tuple(row["chosen_ids"]) for row in without} <= {tuple(ids_of(row["chosen"])) for row in implicit}
    chat = [
        {
            "prompt": [{"role": "user", "content": row["prompt"]}],
            "chosen": [{"role": "assistant", "content": row["chosen"]}],
            "rejected": [{"role": "assistant", "content": row["rejected"]}],
        }
        for row in PAIRS
    ]
    seen = {tuple(row["chosen_ids"]) for row in run(chat, "c")[2].train_dataset}
    assert seen <= {tuple(ids_of(f"<user>{row['prompt']}<assistant>{row['chosen']}")) for row in PAIRS}


def ids_of(text: str) -> list[int]:
    return [*build_tokenizer()(text)["input_ids"], 2]


def test_it_starts_from_the_sft_adapter(run, tiny_model_folder, tmp_path):
    start = make_adapter(tiny_model_folder, tmp_path / "sft", value=0.02)
    _, out, _ = run(PAIRS, model={"adapter_path": str(start), "lora_r": 16}, learning_rate=0.0)
    saved, sft = load_file(out / "adapter_model.safetensors"), load_file(start / "adapter_model.safetensors")
    assert set(saved) == set(sft) | {SCORE}
    assert all(torch.equal(saved[key], sft[key]) for key in sft)


def test_the_same_seed_gives_the_same_bits(run):
    first, again, other = (
        load_file(run(PAIRS, out, learning_rate=0.0, seed=seed)[1] / "adapter_model.safetensors")
        for out, seed in (("a", 5), ("b", 5), ("c", 6))
    )
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first[SCORE], other[SCORE])


def test_head_and_adapter_are_both_trained(run, tiny_model_folder, tmp_path):
    start = make_adapter(tiny_model_folder, tmp_path / "sft", value=0.02)
    before = run(PAIRS, "a", {"adapter_path": str(start)}, learning_rate=0.0)[1]
    after = run(PAIRS, "b", {"adapter_path": str(start)}, learning_rate=1e-3)[1]
    before, after = (load_file(out / "adapter_model.safetensors") for out in (before, after))
    assert all(not torch.equal(before[key], after[key]) for key in before)


def test_a_changed_file_is_noticed(run, tiny_model_folder):
    _, out, trainer = run(PAIRS, learning_rate=1e-2, num_train_epochs=4)
    args = ModelArguments(model_name_or_path=str(tiny_model_folder))
    stage = models.resolve_model(args)
    scores = reward_model.score_pairs(trainer)
    reward_model._check_reload(trainer, args, stage, trainer.processing_class, out, *scores)
    state = load_file(out / "adapter_model.safetensors")
    state[SCORE] = state[SCORE] * 1.01
    save_file(state, out / "adapter_model.safetensors")
    with pytest.raises(RuntimeError, match="scores differently after loading"):
        reward_model._check_reload(trainer, args, stage, trainer.processing_class, out, *scores)


def test_all_weights_can_be_trained(run):
    summary, out, _ = run(PAIRS, model={"use_peft": False}, learning_rate=1e-3, num_train_epochs=4)
    assert summary["log_loss"] < math.log(2)
    model, _ = models.load_scorer(str(out))
    assert torch.equal(model.score.weight, load_file(out / "model.safetensors")["score.weight"])


def test_pairs_longer_than_max_length(run, capsys):
    rows = PAIRS + [{"prompt": f"{i} =>", "chosen": "x" * 100, "rejected": "y"} for i in range(4)]
    run(rows, "a")
    assert "pairs dropped: longer than max_length 64 tokens" in capsys.readouterr().out
    with pytest.raises(UserError, match="every pair is longer than max_length 4"):
        run(PAIRS, "b", max_length=4)


def test_a_16_bit_base_trains_its_head_in_float32(run):
    summary, out, _ = run(PAIRS, model={"dtype": "bfloat16"}, learning_rate=1e-2, num_train_epochs=8)
    assert summary["accuracy"] > 0.8
    state = load_file(out / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in state.values()} == {torch.float32}


@pytest.mark.slow
def test_a_4_bit_base(run, tmp_path):
    pytest.importorskip("bitsandbytes")
    build_model(hidden_size=256, intermediate_size=768, num_hidden_layers=1).save_pretrained(tmp_path / "base")
    build_tokenizer().save_pretrained(tmp_path / "base")
    model = {"model_name_or_path": str(tmp_path / "base"), "load_in_4bit": True}
    summary, out, _ = run(PAIRS, model=model, learning_rate=1e-3, num_train_epochs=4)
    assert summary["log_loss"] < math.log(2)
    assert load_file(out / "adapter_model.safetensors")[SCORE].dtype == torch.float32


def test_the_hh_pairs_train_as_they_lie(run, shared, capsys):
    path = shared("hh", "harmless-base.jsonl.gz")
    summary, _, trainer = run(None, dataset=path, max_rows=60, max_length=512, max_steps=2)
    told = capsys.readouterr().out
    assert "prompt taken from the dialogue in" in told and "pairs dropped: longer than max_length 512" in told
    assert summary["steps"] == 2 and 0 <= summary["accuracy"] <= 1
    with gzip.open(path, "rt", encoding="utf-8") as file:
        originals = {tuple(ids_of(json.loads(line)["chosen"])) for line in list(file)[:60]}
    assert {tuple(row["chosen_ids"]) for row in trainer.train_dataset} <= originals
