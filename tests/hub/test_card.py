"""The model card: what it says of a run, that the Hub can read it, and that nothing from outside breaks out of it."""

import json
import math
import re
from pathlib import Path

import pytest
from card_pages import HOSTILE, Page, page_of
from finished_runs import make_run
from huggingface_hub import ModelCard, metadata_load
from huggingface_hub.utils import validate_repo_id
from PIL import Image
from saved import make_adapter

from pipeline.config import DataArguments, ModelArguments, SFTStage
from pipeline.errors import UserError
from pipeline.exam.exam import RewardArguments
from pipeline.hub.card import is_ours, read_run, write_card
from pipeline.models.provenance import LICENSES, license_fields, license_of, shareable
from pipeline.safety.markdown import MAX_BLOCK, block, figure, inline
from pipeline.stages import ppo, sft

ALICE = "/ho" + "me/alice/"  # a path of one machine, which no file of this project may hold
TRL = "https://github.com/huggingface/trl"


# --- what it says ---------------------------------------------------------------------------------------------------


def test_a_policys_card_by_pencil(tmp_path):
    path = write_card(make_run(tmp_path / "run"))
    assert path == tmp_path / "run/README.md" and is_ours(path.read_text())
    page, text = page_of(path), path.read_text()
    # every prompt scored the same: the interval is the mean itself
    assert page.row("bleu (reward, weight 0.5)")[1:] == [
        "0.250 [0.250, 0.250]", "0.750 [0.750, 0.750]", "0.500 [0.500, 0.500]", "0.300", "0.800"
    ]  # fmt: skip
    assert page.row("gold (referee)")[3] == "0.00 [0.00, 0.00]"
    assert page.row("length")[1:4] == ["8.00", "6.00", "-2.00"]  # no score for each prompt, so no interval
    assert page.row("base")[1:] == ["my-org/base", "not known"] and page.row("data")[1:] == [
        "my-org/data",
        "not known",
    ]
    assert (
        "KL to the start of the policy: 1.50 nats" in text and "64 completions, 512 tokens sampled, 1 h 2 min" in text
    )
    assert "2 CPU cores (x86_64)" in page.code and page.row("kl_coef")[1] == "0.03"
    assert "```text\nprompt 0\n```" in text and "```text\nafter 3\n```" in text
    assert "vonwerra2020trl" in text and "schulman2017ppo" in text
    assert "What was measured, and what was not" in text and "Not measured" in text


def test_the_metadata_is_exactly_what_was_meant(tmp_path):
    path = write_card(make_run(tmp_path / "run"), repo_id="me/mine-ppo", license="MIT")
    wanted = {
        "base_model": "my-org/base",
        "datasets": ["my-org/data"],
        "library_name": "peft",
        "license": "mit",
        "pipeline_tag": "text-generation",
        "tags": ["base_model:adapter:my-org/base", "lora", "plumbline", "ppo", "rlhf", "transformers", "trl"],
    }
    found = metadata_load(path)
    [index] = found.pop("model-index")
    assert found == wanted and index["name"] == "mine-ppo"
    [result] = index["results"]
    assert result["task"] == {"type": "text-generation"}
    assert result["dataset"] == {"type": "my-org/data", "name": "held-out rows of my-org/data"}
    values = {metric["name"]: metric["value"] for metric in result["metrics"]}
    assert values == {
        "bleu, sampled": 0.75,
        "gold, sampled": 0.5,
        "length, sampled": 6.0,
        "bleu, greedy": 0.8,
        "gold, greedy": 0.7,
        "KL to the start of the policy, nats a completion": 1.5,
    }
    # huggingface_hub reads the card, writes it and reads the same
    loaded = ModelCard.load(path)
    again = ModelCard(str(loaded))
    assert again.data.to_dict() == loaded.data.to_dict() and again.text == loaded.text
    assert len(loaded.data.eval_results) == 6


def test_a_reward_models_card(tmp_path):
    path = write_card(make_run(tmp_path / "run", "reward"), repo_id="me/judge")
    data, page = metadata_load(path), page_of(path)
    assert data["pipeline_tag"] == "text-classification" and "reward-model" in data["tags"]
    # 0.75 ± 1.96 · 0.05
    assert page.row("accuracy:")[1].startswith("0.750 [0.652, 0.848]")
    values = {metric["type"]: metric["value"] for metric in data["model-index"][0]["results"][0]["metrics"]}
    assert values == {"accuracy": 0.75, "log_loss": 0.5, "margin": 1.25, "calibration_error": 0.0625}
    assert 'AutoPeftModelForSequenceClassification.from_pretrained("me/judge", num_labels=1' in path.read_text()


