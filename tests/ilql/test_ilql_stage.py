"""The ILQL stage end to end on a random Llama: data and rewards, what is saved, resuming, evaluation, chat, errors."""

import json

import pytest
import torch
import yaml
from conftest import build_tokenizer
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from toy import randomize
from transformers import AutoModelForCausalLM

from pipeline import report
from pipeline.chat import speakers
from pipeline.config import DataArguments, ModelArguments
from pipeline.errors import UserError
from pipeline.eval import sampling
from pipeline.eval import stage as eval_stage
from pipeline.exam import evaluation
from pipeline.exam.exam import RewardArguments
from pipeline.hub.parcel import parcel
from pipeline.ilql import data
from pipeline.ilql.config import ILQLStage
from pipeline.ilql.decoding import load_shift, shifted
from pipeline.runs.folder import read_heldout, read_metrics
from pipeline.stages import ilql as stage
from pipeline.stages import merge
from rewards import build_rewards

WORDS = [f"w{i}" for i in range(12)]
EOS = 2


def write(path, rows) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def ids(text: str) -> list[int]:
    return build_tokenizer()(text)["input_ids"]


@pytest.fixture(scope="module")
def world(tmp_path_factory, tiny_model_folder):
    """An SFT adapter, completions of two kinds for each word, and prompts that are held out."""
    folder = tmp_path_factory.mktemp("ilql")
    base = AutoModelForCausalLM.from_pretrained(tiny_model_folder)
    model = get_peft_model(base, LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
    randomize(model, "default", seed=1)
    model.save_pretrained(folder / "sft")
    rows = [{"prompt": f"say {w} =>\n", "facts": [w], "completion": f"It is {w}."} for w in WORDS]
    rows += [row | {"completion": "No, no", "finished": False} for row in rows]
    write(folder / "data.jsonl", rows)
    write(folder / "heldout.jsonl", [{"prompt": f"tell {w} =>\n", "facts": [w]} for w in WORDS[:3]])
    return folder


@pytest.fixture(scope="module")
def run(world, tiny_model_folder):
    def start(output, dataset="data.jsonl", rewards=None, adapter="sft", heldout="heldout.jsonl", **settings):
        defaults = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "per_device_train_batch_size": 4}
        defaults |= {"learning_rate": 1e-2, "max_completion_length": 6, "logging_steps": 1, "missing_eos_penalty": 1.0}
        defaults |= {"polyak": 0.9}  # or four steps would not be seen in what the target says
        return stage.run(
            ModelArguments(str(tiny_model_folder), adapter_path=adapter and str(world / adapter), dtype="float32"),
            DataArguments(dataset=str(world / dataset), eval_dataset=heldout and str(world / heldout)),
            RewardArguments(rewards=rewards or [{"name": "keyword", "column": "facts", "instant": True}]),
            ILQLStage(
                **{"output_dir": str(output), "use_cpu": True, "disable_tqdm": True, "seed": 3} | defaults | settings
            ),
        )

    return start


@pytest.fixture(scope="module")
def done(run, world):
    """A finished run. Do not write into it."""
    summary = run(world / "run", beta=50.0)
    return world / "run", summary


# ------------------------------------------------------------ data
def scored(rows, rewards, penalty=None):
    rows = data.tokenize(Dataset.from_list(rows), build_tokenizer(), 64)
    return data.score(rows, build_tokenizer(), build_rewards(rewards), penalty)


def test_rewards_are_paid_at_their_tokens_and_the_rest_at_the_end():
    """A keyword at the byte that completes it, what is not instant and the penalty at the last token."""
    row = {"prompt": "say\n", "facts": ["ab"], "completion": "x ab.", "finished": None}
    rewards = [{"name": "keyword", "column": "facts", "instant": True, "weight": 2.0}]
    rewards += [{"name": "length", "max": 2, "unit": "characters", "weight": 0.5}]
    found = scored([row, row | {"completion": "zz", "finished": False}], rewards, penalty=3.0)
    # five characters where two are allowed: a length of -1, which weighs a half
    assert found.rows["rewards"][0] == [0, 0, 0, 2, 0, -0.5]
    assert found.rows["completion_ids"][0] == [*ids("x ab."), EOS]
    # not finished: no end token, and the penalty
    assert found.rows["rewards"][1] == [0, -3] and found.rows["completion_ids"][1] == ids("zz")
    # scores 1.5 and -3
    assert found.means == {"keyword": 0.5, "length": -0.5, "score": -0.75} and found.std == 2.25


