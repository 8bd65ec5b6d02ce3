"""The SFT stage end to end on a random two-layer Llama: what the loss falls on, what is saved, what is refused."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import trl
import yaml
from conftest import build_model, build_tokenizer
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from pipeline.config import DataArguments, ModelArguments, SFTStage
from pipeline.errors import UserError
from pipeline.runs.folder import read_metrics
from pipeline.stages import sft

ROOT = Path(__file__).resolve().parents[2]
WORDS = ["red", "blue", "green", "old", "new", "tall"]
ROWS = [{"prompt": f"{a} {b} =>", "completion": f" {b} {a}"} for a in WORDS for b in WORDS]
CHAT = [{"messages": [{"role": "user", "content": "ab"}, {"role": "assistant", "content": "c"}]}]


class Spy(sft.SFT):
    """The stage's trainer; the last one made can be looked at."""

    last: "Spy"

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        Spy.last = self


@pytest.fixture
def run(tmp_path, tiny_model_folder, monkeypatch):
    """Runs the stage on rows; returns (summary, output folder, the trainer)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sft, "SFT", Spy)

    def act(rows, out="runs/x/sft", model=None, base=tiny_model_folder, **settings):
        Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        defaults = {"num_train_epochs": 1, "save_strategy": "no", "use_cpu": True, "max_length": 64}
        fraction = settings.pop("eval_fraction", 0.0)
        summary = sft.run(
            ModelArguments(**{"model_name_or_path": str(base), "lora_r": 4} | (model or {})),
            DataArguments(dataset="rows.jsonl", eval_fraction=fraction),
            SFTStage(output_dir=out, **defaults | settings),
        )
        return summary, Path(out), Spy.last

    return act


def ids(text: str) -> list[int]:
    return build_tokenizer()(text)["input_ids"]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "ab\n", "completion": "c"},
        {"prompt": "ab\n", "completion": "c</s>"},  # an end token that is there already is not doubled
        {"prompt": "ab\n", "completion": "c", "text": "other"},  # TRL would end the text column instead
    ],
)
def test_the_loss_is_on_the_completion_and_its_end_token(run, row):
    _, _, trainer = run([row])
    example = trainer.train_dataset[0]
    assert example["input_ids"] == [*ids("ab\n"), *ids("c"), 2]
    assert example["labels"] == [-100, -100, -100, *ids("c"), 2]


def test_the_end_token_is_learnt_when_it_is_the_pad_token_too(run, tmp_path):
    build_model().save_pretrained(tmp_path / "base")
    tokenizer = build_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(tmp_path / "base")
    _, _, trainer = run([{"prompt": "ab\n", "completion": "c"}, {"prompt": "ab\n", "completion": "cde"}], base="base")
    batch = trainer.data_collator(list(trainer.train_dataset))
    assert batch["labels"].tolist() == [[-100] * 3 + ids("c") + [2, -100, -100], [-100] * 3 + ids("cde") + [2]]


def test_the_loss_can_be_on_everything(run):
    _, _, trainer = run([{"prompt": "ab\n", "completion": "c"}], completion_only_loss=False)
    assert trainer.train_dataset[0]["labels"] == [*ids("ab\nc"), 2]


def test_plain_text_ends_with_the_end_token(run):
    _, _, trainer = run([{"text": "abc"}])
    assert trainer.train_dataset[0]["labels"] == [*ids("abc"), 2]


def test_conversations_learn_the_last_turn(run, capsys):
    _, _, trainer = run(CHAT + [{"messages": [{"role": "user", "content": "left out"}]}])
    assert len(trainer.train_dataset) == 1
    assert trainer.train_dataset[0]["input_ids"] == [*ids("<user>ab<assistant>c"), 2]
    assert trainer.train_dataset[0]["labels"] == [-100] * len("<user>ab<assistant>") + [*ids("c"), 2]
    told = capsys.readouterr().out
    assert "the loss is on the last assistant turn" in told and "1 rows dropped" in told


def test_conversational_prompt_and_completion(run):
    row = {"prompt": CHAT[0]["messages"][:1], "completion": CHAT[0]["messages"][1:]}
    _, _, trainer = run([row])
    assert trainer.train_dataset[0]["labels"] == [-100] * len("<user>ab<assistant>") + [*ids("c"), 2]


def test_training_lowers_the_heldout_loss_and_leaves_a_plain_adapter(run, tiny_model_folder, capsys):
    summary, out, _ = run(ROWS, eval_fraction=0.2, learning_rate=1e-2, num_train_epochs=6)
    losses = summary["heldout_loss"]
    assert losses["after"] < losses["before"] - 0.3
    # The adapter is an ordinary PEFT adapter relative to the raw base, and gives the loss that was reported.
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model_folder), str(out)).eval()
    held = list(Spy.last.eval_dataset)
    total, count = 0.0, 0
    for row in held:
        labels = torch.tensor([row["labels"]])
        with torch.no_grad():
            loss = model(torch.tensor([row["input_ids"]]), labels=labels).loss.item()
        tokens = sum(label != -100 for label in row["labels"])
        total, count = total + loss * tokens, count + tokens
    # TRL reports the mean of batch means; all completions here have nearly the same length
    assert losses["after"] == pytest.approx(total / count, abs=0.05)
    told = capsys.readouterr().out
    assert f"The result lies in {out}." in told and "Next: plumbline reward --config" in told


def test_what_lies_in_the_folder(run, tiny_model_folder):
    summary, out, _ = run(ROWS, seed=3, logging_steps=2)
    names = {path.name for path in out.iterdir()}
    wanted = {"adapter_model.safetensors", "adapter_config.json", "tokenizer.json", "config.yaml", "metrics.jsonl"}
    assert wanted | {"summary.json"} <= names
    assert not [name for name in names if name.endswith((".bin", ".pt", ".pkl"))]
    assert json.loads((out / "summary.json").read_text()) == summary
    config = yaml.safe_load((out / "config.yaml").read_text())
    assert config["seed"] == 3 and config["lora_r"] == 4 and config["versions"]["trl"] == trl.__version__
    rows = read_metrics(out)
    assert any("loss" in row for row in rows) and rows[-1]["step"] == summary["steps"] == 5
    assert json.loads((out / "adapter_config.json").read_text())["base_model_name_or_path"] == str(tiny_model_folder)
    assert AutoTokenizer.from_pretrained(out).eos_token_id == 2


def test_results_are_never_overwritten(run):
    _, out, _ = run(ROWS)
    before = (out / "adapter_model.safetensors").read_bytes()
    with pytest.raises(UserError, match="already holds results"):
        run(ROWS)
    assert (out / "adapter_model.safetensors").read_bytes() == before


def test_the_same_seed_gives_the_same_bits(run):
    adapters = [load_file(run(ROWS, out)[1] / "adapter_model.safetensors") for out in ("a", "b")]
    assert all(torch.equal(adapters[0][key], adapters[1][key]) for key in adapters[0])
    other = load_file(run(ROWS, "c", seed=1)[1] / "adapter_model.safetensors")
    assert any(not torch.equal(adapters[0][key], other[key]) for key in other)


def test_a_second_run_goes_on_from_the_first(run):
    first, out, _ = run(ROWS, learning_rate=1e-2, num_train_epochs=3, eval_fraction=0.2)
    second, again, _ = run(ROWS, "more", {"model_name_or_path": str(out)}, learning_rate=0.0, eval_fraction=0.2)
    assert second["heldout_loss"]["before"] == pytest.approx(first["heldout_loss"]["after"], abs=1e-6)
    assert second["started_from"] == str(out) and second["base"] == first["base"]
    with pytest.raises(UserError, match="^use_peft"):
        run(ROWS, "other", {"model_name_or_path": str(out), "use_peft": False})


def test_all_weights_can_be_trained(run, tiny_model_folder):
    _, out, _ = run(ROWS, model={"use_peft": False}, learning_rate=1e-3)
    trained, base = load_file(out / "model.safetensors"), load_file(tiny_model_folder / "model.safetensors")
    assert all(not torch.equal(trained[key], base[key]) for key in base)
    assert AutoModelForCausalLM.from_pretrained(out)


def test_rows_longer_than_the_models_context_are_refused(run):
    with pytest.raises(UserError, match="longest row has 608 tokens, but the model's context is 512: set max_length"):
        run([{"prompt": "a" * 600 + "\n", "completion": "bcdefg"}], max_length=None)


def test_prompts_that_fill_max_length_are_refused(run):
    with pytest.raises(UserError, match="no row is left: every prompt alone fills max_length 8"):
        run(ROWS, max_length=8)


def test_accumulation_and_batch_size_are_the_same_training(run):
    """Batch 4 = 2 x accumulation 2, with completions of different lengths in a batch."""
    rows = [{"prompt": "p =>", "completion": " " + "x" * (1 + i % 7)} for i in range(16)]
    settings = {"optim": "sgd", "learning_rate": 0.5, "max_grad_norm": 0.0, "logging_steps": 1}
    one = load_file(run(rows, "a", per_device_train_batch_size=4, **settings)[1] / "adapter_model.safetensors")
    two = run(rows, "b", per_device_train_batch_size=2, gradient_accumulation_steps=2, **settings)[1]
    two = load_file(two / "adapter_model.safetensors")
    for key in one:
        torch.testing.assert_close(one[key], two[key], atol=1e-6, rtol=1e-4)


TWO = """
import hashlib, sys
from pipeline.stages import sft
from pipeline.config import DataArguments, ModelArguments, SFTStage
from safetensors.torch import save
base, out, batch = sys.argv[1:]
trainers = []
class Spy(sft.SFT):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs); trainers.append(self)
sft.SFT = Spy
sft.run(
    ModelArguments(model_name_or_path=base, lora_r=4), DataArguments(dataset="rows.jsonl"),
    SFTStage(output_dir=out, num_train_epochs=1, save_strategy="no", use_cpu=True, max_length=64, optim="sgd",
             learning_rate=0.5, max_grad_norm=0.0, per_device_train_batch_size=int(batch),
             lr_scheduler_type="constant"),
)
weights = {name: p.data.contiguous() for name, p in trainers[0].model.named_parameters() if p.requires_grad}
print("WEIGHTS", hashlib.sha256(save(weights)).hexdigest())
"""


@pytest.mark.slow
def test_two_processes_are_the_same_training_and_end_with_equal_weights(tmp_path, tiny_model_folder):
    """1 process x batch 4 = 2 processes x batch 2; both ranks hold the same bits; rank 0 alone speaks."""
    rows = [{"prompt": "p =>", "completion": " " + "x" * (1 + i % 7)} for i in range(16)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "two.py").write_text(TWO)
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    outputs = []
    for command, out, batch in (([sys.executable], "one", "4"), (launcher, "two", "2")):
        done = subprocess.run(
            [*command, "two.py", str(tiny_model_folder), out, batch],
            cwd=tmp_path,
            env=env,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        outputs.append(done.stdout)
    hashes = [line for line in outputs[1].splitlines() if line.startswith("WEIGHTS")]
    assert len(hashes) == 2 and len(set(hashes)) == 1
    assert outputs[1].count("The result lies in") == 1
    one, two = (load_file(tmp_path / out / "adapter_model.safetensors") for out in ("one", "two"))
    for key in one:
        torch.testing.assert_close(one[key], two[key], atol=1e-6, rtol=1e-4)


def test_the_recipe_runs_by_hand(warm, tmp_path, tiny_model_folder):
    """`python recipes/sft.py --config some.yaml --flag value`, and its errors are one line with exit code 2."""
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (tmp_path / "sft.yaml").write_text(
        f"model_name_or_path: {tiny_model_folder}\ndataset: rows.jsonl\noutput_dir: out\nmax_steps: 99\n"
        'save_strategy: "no"\nuse_cpu: true\nmax_length: 64\n'
    )
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [str(ROOT / "recipes/sft.py"), "--config", "sft.yaml", "--max_steps", "2"]
    first = subprocess.run([sys.executable, *command], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert first.returncode == 0, first.stderr[-2000:]
    assert "after 2 steps" in first.stdout and "rows.jsonl: 36 rows, none held out" in first.stdout
    assert "Warning" not in first.stderr
    second = warm.run(command, tmp_path)
    assert second.returncode == 2
    assert second.stderr.startswith("error: output_dir out already holds results") and second.stderr.count("\n") == 1