def test_an_sft_card_with_and_without_held_out_rows(tmp_path):
    text = write_card(make_run(tmp_path / "a", "sft")).read_text()
    assert "a loss of 2.00 nats a token before, 1.50 after" in text
    path = write_card(make_run(tmp_path / "b", "sft", summary={"heldout_loss": None}))
    assert "nothing was measured on any" in path.read_text() and "model-index" not in metadata_load(path)


@pytest.mark.parametrize("algorithm", ["ppo", "a2c", "reinforce", "grpo", "rloo", "ilql"])
def test_each_method_is_cited(tmp_path, algorithm):
    text = write_card(make_run(tmp_path, summary={"algorithm": algorithm})).read_text()
    years = {
        "ppo": "schulman2017",
        "a2c": "mnih2016",
        "reinforce": "williams1992",
        "grpo": "shao2024",
        "rloo": "ahmadian",
        "ilql": "snell2023",
    }
    assert years[algorithm] in text and sum(name in text for name in years.values()) == 1
    assert algorithm in metadata_load(tmp_path / "README.md")["tags"] and f"({algorithm.upper()})" in text


def test_without_a_referee_the_card_says_so(tmp_path):
    text = write_card(make_run(tmp_path, config={"referee": None})).read_text()
    assert "There was no referee" in text


def test_figures_that_are_missing_or_no_numbers_are_left_out(tmp_path):
    summary = {
        "after": {"bleu": None, "gold": float("nan"), "length": True},
        "before": {},
        "greedy": None,
        "kl": math.inf,
    }
    path = write_card(make_run(tmp_path, summary=summary, samples=[{"prompt": None, "before": None}]))
    assert "model-index" not in metadata_load(path)
    assert page_of(path).row("bleu (")[1:4] == ["–", "–", "–"]


def test_curves_are_a_picture_beside_it(tmp_path):
    path = write_card(make_run(tmp_path))
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.format == "PNG" and picture.width > 300
    assert (tmp_path / "curves.png").stat().st_size < 200_000
    assert "![Curves over optimizer steps: score, kl, accuracy](curves.png)" in path.read_text()
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "score": 1.0}\n')  # a point is no curve
    write_card(tmp_path)
    assert not (tmp_path / "curves.png").exists() and "curves.png" not in path.read_text()


# --- what is not told, and what is kept -----------------------------------------------------------------------------


def test_no_path_of_this_machine_gets_into_the_card(tmp_path):
    config = {
        "dataset": ALICE + "data.jsonl",
        "output_dir": ALICE + "runs/ppo",
        "rewards": [{"name": "learned", "path": ALICE + "judge", "cmd": f"run {ALICE}x.py", "api_key": "hunter2"}],
        "adapter_path": "C:\\Users\\alice\\sft",
        "lora_target_modules": [ALICE + "x"],
    }
    for repo_id in (None, "me/mine"):
        path = write_card(make_run(tmp_path / "run", config=config, base=ALICE + "llama"), repo_id=repo_id)
        text = path.read_text()
        assert "alice" not in text and "Users" not in text and "hunter2" not in text
        data = metadata_load(path)
        assert "base_model" not in data and "datasets" not in data
        assert (
            page_of(path).row("base")[1] == "llama (not on the Hub)" and page_of(path).row("data")[1] == "data.jsonl"
        )


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (ALICE + "models/llama", "llama"),
        (ALICE + "models/llama/", "llama"),
        ("~/models/llama", "llama"),
        ("D:\\models\\llama", "llama"),
        ("file://" + ALICE + "x.jsonl", "x.jsonl"),
        (f"python {ALICE}judge.py --fast", "python judge.py --fast"),
        ("https://me:pass@host.example/a/b", "https://host.example/a/b"),
        ("runs/tiny/base", "runs/tiny/base"),
        ("my-org/base", "my-org/base"),
        ({"token": "x", "n": [1, ALICE + "y"]}, {"token": "(hidden)", "n": [1, "y"]}),
    ],
)
def test_shareable(value, shown):
    assert shareable(value) == shown


def test_a_local_base_is_not_taken_for_one_on_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # the folder is gone, but the run has a fingerprint of its weights
    run = make_run(tmp_path / "run", base="models/llama", summary={"base_fingerprint": "00ff"})
    assert "base_model" not in metadata_load(write_card(run))
    # or it is there
    Path("models/other").mkdir(parents=True)
    assert "base_model" not in metadata_load(write_card(make_run(tmp_path / "there", base="models/other")))
    # and a file of data is none on the Hub, also when it is gone
    path = write_card(make_run(tmp_path / "run2", config={"dataset": "data/pairs.jsonl"}))
    assert "datasets" not in metadata_load(path)
    assert metadata_load(path)["model-index"][0]["results"][0]["dataset"]["type"] == "held-out"


