"""The evaluation stage: its rows, candidates and settings, what is refused, how tables are cut."""

import importlib.util
import json
import re
from pathlib import Path

import pytest
import yaml
from conftest import build_model
from eval_world import MRS, arguments, make_world, save_adapter

from pipeline.cli import parse
from pipeline.config import settle_dtype
from pipeline.errors import UserError
from pipeline.eval import stage
from pipeline.eval.candidates import read_candidates
from pipeline.eval.rows import json_line_of, line_of, load_rows
from pipeline.eval.tables import fit, number
from pipeline.models import loading as models
from rewards import RewardError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def world(tmp_path_factory, tiny_model_folder) -> Path:
    return make_world(tmp_path_factory.mktemp("eval"), tiny_model_folder)


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


def test_an_answer_as_a_json_line():
    """Whatever some reader takes for the end of a line is an escape in it."""
    row = {"mr": MRS[0], "prompt": "NAME eatTypePub NEAR =>\n"}
    line = json_line_of(' NAME is\n\na "pub"\r\u2028\x85\x0b\u2029é', row)
    assert line.splitlines() == [line] and "é" in line
    assert json.loads(line) == {"prompt": row["prompt"], "completion": ' Aromi is\n\na "pub"\r\u2028\x85\x0b\u2029é'}
    asked = {"prompt": [{"role": "user", "content": "p"}]}
    assert json.loads(json_line_of("x", asked)) == asked | {"completion": "x"}
    assert json.loads(json_line_of("x", asked, as_messages=True)) == {"prompt": "p", "completion": "x"}
    more = {"prompt": [{"role": "system", "content": "s"}, *asked["prompt"]]}  # a dialogue of the data's own
    assert json.loads(json_line_of("x", more, as_messages=True))["prompt"] == more["prompt"]


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
        ({"dataset": None}, "dataset: None is not valid: the prompts"),
        ({"reference": "three"}, "reference is three, which is no candidate; choose one of base, one, two"),
        ({"temperature": 0.0}, "temperature: 0.0 is not valid: a number above 0"),
        ({"seed": -1}, "seed: -1 is not valid"),
        ({"eval_samples": 0}, "eval_samples: 0 is not valid"),
        ({"dtype": "half"}, "dtype: 'half' is not valid"),
        ({"referee": "chess"}, "There is no world 'chess'"),
        ({"rewards": ["blue"]}, "There is no reward 'blue' .did you mean 'bleu'"),
        ({"judges": ["eval_world:most"]}, "has no 'most'"),
        (
            {"judges": ["eval_world:first"]},
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
    settled = found | {"dtype": settle_dtype(found["dtype"])}  # what `fast` is depends on the processor
    assert {key: getattr(args, key) for key in found} == settled
    run = f"runs/{path.parent.name}"
    assert args.output_dir == f"{run}/eval"
    if path.with_name("base.yaml").exists():  # else the data is the user's, or from the Hub
        assert re.fullmatch(f"{run}/data/(prompts|preferences)_heldout.jsonl", args.dataset)
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
