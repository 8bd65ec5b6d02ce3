"""The evaluation stage from models to files, on random Llamas: who speaks, what is written, what is refused."""

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import toy
import yaml
from conftest import build_tokenizer
from eval_world import PROMPTS, arguments, make_world, size
from peft import PeftModel
from transformers import AutoModelForCausalLM

from pipeline.cli import parse
from pipeline.errors import UserError
from pipeline.eval import stage
from pipeline.eval.rows import load_rows
from pipeline.eval.tables import markdown
from pipeline.exam import evaluation
from pipeline.models import loading as models
from rewards import Perplexity

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def world(tmp_path_factory, tiny_model_folder) -> Path:
    return make_world(tmp_path_factory.mktemp("eval"), tiny_model_folder)


@pytest.fixture(scope="module")
def result(world, tiny_model_folder, tmp_path_factory):
    """One evaluation with everything in it: folder, summary, rows, and how often a base was loaded."""
    output = tmp_path_factory.mktemp("results") / "all"
    candidates = [{"base": str(tiny_model_folder)}, {"one": str(world / "one")}]
    candidates += [{"name": f"other={world / 'other'}"}, {"name": str(world / "two")}]
    loaded, load_base = [], models.load_base
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "load_base", lambda *a, **k: loaded.append(k["base"]) or load_base(*a, **k))
        summary = stage.run(
            arguments(
                world,
                tiny_model_folder,
                output,
                candidates=candidates,
                rewards=["eval_world:size", {"name": "eval_world:some", "log_name": "half"}],
                judges=["eval_world:more_bytes"],
                sharpened=False,  # tests/eval/test_sharpened.py
            )
        )
    rows = [json.loads(line) for line in (output / "rows.jsonl").read_text().splitlines()]
    return output, summary, rows, loaded


def alone(world: Path, base: Path, name: str):
    """A candidate loaded on its own, by transformers and PEFT."""
    if name == "other":
        return AutoModelForCausalLM.from_pretrained(world / "other").eval()
    model = AutoModelForCausalLM.from_pretrained(base)
    return (model if name == "base" else PeftModel.from_pretrained(model, world / name)).eval()


@pytest.mark.parametrize("name", ["base", "one", "two", "other"])
def test_each_candidate_says_what_it_says_alone(result, world, tiny_model_folder, name):
    model, tokenizer = alone(world, tiny_model_folder, name), build_tokenizer()
    for decoding, temperature in (("greedy", 0), ("sampled", 0.8)):
        ids = evaluation.complete(model, tokenizer, PROMPTS, 12, [2], temperature, batch_size=4, seed=3)
        texts = tokenizer.batch_decode(ids, skip_special_tokens=True)
        entries = [row["candidates"][name][decoding] for row in result[2]]
        assert [entry["completion"] for entry in entries] == texts
        assert [entry["length"] for entry in entries] == [len(row) for row in ids]
        assert [entry["finished"] for entry in entries] == [row[-1] == 2 for row in ids]
    said = {row["candidates"][other]["greedy"]["completion"] for row in result[2] for other in row["candidates"]}
    assert len(said) > len(PROMPTS)  # they do differ


def test_one_base_in_memory_for_all_of_its_adapters(result, world, tiny_model_folder):
    assert result[3] == [str(world / "other"), str(tiny_model_folder)]  # the reference's base comes last


@pytest.mark.parametrize("name", ["base", "two", "other"])
def test_kl_by_hand(result, world, tiny_model_folder, name):
    tokenizer = build_tokenizer()
    mine, reference = (alone(world, tiny_model_folder, which) for which in (name, "one"))
    ids = evaluation.complete(mine, tokenizer, PROMPTS, 12, [2], 0.8, batch_size=4, seed=3)
    wanted = []
    for prompt, answer in zip(PROMPTS, ids, strict=True):
        prompt_ids = tokenizer(prompt)["input_ids"]
        each = [toy.hand_logprobs(model, prompt_ids, answer, 0.8).sum() for model in (mine, reference)]
        wanted.append((each[0] - each[1]).item())
    assert [row["candidates"][name]["sampled"]["kl"] for row in result[2]] == pytest.approx(wanted, abs=1e-3)
    figures = result[1]["candidates"][name]
    assert figures["sampled"]["kl"]["value"] == pytest.approx(sum(wanted) / 6, abs=1e-3)
    assert "kl" not in figures["greedy"] and "kl" not in result[1]["candidates"]["one"]["sampled"]