def test_licenses_come_from_the_readme_of_base_and_data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder, license in (("models/base", "license: cc-by-4.0"), ("data", "license: other\nlicense_name: my-own")):
        Path(folder).mkdir(parents=True)
        Path(folder, "README.md").write_text(f"---\n{license}\n---\n# x\n")
    Path("models/base/config.json").write_text("{}")
    Path("models/base/model.safetensors").touch()
    run = make_run(tmp_path / "run", base="models/base", config={"dataset": "data/pairs.jsonl"})
    Path("data/pairs.jsonl").touch()
    (run / "adapter_model.safetensors").touch()
    page = page_of(write_card(run))
    assert page.row("base")[2] == "cc-by-4.0" and page.row("data")[2] == "my-own"
    page = page_of(write_card(run, base_license="apache-2.0", data_license="mit", license="cc0-1.0"))
    assert [page.row(name)[2] for name in ("base", "data", "this model")] == ["apache-2.0", "mit", "cc0-1.0"]
    Path("models/base/README.md").write_text("---\nlicense: [unclosed\n---\n")
    assert license_of("models/base") is None


def test_the_hub_knows_the_license(tmp_path):
    assert license_fields("Apache-2.0") == {"license": "apache-2.0"} and "apache-2.0" in LICENSES
    assert license_fields("My Own! 1.0") == {"license": "other", "license_name": "my-own-1.0"}
    assert license_fields(None) == {}


def test_a_card_that_somebody_edited_stays(tmp_path, capsys):
    path = write_card(make_run(tmp_path), license="mit")
    assert metadata_load(write_card(tmp_path, repo_id="me/x"))["license"] == "mit"  # kept from the older card
    edited = path.read_text().replace("# x", "# x, my pride")
    path.write_text(edited)
    write_card(tmp_path)
    assert path.read_text() == edited and "edited by hand" in capsys.readouterr().out
    write_card(tmp_path, force=True)
    assert "my pride" not in path.read_text()


def test_a_folder_that_is_no_run_and_a_name_that_is_none(tmp_path):
    with pytest.raises(UserError, match="has no summary.json"):
        write_card(tmp_path)
    with pytest.raises(UserError, match="repo_id .* cannot be a name on the Hub"):
        write_card(make_run(tmp_path / "run"), repo_id='x"); evil("')
    assert not (tmp_path / "run/README.md").exists()


# --- nothing gets out of its place ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "evil"),
    [("policy", evil) for evil in HOSTILE]
    + [(kind, HOSTILE[i]) for kind in ("reward", "sft") for i in (0, 10, 12, 16)],
)
def test_hostile_text_stays_text(tmp_path, evil, kind):
    summary = {"hardware": evil, "dtype": evil, "started_from": evil}
    if kind == "policy":
        scores = {evil: 0.5, "bleu": 0.1}
        summary |= {
            "before": scores,
            "after": scores,
            "greedy": {"before": scores, "after": scores},
            "algorithm": evil,
        }
    samples = [{"prompt": p, "before": evil, "after": evil, "scores_before": {evil: 0.5}, "scores_after": {evil: 0.5}}
               for p in (evil, [{"role": evil, "content": evil}])]  # fmt: skip
    config = {
        "dataset": evil,
        "output_dir": evil,
        "rewards": [{"name": evil, "weight": evil, evil: evil}, evil] if kind == "policy" else None,
        "referee": evil,
        "lr_scheduler_type": evil,
        "lora_target_modules": [evil],
        "versions": {evil: evil},
    }
    run = make_run(tmp_path / "run", kind, summary, config, samples, base=evil)
    (run / "metrics.jsonl").unlink()  # no picture: it takes its time, and shows nothing of this
    path = write_card(run, license=evil, base_license=evil, data_license=evil)
    text = path.read_bytes().decode("utf-8")
    assert is_ours(text)
    # the metadata is a mapping with the keys that are ours, and ends where it should
    data = ModelCard.load(path).data.to_dict()
    ours = {"library_name", "license", "license_name", "model-index", "pipeline_tag", "tags"}
    assert set(data) == ours and data["license"] == "other" and re.fullmatch("[a-z0-9.-]+", data["license_name"])
    assert re.fullmatch("[A-Za-z0-9-]+", data["model-index"][0]["name"]) and "evil" not in str(data["tags"])
    assert ModelCard.load(path).text.startswith("\n# ")
    # no element that is not ours
    page = Page(ModelCard.load(path).text)
    assert {tag for tag, _ in page.elements} <= set(
        "h1 h2 h3 p a strong em table thead tbody tr th td ul li pre code img".split()
    )
    assert [a for tag, a in page.elements if tag == "a"] == [{"href": TRL}]
    assert all(a["src"] == "curves.png" and set(a) == {"src", "alt"} for tag, a in page.elements if tag == "img")
    assert all(set(a) <= {"class", "style", "href", "src", "alt"} for _, a in page.elements)
    # and what came from outside stands in code alone, in full
    outside = page.outside.replace(data["model-index"][0]["name"], "")  # the folder's name: letters and hyphens
    assert "evil" not in outside.lower() and "live" not in outside and not page.inside
    assert page.row("lr_scheduler_type")[1]
    assert any("evil" in code or "live" in code for code in page.code)
    assert not any(character in text for character in "\x00\x1b\u202e\u2066")