def test_running_statistics_are_those_of_all_the_data():
    rows = [{"prompt": "p\n", "completion": "x" * n} for n in (1, 2, 3, 6)]
    rewards = [{"name": "test_ilql_stage:size", "normalize": "running"}]
    found = scored(rows, rewards)
    # sizes 1, 2, 3, 6: mean 3, variance (4 + 1 + 0 + 9) / 4
    wanted = [(n - 3) / 3.5**0.5 for n in (1, 2, 3, 6)]
    assert [sum(row) for row in found.rows["rewards"]] == pytest.approx(wanted, abs=1e-5)


def size(prompts, completions, **columns) -> list[float]:
    return [float(len(text)) for text in completions]


def nothing(prompts, completions, **columns) -> list[None]:
    return [None] * len(completions)


def test_conversations_end_with_the_end_token():
    turns = [{"role": "user", "content": "ab"}]
    row = {"prompt": turns, "completion": [{"role": "assistant", "content": "cd"}]}
    found = data.tokenize(Dataset.from_list([row]), build_tokenizer(), 64)[0]
    assert found["prompt_ids"] == ids("<user>ab<assistant>") and found["completion_ids"] == [*ids("cd"), EOS]


# ------------------------------------------------------------ the run
def test_what_lies_in_the_folder(done, world, tiny_model_folder):
    folder, summary = done
    assert summary == json.loads((folder / "summary.json").read_text())
    names = {str(path.relative_to(folder)) for path in folder.rglob("*")}
    assert names >= {"adapter_model.safetensors", "values/adapter_model.safetensors", "values/heads.safetensors"}
    assert names >= {"values/ilql.json", "config.yaml", "samples.jsonl", "report.html", "README.md"}
    assert not [name for name in names if name.endswith((".bin", ".pkl"))]
    # the policy is the SFT adapter, to the bit, and an ordinary one
    ours, sft = (load_file(path / "adapter_model.safetensors") for path in (folder, world / "sft"))
    assert ours.keys() == sft.keys() and all(torch.equal(ours[key], sft[key]) for key in ours)
    PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model_folder), str(folder))
    # a word stands in half of the completions; the others are cut, which costs 1
    assert summary["data"]["keyword"] == pytest.approx(0.5) and summary["data"]["score"] == pytest.approx(0.0)
    samples = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    assert summary["kl"] > 0 and any(row["before"] != row["after"] for row in samples)
    assert [row["step"] for row in read_heldout(folder)] == [0, 4]
    assert {"loss/q", "loss/v", "loss/conservative", "q", "values"} <= set(read_metrics(folder)[0])


def test_a_stopped_run_goes_on_to_the_same_bits(done, run, world):
    folder, _ = done
    run(world / "again", beta=50.0, resume_from_checkpoint=str(folder / "checkpoint-2"))
    for name in ("values/adapter_model.safetensors", "values/heads.safetensors"):
        whole, again = load_file(folder / name), load_file(world / "again" / name)
        assert all(torch.equal(whole[key], again[key]) for key in whole), name
    clocks = ("train_runtime", "per_second")
    rows = [
        [{k: v for k, v in row.items() if not any(c in k for c in clocks)} for row in read_metrics(path)]
        for path in (folder, world / "again")
    ]
    assert rows[0][2:] == rows[1]


def test_the_report_shows_the_losses_and_what_changed(done):
    page = report.write_report(done[0], done[0].parent / "page.html").read_text()
    for word in ("loss/q", "loss/v", "loss/conservative", "explained_variance", "KL to the reference"):
        assert word in page, word
    assert "mean over tokens of the expectile loss" in page
    card = (done[0] / "README.md").read_text()
    assert "(ILQL)" in card and "snell2023offline" in card and "values/" in card and "none sampled" in card


def test_the_evaluation_decodes_with_the_shift(done, world, tiny_model_folder):
    folder, summary = done
    found = eval_stage.run(
        eval_stage.EvalArguments(
            candidates=[{"sft": str(world / "sft")}, {"ilql": str(folder)}],
            dataset=str(world / "heldout.jsonl"),
            output_dir=str(world / "eval"),
            rewards=[{"name": "keyword", "column": "facts"}],
            max_completion_length=6,
            seed=3,
            dtype="float32",
            use_cpu=True,
        )
    )
    answers = [json.loads(line)["candidates"] for line in (world / "eval/rows.jsonl").read_text().splitlines()]
    samples = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    assert [row["ilql"]["sampled"]["completion"] for row in answers] == [row["after"] for row in samples]
    assert [row["sft"]["sampled"]["completion"] for row in answers] == [row["before"] for row in samples]
    kl = [row["ilql"]["sampled"]["kl"] for row in answers]
    assert sum(kl) / len(kl) == pytest.approx(summary["kl"], abs=1e-3)
    assert {"sft", "ilql"} <= set(found["candidates"])