@pytest.mark.parametrize("name", ["base", "two", "other"])
def test_perplexity_is_that_of_the_references_base(result, tiny_model_folder, name):
    scorer, tokenizer = Perplexity(path=str(tiny_model_folder), device="cpu"), build_tokenizer()
    texts = [row["candidates"][name]["greedy"]["completion"] for row in result[2]]
    lengths = [len(tokenizer(text)["input_ids"]) for text in texts]
    nats = [-score * length for score, length in zip(scorer(PROMPTS, texts), lengths, strict=True)]
    found = result[1]["candidates"][name]["greedy"]["perplexity"]
    assert found["value"] == pytest.approx(math.exp(sum(nats) / sum(lengths)), rel=1e-4)
    assert result[1]["perplexity_model"] == str(tiny_model_folder)


def test_the_summary_is_made_of_the_rows(result):
    output, summary, rows, _ = result
    assert json.loads((output / "summary.json").read_text()) == summary
    for name, figures in summary["candidates"].items():
        for decoding in ("greedy", "sampled"):
            entries = [row["candidates"][name][decoding] for row in rows]
            assert [e["scores"]["size"] for e in entries] == size(PROMPTS, [e["completion"] for e in entries])
            for figure, column in (
                ("size", [e["scores"]["size"] for e in entries]),
                ("length", [e["length"] for e in entries]),
                ("finished", [e["finished"] for e in entries]),
            ):
                found = figures[decoding][figure]
                assert found["value"] == pytest.approx(sum(column) / 6) and found["prompts"] == 6
                assert found["low"] <= found["value"] <= found["high"]
            assert figures[decoding]["half"]["value"] == 1.0 and figures[decoding]["half"]["prompts"] == 3
    assert [row["prompt"] for row in rows] == PROMPTS


def test_every_candidate_is_compared_with_the_reference(result):
    _, summary, rows, _ = result
    found = {(c["candidate"], c["decoding"], c["measure"]): c for c in summary["comparisons"]}
    assert {key[0] for key in found} == {"base", "other", "two"} and {c["against"] for c in found.values()} == {"one"}
    for decoding in ("greedy", "sampled"):
        mine, theirs = ([row["candidates"][name][decoding] for row in rows] for name in ("two", "one"))
        differences = [a["length"] - b["length"] for a, b in zip(mine, theirs, strict=True)]
        assert found["two", decoding, "length"]["difference"] == pytest.approx(sum(differences) / 6)
        scores = [(a["scores"]["size"], b["scores"]["size"]) for a, b in zip(mine, theirs, strict=True)]
        wins, ties = sum(a > b for a, b in scores), sum(a == b for a, b in scores)
        won = found["two", decoding, "size"]["wins"]
        assert (won["wins"], won["ties"], won["losses"]) == (wins, ties, 6 - wins - ties)
        judged = found["two", decoding, "more_bytes"]
        sizes = [(len(a["completion"]), len(b["completion"])) for a, b in zip(mine, theirs, strict=True)]
        assert judged["wins"]["rate"] == pytest.approx(sum((a > b) + 0.5 * (a == b) for a, b in sizes) / 6)
        assert judged["difference"] is None and 0 < judged["p"] <= 1
        assert found["two", decoding, "length"]["wins"] is None  # longer is neither better nor worse
    tests = [c for c in found.values() if c["p"] is not None]
    assert summary["tests"] == len(tests) and all(c["p"] <= c["p_holm"] <= 1 for c in tests)
    assert min(c["p_holm"] for c in tests) == pytest.approx(min(1.0, len(tests) * min(c["p"] for c in tests)))