@pytest.mark.parametrize("evil", HOSTILE)
def test_a_value_is_shown_in_full(evil):
    """In a table's cell and as a block: what is read is what was given, but for white space and invisible things."""
    unseen = "[\x00\x0b\x0c\x1b\x85\u202e\u2066\ud800]"
    page = Page(f"| a | b |\n|---|---|\n| {inline(evil)} | last |\n")
    first, last = page.rows[1]
    assert last == "last"
    assert re.sub(r"\s", "", first) == re.sub(unseen, "\ufffd", re.sub(r"\s", "", evil))
    page = Page(f"before\n\n{block(evil)}\n\nafter")
    assert page.code == [re.sub(unseen, "\ufffd", re.sub("\r\n?|\u2028", "\n", evil)) + "\n"]
    assert page.outside.split() == ["before", "after"]


def test_long_values_are_cut():
    assert len(block("x" * 9000)) < MAX_BLOCK + 40 and len(inline("y" * 9000)) < 260


def test_figures():
    shown = [figure(x) for x in (0.5, 12.345, 1234.5, 7, 0.00001234, -0.5, None, math.nan, "<b>", True)]
    assert shown == ["0.500", "12.3", "1,234", "7", "1.2e-05", "-0.500", "–", "–", "–", "–"]


# --- the stages write it --------------------------------------------------------------------------------------------


def valid(path: Path) -> dict:
    """The Hub's rules that can be held without it: names, license, a complete model-index."""
    data = metadata_load(path)
    for name in [data.get("base_model"), *data.get("datasets", [])]:
        if name is not None:
            validate_repo_id(name)
    assert data.get("license", "mit") in LICENSES | {"other"}
    assert all(isinstance(tag, str) for tag in data["tags"])
    for index in data.get("model-index", []):
        assert index["name"] and index["results"]
        for result in index["results"]:
            assert result["task"]["type"] and result["dataset"]["type"] and result["dataset"]["name"]
            assert all(metric["type"] and math.isfinite(metric["value"]) for metric in result["metrics"])
    return data


def test_sft_and_ppo_leave_a_card(tmp_path, tiny_model_folder, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [{"prompt": f"say {w} =>\n", "completion": f"It is {w}.", "facts": [w]} for w in "abcdefgh"]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    model = ModelArguments(model_name_or_path=str(tiny_model_folder), lora_r=2)
    data = DataArguments(dataset="rows.jsonl", eval_fraction=0.25)
    common = {"max_steps": 2, "per_device_train_batch_size": 2, "save_strategy": "no", "use_cpu": True}
    sft.run(model, data, SFTStage(output_dir="runs/x/sft", max_length=64, **common))
    found = valid(Path("runs/x/sft/README.md"))
    assert found["library_name"] == "peft" and found["model-index"][0]["name"] == "x-sft"

    model = ModelArguments(model_name_or_path=str(tiny_model_folder), adapter_path="runs/x/sft")
    rewards = RewardArguments(rewards=[{"name": "keyword", "column": "facts"}], eval_samples=2, show_samples=0)
    config = ppo.PPOStage(output_dir="runs/x/ppo", max_completion_length=8, num_iterations=1, **common)
    ppo.run(model, data, rewards, config)
    text = Path("runs/x/ppo/README.md").read_text()
    found = valid(Path("runs/x/ppo/README.md"))
    assert (
        is_ours(text) and "ppo" in found["tags"] and re.search(r"\d CPU cores?\b", text) and str(tmp_path) not in text
    )
    assert {metric["type"] for metric in found["model-index"][0]["results"][0]["metrics"]} >= {"keyword", "kl"}
    summary = read_run("runs/x/ppo").summary
    assert summary["base"] == str(tiny_model_folder) and summary["started_from"] == "runs/x/sft"
    assert summary["dtype"] == "float32" and len(summary["base_fingerprint"]) == 16
    assert str(tiny_model_folder.parent) not in text


def test_pefts_empty_form_is_replaced(tmp_path, tiny_model_folder):
    run = make_run(tmp_path / "run", "sft")
    make_adapter(tiny_model_folder, run)
    assert "[More Information Needed]" in (run / "README.md").read_text()
    text = write_card(run).read_text()
    assert "[More Information Needed]" not in text and is_ours(text)