def test_the_chat_speaks_with_the_shift(done, tiny_model_folder):
    loaded = speakers.load_run(str(done[0]))
    assert [speaker.name for speaker in loaded.speakers] == ["base", "SFT", "ILQL"]
    prompt = "tell w0 =>\n"
    base = AutoModelForCausalLM.from_pretrained(tiny_model_folder)
    model = PeftModel.from_pretrained(base, str(done[0])).eval()
    with shifted(model, load_shift(model, done[0] / "values", "x")):
        wanted = evaluation.complete(model, build_tokenizer(), [prompt], 6, [EOS], temperature=0)[0]
    answers, _ = speakers.answer(loaded, [prompt] * 3, {"prompt": prompt, "facts": ["w0"]}, 0.0, 0)
    assert answers[2].text == build_tokenizer().decode(wanted, skip_special_tokens=True)
    assert answers[2].text != answers[1].text


def test_a_push_takes_the_values_along_and_a_merge_is_refused(done):
    files = parcel("policy", done[0], "me/x").files
    assert {"values/heads.safetensors", "values/ilql.json", "values/adapter_config.json"} <= set(files)
    with pytest.raises(UserError, match="is a run of ILQL, whose Q and V shift"):
        merge.merge(merge.MergeArguments(run=str(done[0]), output=str(done[0].parent / "merged")))


# ------------------------------------------------------------ refusals
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"adapter": None}, "adapter_path is not set: ILQL shifts the logits of a policy"),
        ({"heldout": None}, "eval_dataset is not set"),
        ({"heldout": "data.jsonl"}, "every held-out row is in the training data too"),
        ({"max_length": 3}, "more than max_length 3 tokens"),
        ({"rewards": [{"name": "test_ilql_stage:nothing"}]}, "no reward scored any completion"),
        ({"rewards": [{"name": "length", "max": 99}], "missing_eos_penalty": None}, "the same score"),
        ({"dataset": "texts.jsonl"}, "has no columns prompt and completion, which Q-learning wants"),
        ({"dataset": "odd.jsonl"}, "row 1: finished is 'yes', but wants true or false"),
        ({"max_completion_length": 600}, "the model's context is 512"),
    ],
)
def test_what_will_not_do_is_said_in_a_sentence(run, world, tmp_path, changes, words):
    write(world / "texts.jsonl", [{"text": "one"}, {"text": "two"}])
    write(world / "odd.jsonl", [{"prompt": "a\n", "completion": "b", "facts": ["b"], "finished": "yes"}])
    with pytest.raises(UserError, match=words):
        run(tmp_path / "out", **changes)
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


# ------------------------------------------------------------ samples
def test_samples_are_completions_of_the_run_with_the_columns_of_their_rows(world, tmp_path, capsys):
    settings = {"run": str(world / "sft"), "dataset": str(world / "heldout.jsonl"), "use_cpu": True}
    settings |= {"samples_per_prompt": 2, "max_completion_length": 5, "dtype": "float32", "batch_size": 4}
    path = sampling.run(sampling.SampleArguments(**settings, output=str(tmp_path / "new/samples.jsonl")))
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["facts"] for row in rows] == [[w] for w in WORDS[:3] for _ in range(2)]
    assert {type(row["finished"]) for row in rows} == {bool} and len({row["completion"] for row in rows}) > 3
    assert "6 completions" in capsys.readouterr().out
    with pytest.raises(UserError, match="exists and is never overwritten"):
        sampling.run(sampling.SampleArguments(**settings, output=str(path)))


def test_the_recipes_parse_strictly(monkeypatch):
    from recipe_files import ROOT

    from pipeline.cli import parse

    monkeypatch.chdir(ROOT)
    (args,) = parse(sampling.SampleArguments, argv=["--config", "recipes/tiny/sample.yaml"])
    ilql = yaml.safe_load((ROOT / "recipes/tiny/ilql.yaml").read_text())
    assert args.output == ilql["dataset"] and args.run == ilql["adapter_path"]
