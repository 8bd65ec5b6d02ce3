"""The benchmark's own arithmetic: lengths of its models, operation counts, tables. It measures no speed."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import GenerationConfig

from tests.tools.bench import __main__ as bench
from tests.tools.bench import environment, floor, gpu, measure, models, runs, tables
from tests.tools.bench.floor import Product
from tests.tools.bench.models import EOS, PAD, SIZES, WORDS, Size

linux = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="memory is read from Linux's /proc")
SMALL = Size(hidden=2, layers=1, heads=2, kv_heads=1, intermediate=3, vocabulary=5, prompt=2, completion=2)
# geometric with 1/24, cut at 48: 24 (1 - (23/24)^48)
MEAN_LENGTH = 20.89


# ------------------------------------------------------------------ models
def completions(form: str, rows: int) -> tuple[torch.Tensor, torch.nn.Module]:
    """What a model of size S samples after random prompts, (rows, 48), and the model."""
    model = models.language_model(SIZES["S"], form)
    torch.manual_seed(0)
    prompts = torch.randint(EOS + 1, WORDS, (rows, 32))
    config = GenerationConfig(
        max_new_tokens=48, do_sample=True, temperature=models.TEMPERATURE, top_k=0, eos_token_id=EOS, pad_token_id=PAD
    )
    with torch.no_grad():
        ids = model.generate(prompts, attention_mask=torch.ones_like(prompts), generation_config=config)
    return ids[:, 32:], model


def test_natural_completions_end_with_the_same_chance_everywhere():
    ids, model = completions("natural", rows=96)
    ends = ids == EOS
    lengths = (ends.cumsum(dim=1) - ends.long() == 0).sum(dim=1).float()
    # standard errors: 15 tokens / sqrt(96) = 1.5, and 1 / sqrt(84 ends) = 11% of the chance
    assert lengths.mean().item() == pytest.approx(MEAN_LENGTH, abs=3.5)
    assert (ends.sum() / lengths.sum()).item() == pytest.approx(1 / 24, rel=0.3)
    with torch.no_grad():
        chance = (model(ids[:16]).logits / models.TEMPERATURE).softmax(dim=-1)[..., EOS]
    assert chance.mean().item() == pytest.approx(1 / 24, rel=0.1)
    assert chance.std() / chance.mean() < 0.15


def test_fixed_completions_never_end():
    ids, model = completions("fixed", rows=8)
    assert ids.shape == (8, 48) and not torch.isin(ids, torch.tensor([PAD, EOS])).any()
    with torch.no_grad():
        chances = (model(ids).logits / models.TEMPERATURE).softmax(dim=-1)[..., [PAD, EOS]]
    assert chances.max() < 1e-12


def test_ids_that_the_tokenizer_has_not_are_never_sampled():
    model = models.language_model(Size(32, 1, 2, 1, 64, vocabulary=WORDS + 8), "fixed")
    with torch.no_grad():
        chances = model(torch.arange(2, 40)[None]).logits.softmax(dim=-1)
    assert chances[..., WORDS:].max() < 1e-9


def test_prompts_keep_their_number_of_tokens():
    texts = [f"Return item {i} of the list, or raise an error when there is none." for i in range(60)]
    tokenizer = models.train_tokenizer(texts)
    prompts = models.prompts_of([*texts, "short"], tokenizer, length=5)
    assert len(prompts) == len(set(prompts)) > 0
    assert {len(ids) for ids in tokenizer(prompts)["input_ids"]} == {5}
    assert prompts == models.prompts_of([*texts, "short"], tokenizer, length=5)


# ------------------------------------------------------------------ floor
def test_operations_of_an_update_by_pencil():
    # A token through the block: 2 (2·2·2 + 2·2·1 + 2·2·3 + 3·2) = 60. Attention over 4 tokens, 2 heads of width 1, two
    # completions: scores 2·4·4·1·4 = 128, and as many for the values.
    decoding = 4 * 60 + 2 * 32 + 2 * 40 + 2 * 60 + 2 * 32  # prompts, logits of two steps, one step of the block
    without_gradient = 4 * (8 * 60 + 2 * 128) + 2 * 80  # four passes over 8 tokens, two with logits of 4 tokens
    # LoRA: six products of 2·8·16 (in or out) for each layer: 3 · 256 · Σ(in + out) = 768 · (8 + 6 + 10 + 5)
    training = 2 * (2 * 8 * 60 + 3 * 2 * 128 + 768 * 29) + 2 * 80
    assert (decoding, without_gradient, training) == (568, 3104, 48160)
    for epochs in (1, 4):
        count = floor.products(SMALL, [2, 2], accumulate=1, epochs=epochs)
        assert sum(p.flop * n for p, n in count.items()) == decoding + without_gradient + epochs * training


def test_completions_that_have_ended_are_not_decoded():
    count = floor.products(SMALL, [1, 2, 2, 2], accumulate=1, epochs=1)
    logits = {product.rows: n for product, n in count.items() if product[2:] == (2, 5)}
    assert logits[4] == 1 and logits[3] == 1  # four at the first token, three at the second
    assert logits[7] == 2 + 1  # no-gradient passes and training over 1 + 2 + 2 + 2 tokens


def test_lengths_of_the_floor_are_those_of_the_models():
    assert floor.completion_lengths(SIZES["M"], "fixed", 32) == [48] * 32
    natural = floor.completion_lengths(SIZES["M"], "natural", 32)
    assert sum(natural) / 32 == pytest.approx(MEAN_LENGTH, rel=0.03)
    # 13% of 32 are cut
    assert natural.count(48) == 4


def test_a_product_is_timed_alone():
    assert floor.seconds(Product(1, 4, 4, 4), torch.float32, least=0) > 0
    assert floor.seconds(Product(2, 4, 4, 4), torch.bfloat16, least=0) > 0


# ------------------------------------------------------------------ figures of a process
def test_parameters_that_share_storage_count_once():
    before = measure.distinct_parameters()
    layer = torch.nn.Linear(3, 5)
    assert measure.distinct_parameters() - before == 20
    view = torch.nn.Parameter(layer.weight.data[:2])
    assert measure.distinct_parameters() - before == 20
    copied = torch.nn.Parameter(layer.weight.data[:2].clone())
    assert measure.distinct_parameters() - before == 20 + 6
    del view, copied


@linux
def test_peak_memory_is_seen_after_it_was_freed():
    """In a process of its own, as the runs of the benchmark are: memory that is free already would not be seen."""
    code = "import torch; from tests.tools.bench import measure; memory = measure.Memory(); torch.ones(2**25)"
    run = [sys.executable, "-c", f"{code}; print(memory.peak())"]  # 128 MiB of float32, gone at once
    done = subprocess.run(run, cwd=environment.ROOT, capture_output=True, text=True, check=True)
    assert 120 < float(done.stdout) < 200


def test_the_last_line_of_figures_is_heard():
    assert measure.heard('noise\nRESULT {"a": 1}\nRESULT {"a": 2}\nmore noise\n') == {"a": 2}


def test_the_baseline_differs_from_the_project_in_trl_alone():
    pins = environment.pins((environment.ROOT / "constraints.txt").read_text(encoding="utf-8"))
    ours = (environment.ROOT / "constraints.txt").read_text(encoding="utf-8")
    changed = set(pins.splitlines()) ^ set(ours.splitlines())
    assert len(changed) == 2 and "trl==1.12.0" in changed


def test_a_folder_with_something_else_is_not_made_an_environment(tmp_path):
    (tmp_path / "thesis.txt").write_text("three years of work")
    with pytest.raises(SystemExit, match="is not a virtual environment"):
        environment.trl(tmp_path)
    assert (tmp_path / "thesis.txt").exists()


# ------------------------------------------------------------------ tables
def ran(seconds, split, peak, parameters, tokens=1000):
    """A run of 32 episodes an update as it comes from a process."""
    splits = [dict(split) for _ in seconds]
    figures = {"seconds": seconds, "split": splits, "tokens": [tokens] * len(seconds)}
    return figures | {"args": {"batch": 16, "accumulate": 2}, "peak_mib": peak, "parameters": parameters}


THEIRS = [
    ran([8.0, 9.0], {"generation": 2.0, "gc": 1.0}, 800, 40),
    ran([10.0], {"generation": 3.0, "gc": 2.0}, 1000, 40),
]
OURS = [
    ran([4.0, 4.0], {"generation": 1.0, "other": 0.4}, 300, 20),
    ran([5.0], {"generation": 1.0, "other": 0.4}, 300, 20),
]
CASE = tables.Case("S", "fixed", "float32", faster=2.0, memory=0.3, other=0.05, sft=1.25)


def test_ratios_and_goals_from_medians():
    found = tables.compare(CASE, {"trl": THEIRS, "plumbline": OURS}, floor_seconds=3.0, sft_peak=250.0)
    assert found["trl"]["seconds"] == 9.0 and found["plumbline"]["seconds"] == 4.0
    assert found["plumbline"]["episodes_per_second"] == 8.0
    assert found["trl"]["tokens_per_second"] == pytest.approx(3000 / 27)
    assert found["ratio"]["episodes_per_second"] == 9 / 4
    assert found["ratio"]["peak_mib"] == 300 / 900 and found["ratio"]["parameters"] == 0.5
    assert found["floor_share"] == {"trl": 1 / 3, "plumbline": 0.75}
    assert found["other_share"]["plumbline"] == 0.1 and found["of_sft_peak"] == 1.2
    met = {name: goal["met"] for name, goal in found["goals"].items()}
    assert met == {"episodes_per_second": True, "peak_mib": False, "other": False, "sft": True, "parameters": True}


def test_beside_another_rival_the_goals_against_trl_say_nothing(capsys):
    from rich.console import Console

    found = tables.compare(CASE, {"agilerl": THEIRS, "plumbline": OURS}, floor_seconds=3.0)
    assert found["ratio"]["episodes_per_second"] == 9 / 4 and set(found["goals"]) == {"other", "parameters"}
    Console(width=120).print(tables.table({"a-case": found}))
    assert "AgileRL 2.55" in capsys.readouterr().out


def test_a_second_base_in_memory_is_missed():
    size = SIZES["S"]
    least = models.base_parameters(size) + 3 * models.adapter_parameters(size)
    for parameters, met in ((least + 380, True), (least + models.base_parameters(size), False)):
        ours = [ran([4.0], {}, 300, parameters)]
        goals = tables.compare(CASE, {"trl": THEIRS, "plumbline": ours}, floor_seconds=3.0)["goals"]
        assert goals["parameters"] == {"goal": least + 257, "met": met}


def test_garbage_collections_can_be_left_out():
    found = tables.compare(CASE._replace(without_gc=True), {"trl": THEIRS, "plumbline": OURS}, 3.0)
    # 8 - 1, 9 - 1, 10 - 2
    assert found["trl"]["seconds"] == 8.0 and "gc" not in found["trl"]["split"]
    assert found["plumbline"]["seconds"] == 4.0
    assert found["goals"]["episodes_per_second"]["met"]


def test_the_table_says_what_was_missed(capsys):
    from rich.console import Console

    found = tables.compare(CASE, {"trl": THEIRS, "plumbline": OURS}, floor_seconds=3.0, sft_peak=250.0)
    found = json.loads(json.dumps(found))  # as it lies in summary.json
    Console(width=120).print(tables.table({"a-case": found}))
    lines = {line.split("│")[1].strip(): line for line in capsys.readouterr().out.splitlines() if "│" in line}
    assert ">= 2.00 met" in lines["episodes per second"] and "2.25" in lines["episodes per second"]
    assert "<= 0.30 MISSED" in lines["peak memory, MiB"] and "0.33" in lines["peak memory, MiB"]
    assert "0.40 (10%)" in lines["other, s"] and "MISSED" in lines["other, s"]
    assert "33%" in lines["floor 3.00 s, share"] and "75%" in lines["floor 3.00 s, share"]
    assert "1.20" in lines["peak, of our SFT stage's 250 MiB"]


@pytest.mark.parametrize("has_units", [True, False])
def test_cases_of_sixteen_bits_are_for_processors_that_have_them(has_units, monkeypatch, capsys):
    found = {"avx512_bf16": True, "amx_bf16": True} if has_units else {}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: has_units)
    names, said = bench.usual_cases(), capsys.readouterr().out
    float32 = ["M-fixed-fp32", "M-fixed-fp32-whole-critic", "R-natural-fp32", "R-natural-fp32-whole-critic"]
    float32 += ["S-fixed-fp32", "S-natural-fp32"]
    assert names == (list(tables.CASES) if has_units else float32)
    assert said.count("\n") == (not has_units) and ("M-fixed-bf16, M-natural-bf16" in said) is not has_units
    assert bench.parse(["--cases", "M-natural-bf16"]).cases == ["M-natural-bf16"]


# ------------------------------------------------------------------ on a card
def test_sizes_of_base_and_adapter():
    model = models.language_model(SIZES["tiny"], "fixed")
    assert models.base_parameters(SIZES["tiny"]) == model.num_parameters()
    # rank 16 on a block of SMALL: Σ(in + out) = 29
    assert models.adapter_parameters(SMALL) == 16 * 29


def test_bytes_that_a_decoding_step_reads_by_pencil():
    # block 30 weights and two norms of 2, last norm 2, output 5·2; a key and a value of 1 number, 3 tokens, 2 rows
    assert gpu.step_bytes(SMALL, rows=2) == 2 * (30 + 4 + 2 + 10) + 2 * 3 * 2 * 2


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a card")
def test_without_a_card_one_sentence_says_so(tmp_path):
    with pytest.raises(SystemExit, match="no CUDA device is here"):
        gpu.main(["--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


@linux
@pytest.mark.slow
def test_the_script_for_cards_runs_on_the_cpu(tmp_path, capfd):
    arguments = ["--device", "cpu", "--sizes", "tiny", "--sides", "plumbline", "--rounds", "1", "--updates", "2"]
    assert gpu.main([*arguments, "--out", str(tmp_path)]) == 0
    case = json.loads((tmp_path / "summary.json").read_text())["cases"]["tiny"]["plumbline"]
    assert case["tokens_per_update"] == 32 * 12
    # the base of 2048 · 32 · 2 + ..., not twice
    assert case["parameters"] < 2 * models.base_parameters(SIZES["tiny"]) + 4 * models.adapter_parameters(
        SIZES["tiny"]
    )
    assert 0 < case["of_decoding_limit"] < 1 and math.isfinite(case["of_least_memory"])
    text = (tmp_path / "table.txt").read_text()
    assert "not measured" in text and runs.cpu()[:10] in text
