"""The notebook in notebooks/: what it names exists, it holds no results, and it runs from top to bottom."""

import ast
import builtins
import importlib
import json
import re
from dataclasses import fields
from types import ModuleType

import pytest
from house import ROOT, tracked_files

from pipeline.config import DataArguments, ModelArguments, RewardStage, SFTStage
from pipeline.exam.exam import RewardArguments
from pipeline.ppo.config import PPOStage
from pipeline.worlds import BaseModelSettings, WorldSettings

NOTEBOOK = ROOT / "notebooks" / "first_run.ipynb"
SETTINGS = {
    "base": (WorldSettings, BaseModelSettings),
    "sft": (ModelArguments, DataArguments, SFTStage),
    "reward": (ModelArguments, DataArguments, RewardStage),
    "ppo": (ModelArguments, DataArguments, RewardArguments, PPOStage),
}
# Sizes with which it runs in a test; those in the notebook take minutes.
SHORT = "RUN = {run!r}\nTEXTS = 300\nROWS = 64\nEPISODES = 192\nHELD_OUT = 8\n"


def cells(kind: str) -> dict[str, str]:
    """Source of the cells of a kind by their ids."""
    found = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    return {cell["id"]: "".join(cell["source"]) for cell in found if cell["cell_type"] == kind}


def code() -> list[ast.Module]:
    """The code of each cell, parsed; the `;` that hides a cell's value in Jupyter is Python, too."""
    return [ast.parse(source, filename=name) for name, source in cells("code").items()]


def undefined(trees: list[ast.Module]) -> set[str]:
    """Names that are read and that neither Python nor any of the cells so far has made."""
    known, lost = set(dir(builtins)), set()
    for tree in trees:
        nodes = list(ast.walk(tree))
        known |= {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
        known |= {n.arg for n in nodes if isinstance(n, ast.arg)}
        known |= {n.name for n in nodes if isinstance(n, ast.FunctionDef | ast.ClassDef)}
        imported = [alias for n in nodes if isinstance(n, ast.Import | ast.ImportFrom) for alias in n.names]
        known |= {alias.asname or alias.name.partition(".")[0] for alias in imported}
        lost |= {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)} - known
    return lost


def test_a_name_that_no_cell_made_is_found():
    assert undefined([ast.parse("import a.b as c\ndef f(x): return x + y"), ast.parse("f(c, z); y = 1")]) == {"y", "z"}


def test_its_code_parses_and_uses_only_what_it_has_made():
    assert len(trees := code()) > 8
    assert undefined(trees) == set()


def test_what_it_imports_and_links_to_exists():
    modules = {}
    for node in (node for tree in code() for node in ast.walk(tree)):
        if isinstance(node, ast.ImportFrom):
            parent = importlib.import_module(node.module)
            for name in (alias.name for alias in node.names):
                found = getattr(parent, name, None) or importlib.import_module(f"{node.module}.{name}")
                if isinstance(found, ModuleType):
                    modules[name] = found
        elif isinstance(node, ast.Attribute) and getattr(node.value, "id", None) in modules:
            assert hasattr(modules[node.value.id], node.attr), ast.unparse(node)
    assert {"ppo", "sft", "reward_model"} <= modules.keys()
    text = "\n".join(cells("markdown").values())
    for target in re.findall(r"\]\((?!https?://)([^)#]+)", text):
        assert (NOTEBOOK.parent / target).exists(), target


def test_each_setting_that_it_changes_exists():
    asked: dict[str, set] = {}
    for node in (node for tree in code() for node in ast.walk(tree)):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "settings":
            asked.setdefault(node.args[0].value, set()).update(k.arg for k in node.keywords if k.arg)
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
            stage = {"sizes": "base", "exam": "ppo"}[ast.unparse(node.targets[0])]
            asked.setdefault(stage, set()).update(key.value for key in node.value.keys)
    assert asked.keys() == SETTINGS.keys()
    for stage, changed in asked.items():
        assert (ROOT / "recipes/tiny" / f"{stage}.yaml").is_file()
        assert changed and changed <= {field.name for kind in SETTINGS[stage] for field in fields(kind)}, stage


def test_no_notebook_holds_results():
    for path in (path for path in tracked_files() if path.suffix == ".ipynb"):
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            assert not cell.get("outputs") and cell.get("execution_count") is None, f"{path.name}: {cell['id']}"


@pytest.mark.slow
def test_it_runs_from_top_to_bottom_twice(tmp_path):
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    results = []
    for _ in range(2):  # the second time every stage is finished
        notebook = nbformat.read(NOTEBOOK, as_version=4)
        nbformat.validate(notebook)
        [sizes] = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
        sizes.source = SHORT.format(run=str(tmp_path / "run"))
        folder = {"metadata": {"path": str(NOTEBOOK.parent)}}
        nbclient.NotebookClient(notebook, timeout=600, kernel_name="python3", resources=folder).execute()
        results.append({cell.id: cell.get("outputs", []) for cell in notebook.cells})
    said = []
    for outputs in results:
        for name in ("curves", "tokens"):
            assert any("image/png" in output.get("data", {}) for output in outputs[name]), name
        assert "gold" in "".join(str(output.get("data")) for output in outputs["ppo"])
        said.append("".join(output.get("text", "") for output in outputs["chat"]))
        assert said[-1].count("  PPO   ") == 2 == said[-1].count("  base  ") and "keyword" in said[-1]
    assert said[0] == said[1]
    assert (tmp_path / "run/ppo/report.html").is_file()
