"""The evaluation stage from models to files, on random Llamas: who speaks, what is written, what is refused."""

import csv
import importlib.util
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import toy
import yaml
from conftest import build_model, build_tokenizer
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from pipeline.cli import parse
from pipeline.errors import UserError
from pipeline.eval import stage
from pipeline.eval.candidates import read_candidates
from pipeline.eval.rows import line_of, load_rows
from pipeline.eval.tables import fit, markdown, number
from pipeline.exam import evaluation
from pipeline.models import loading as models
from rewards import Perplexity, RewardError

ROOT = Path(__file__).resolve().parents[2]
PROMPTS = ["say w0 =>\n", "say a longer word =>\n", "w2\n", "one\n", "say w4 again\n", "x\n"]
MRS = [
    "name[Aromi], eatType[pub], near[The Mill]",
    "name[Zizzi], area[riverside]",
    "name[Aromi], eatType[pub], near[The Mill]",
    "name[Aromi], food[Italian], customer rating[low]",
]


def size(prompts, completions, **columns) -> list[float]:
    return [float(len(text)) for text in completions]


def some(prompts, completions, **columns) -> list[float | None]:
    return [None if i % 2 else 1.0 for i in range(len(completions))]


def more_bytes(prompts, completions_a, completions_b, facts, references) -> list[float]:
    sides = zip(completions_a, completions_b, strict=True)
    return [float(len(a) > len(b)) if len(a) != len(b) else 0.5 for a, b in sides]