def test_what_a_person_reads(result, capsys):
    output, summary, _, _ = result
    text = (output / "table.md").read_text()
    for words in ("| size |", "| kl |", "two against one, sampled", f"the {summary['tests']} tests", "a tie half"):
        assert words in text
    odd = json.loads(json.dumps(summary).replace('"size"', '"[red]si|ze"'))
    assert "[red]si\\|ze" in markdown(odd)
    stage.show(odd)
    printed = capsys.readouterr().out
    assert "[red]si|ze" in printed and max(map(len, printed.splitlines())) <= 80


def test_rewards_are_raw_and_the_same_settings_give_the_same_figures(world, tiny_model_folder, tmp_path):
    """`clip` and `normalize` are for training."""
    first = stage.run(arguments(world, tiny_model_folder, tmp_path / "a"))
    config = str(tmp_path / "a" / "config.yaml")
    (again,) = parse(stage.EvalArguments, argv=["--config", config, "--output_dir", str(tmp_path / "b")])
    second = stage.run(again)
    assert first | {"seconds": 0} == second | {"seconds": 0}
    rows = [json.loads(line) for line in (tmp_path / "a" / "rows.jsonl").read_text().splitlines()]
    for entry in (row["candidates"]["two"]["greedy"] for row in rows):
        assert entry["scores"]["size"] == size([], [entry["completion"]])[0]
    with pytest.raises(UserError, match="already holds results and is never overwritten"):
        stage.run(arguments(world, tiny_model_folder, tmp_path / "a"))


def test_meaning_representations_of_a_csv(world, tiny_model_folder, tmp_path):
    changes = {
        "dataset": str(world / "mrs.csv"),
        "referee": "e2e",
        "rewards": [{"name": "keyword", "column": "facts"}],
    }
    summary = stage.run(arguments(world, tiny_model_folder, tmp_path / "mr", **changes))
    assert summary["prompts"] == 3
    rows = [json.loads(line) for line in (tmp_path / "mr" / "rows.jsonl").read_text().splitlines()]
    assert rows[1]["prompt"] == "NAME areaRiverside =>\n"
    errors = [[row["candidates"][name]["greedy"]["scores"]["slot_errors"] for row in rows] for name in ("two", "one")]
    [compared] = [
        c
        for c in summary["comparisons"]
        if (c["candidate"], c["decoding"], c["measure"]) == ("two", "greedy", "slot_errors")
    ]
    assert compared["wins"]["wins"] == sum(a < b for a, b in zip(*errors, strict=True))  # fewer errors win
    assert summary["candidates"]["one"]["greedy"]["corpus_bleu"]["prompts"] == 3


def test_one_line_for_each_different_representation(world, tiny_model_folder, tmp_path, capsys):
    outputs = tmp_path / "two.txt"
    changes = {
        "candidates": [{"name": str(world / "two")}],
        "outputs": str(outputs),
        "dataset": str(world / "mrs.csv"),
    }
    args = arguments(world, tiny_model_folder, None, **changes)
    assert stage.run(args) == {} and "3 greedy answers" in capsys.readouterr().out
    model, tokenizer = alone(world, tiny_model_folder, "two"), build_tokenizer()
    prompts = [row["prompt"] for row in load_rows(stage.DataArguments(str(world / "mrs.csv")))]
    texts = tokenizer.batch_decode(evaluation.complete(model, tokenizer, prompts, 12, [2], 0, 4), True)
    lines = outputs.read_text(encoding="utf-8").split("\n")
    assert lines.pop() == "" and lines == [" ".join(text.splitlines()).strip() for text in texts]
    with pytest.raises(UserError, match="exists and is never overwritten"):
        stage.run(args)
    with pytest.raises(UserError, match="it wants one candidate"):
        stage.run(arguments(world, tiny_model_folder, None, outputs=str(tmp_path / "x.txt")))
    with pytest.raises(UserError, match="there is no folder"):
        stage.run(arguments(world, tiny_model_folder, None, **changes | {"outputs": str(tmp_path / "no" / "x.txt")}))