def save_adapter(base: Path, folder: Path, seed: int) -> Path:
    model = AutoModelForCausalLM.from_pretrained(base)
    settings = LoraConfig(r=2, lora_alpha=4, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(model, settings)
    toy.randomize(model, "default", seed, scale=1.0)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def world(tmp_path_factory, tiny_model_folder) -> Path:
    """A folder with two adapters on the tiny base, a model of its own, and prompts."""
    folder = tmp_path_factory.mktemp("eval")
    for name, seed in (("one", 1), ("two", 2)):
        save_adapter(tiny_model_folder, folder / name, seed)
    build_model(seed=7).save_pretrained(folder / "other")
    build_tokenizer().save_pretrained(folder / "other")
    rows = [{"prompt": prompt, "facts": [prompt[:1]], "references": [prompt.strip()]} for prompt in PROMPTS]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with (folder / "mrs.csv").open("w", newline="") as file:
        csv.writer(file).writerows(
            [["mr", "ref"], *([mr, f"Aromi is\nby The Mill{end}"] for mr, end in zip(MRS, ".,!?", strict=True))]
        )
    return folder


def arguments(world: Path, base: Path, output: Path | None, **changes) -> stage.EvalArguments:
    settings = {
        "candidates": [{"base": str(base)}, {"one": str(world / "one")}, {"two": str(world / "two")}],
        "reference": "one",
        "dataset": str(world / "prompts.jsonl"),
        "output_dir": output and str(output),
        "rewards": [{"name": "test_eval_stage:size", "clip": [0, 1], "normalize": "running"}],
        "max_completion_length": 12,
        "temperature": 0.8,
        "eval_batch_size": 4,
        "seed": 3,
        "dtype": "float32",
        "use_cpu": True,
    }
    return stage.EvalArguments(**settings | changes)


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
                rewards=["test_eval_stage:size", {"name": "test_eval_stage:some", "log_name": "half"}],
                judges=["test_eval_stage:more_bytes"],
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


def test_rows_of_meaning_representations(world, tmp_path):
    rows = load_rows(stage.DataArguments(str(world / "mrs.csv")))
    assert [row["mr"] for row in rows] == [MRS[0], MRS[1], MRS[3]]
    assert rows[0]["prompt"] == "NAME eatTypePub NEAR =>\n"
    assert rows[0]["references"] == ["NAME is by NEAR.", "NAME is by NEAR!"] and rows[2]["names"] == ["NAME"]
    assert len(load_rows(stage.DataArguments(str(world / "mrs.csv")), limit=2)) == 2
    (tmp_path / "bad.csv").write_text('mr\n"name[Aromi]"\n"colour[red]"\n')
    with pytest.raises(UserError, match=r"bad.csv, row 2: meaning representation 'colour\[red\]'"):
        load_rows(stage.DataArguments(str(tmp_path / "bad.csv")))
    (tmp_path / "gap.jsonl").write_text('{"prompt": "a"}\n{"prompt": " "}\n')
    assert len(load_rows(stage.DataArguments(str(tmp_path / "gap.jsonl")))) == 1
    with pytest.raises(UserError, match="outputs wants an answer to every row, but .*prompt is empty"):
        load_rows(stage.DataArguments(str(tmp_path / "gap.jsonl")), complete=True)


def test_an_answer_on_one_line_with_its_names():
    row = {"mr": MRS[0], "prompt": "NAME eatTypePub NEAR =>\n"}
    assert line_of(" NAME is a pub\nnear NEAR.\r\nNAMED\u2028so ", row) == "Aromi is a pub near The Mill. NAMED so"
    assert line_of("NAME is\na pub", row | {"prompt": "describe the pub"}) == "NAME is a pub"
    assert line_of("NAME\nis", {"prompt": "p", "mr": "of another kind"}) == "NAME is"
    assert line_of("", {"prompt": "p"}) == ""


def test_names_of_candidates(world, tiny_model_folder):
    one, args = str(world / "one"), models.ModelArguments()
    specs = [{"a.b c": one}, {"name": f"x=y={one}"}, {"name": one}]
    assert [(c.name, c.path) for c in read_candidates(specs, args)] == [("a.b c", one), ("x=y", one), ("one", one)]
    for wrong, said in (
        ([{"a": one, "b": one}], "each wants the form name=folder"),
        ([{"a": None}], "each wants the form name=folder"),
        ([{"name": "a="}], "each wants the form name=folder"),
        ([{"name": one}, {"one": one}], "two are called one; name them"),
        ([{"gone": "runs/nowhere"}], "candidate gone: runs/nowhere: there is no such model folder"),
    ):
        with pytest.raises(UserError, match=said):
            read_candidates(wrong, args)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"candidates": []}, "candidates: .* at least one"),
        ({"dataset": None}, "dataset: None will not do: the prompts"),
        ({"reference": "three"}, "reference is three, which is no candidate; choose one of base, one, two"),
        ({"temperature": 0.0}, "temperature: 0.0 will not do: a number above 0"),
        ({"seed": -1}, "seed: -1 will not do"),
        ({"eval_samples": 0}, "eval_samples: 0 will not do"),
        ({"dtype": "half"}, "dtype: 'half' will not do"),
        ({"referee": "chess"}, "There is no world 'chess'"),
        ({"rewards": ["blue"]}, "There is no reward 'blue' .did you mean 'bleu'"),
        ({"judges": ["test_eval_stage:most"]}, "has no 'most'"),
        (
            {"judges": ["test_eval_measures:first"]},
            "judge first does not take .* 'facts'.*; write it as first.prompts",
        ),
        ({"dataset": "nowhere.jsonl"}, "dataset nowhere.jsonl: there is no such file"),
        ({"max_completion_length": 500}, "candidate base: the longest prompt has 21 tokens and max_completion_length"),
        ({"output_dir": None}, "output_dir is not set"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_is_refused_in_one_sentence(world, tiny_model_folder, tmp_path, change, said):
    with pytest.raises((UserError, RewardError), match=said):
        stage.run(arguments(world, tiny_model_folder, None, **{"output_dir": str(tmp_path / "out")} | change))
    assert not (tmp_path / "out").exists() or not any((tmp_path / "out").iterdir())


def test_an_adapter_of_another_shape_is_named(world, tiny_model_folder, tmp_path):
    wide = tmp_path / "wide"
    build_model(hidden_size=64).save_pretrained(wide)
    save_adapter(wide, tmp_path / "odd", 1)
    config = json.loads((tmp_path / "odd" / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = str(tiny_model_folder)
    (tmp_path / "odd" / "adapter_config.json").write_text(json.dumps(config))
    for candidates in (
        [{"odd": str(tmp_path / "odd")}],
        [{"one": str(world / "one")}, {"odd": str(tmp_path / "odd")}],
    ):
        changes = {"candidates": candidates, "reference": None}
        with pytest.raises(UserError, match="odd does not fit its base"):
            stage.run(arguments(world, tiny_model_folder, tmp_path / "out", **changes))


def test_tables_are_cut_by_columns():
    cells = [["", "a", "b", "c"], ["name", "12345", "1234567", "123"]]
    assert fit(cells, 80) == [cells]
    # 4 + 2 + 5 + 2 + 7 = 20
    assert fit(cells, 20) == [[["", "a", "b"], ["name", "12345", "1234567"]], [["", "c"], ["name", "123"]]]
    assert [part[0] for part in fit(cells, 3)] == [["", "a"], ["", "b"], ["", "c"]]
    assert [number(x) for x in (0.12345, -0.0001, 12.345, 1234.56, None)] == ["0.123", "0.000", "12.35", "1234.6", "–"]


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*/eval.yaml")), ids=lambda path: path.parent.name)
def test_recipes_parse_strictly(path, tmp_path):
    (args,) = parse(stage.EvalArguments, argv=["--config", str(path)])
    found = yaml.safe_load(path.read_text("utf-8"))
    assert {key: getattr(args, key) for key in found} == found
    run = f"runs/{path.parent.name}"
    assert args.output_dir == f"{run}/eval"
    if path.with_name("base.yaml").exists():  # else the data is the user's, or from the Hub
        assert args.dataset == f"{run}/data/prompts_heldout.jsonl"
    # the rewards and the length of the training that it judges
    ppo = yaml.safe_load(path.with_name("ppo.yaml").read_text("utf-8"))
    assert {spec["name"] for spec in found["rewards"]} == {spec["name"] for spec in ppo["rewards"]}
    assert found.get("referee") == ppo.get("referee")
    for key in ("max_completion_length", "prompt_template", "as_messages"):
        assert found.get(key) == ppo.get(key)
    broken = tmp_path / "eval.yaml"
    broken.write_text(path.read_text("utf-8").replace("reference:", "referenc:"))
    with pytest.raises(UserError, match="no such setting referenc, did you mean reference"):
        parse(stage.EvalArguments, argv=["--config", str(broken)])


def test_the_recipe_is_thin_and_reads_the_command_line(world, tiny_model_folder):
    path = ROOT / "recipes" / "eval.py"
    spec = importlib.util.spec_from_file_location("recipe_eval", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert callable(module.main) and len(path.read_text("utf-8").splitlines()) <= 80
    words = ["--candidates", "a=runs/a", "runs/b", "--dataset", "x.csv", "--judges", "m:f", "--rewards", "bleu"]
    (args,) = parse(stage.EvalArguments, argv=words)
    assert args.candidates == [{"name": "a=runs/a"}, {"name": "runs/b"}] and args.judges == [{"name": "m:f"}]


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