def greedy(world, base, tmp_path, name: str, rows: list[dict], **changes) -> tuple[list[dict], Path]:
    """What `outputs` writes about rows of our own, read back."""
    (tmp_path / "asked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    outputs = tmp_path / name
    changes = {"candidates": [{"name": str(world / "two")}], "dataset": str(tmp_path / "asked.jsonl")} | changes
    stage.run(arguments(world, base, None, outputs=str(outputs), **changes))
    lines = outputs.read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines], outputs


def test_json_lines_with_prompt_and_completion(world, tiny_model_folder, tmp_path):
    """Columns that nobody asks for may be there, such as a benchmark's own; letters and line breaks stay."""
    rows = [{"prompt": prompt, "key": i, "kwargs": [{}, {"n": i}]} for i, prompt in enumerate(PROMPTS)]
    for name, asked in (("a.jsonl", rows), ("b.jsonl", [{"prompt": row["prompt"]} for row in rows])):
        who = {"candidates": [{"name": str(tiny_model_folder)}], "max_completion_length": 40}
        said, _ = greedy(world, tiny_model_folder, tmp_path, name, asked, **who)
        model, tokenizer = alone(world, tiny_model_folder, "base"), build_tokenizer()
        ids = evaluation.complete(model, tokenizer, PROMPTS, 40, [2], 0, 4)
        texts = tokenizer.batch_decode(ids, skip_special_tokens=True)
        assert said == [{"prompt": p, "completion": text} for p, text in zip(PROMPTS, texts, strict=True)]
    assert any(len(text.splitlines()) > 1 for text in texts)  # else this would show nothing


def test_texts_and_messages_go_through_the_chat_template(world, tiny_model_folder, tmp_path, capsys):
    shutil.copytree(tiny_model_folder, chat := tmp_path / "chat")
    (chat / "chat_template.jinja").write_text(
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    who = {"candidates": [{"name": str(chat)}]}
    texts = [{"prompt": text} for text in ("say w0", "a\nb")]
    messages = [{"prompt": [{"role": "user", "content": row["prompt"]}]} for row in texts]
    plain, _ = greedy(world, tiny_model_folder, tmp_path, "plain.jsonl", texts, **who)
    assert "note: the prompts are texts, and chat answers them as they stand; as_messages" in capsys.readouterr().out
    asked, _ = greedy(world, tiny_model_folder, tmp_path, "asked.out.jsonl", texts, as_messages=True, **who)
    given, _ = greedy(world, tiny_model_folder, tmp_path, "given.jsonl", messages, **who)
    assert "note: the prompts" not in capsys.readouterr().out
    # by hand: the same model asked with the text that the template makes
    by_hand = [{"prompt": f"<user>{row['prompt']}\n<assistant>"} for row in texts]
    wanted, _ = greedy(world, tiny_model_folder, tmp_path, "hand.jsonl", by_hand, **who)
    said = [row["completion"] for row in wanted]
    assert [row["completion"] for row in asked] == [row["completion"] for row in given] == said
    assert said != [row["completion"] for row in plain]
    assert [row["prompt"] for row in asked] == [row["prompt"] for row in texts]  # as they stand in the file
    assert [row["prompt"] for row in given] == [row["prompt"] for row in messages]


@pytest.mark.slow
def test_two_processes_write_once(world, tiny_model_folder, tmp_path):
    settings = arguments(world, tiny_model_folder, tmp_path / "out", judges=[], rewards=[{"name": "bleu"}])
    settings = {key: value for key, value in vars(settings).items() if value is not None}
    (tmp_path / "eval.yaml").write_text(yaml.safe_dump(settings))
    command = [sys.executable, "-m", "accelerate.commands.launch"]
    command += ["--config_file", str(ROOT / "recipes/accelerate/cpu2.yaml"), "--main_process_port", "0"]
    command += [str(ROOT / "recipes/eval.py"), "--config", str(tmp_path / "eval.yaml")]
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.count("The result lies in") == 1
    alone = stage.run(arguments(world, tiny_model_folder, tmp_path / "alone", judges=[], rewards=[{"name": "bleu"}]))
    together = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert together | {"seconds": 0} == alone | {"seconds": 0}
