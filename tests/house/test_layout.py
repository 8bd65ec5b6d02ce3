"""The house rules that a machine can check: which way imports run, names that hide a library, machine paths."""

import ast
import importlib.util
import re
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# A room may import itself and the rooms to its right.
ROOMS = {"recipes": {"pipeline", "rewards"}, "pipeline": {"pipeline", "rewards"}, "rewards": {"rewards"}}
OURS = {"recipes", "pipeline", "rewards", "tests"}


def imported_modules(source: str, package: str = "") -> set[str]:
    """Top-level names of every module that `source` imports, also inside functions.

    `package` is the dotted package in which the source lies; a relative import belongs to its first part.
    """
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            dotted = ".".join(base + ([node.module] if node.module else []))
            names.add(dotted.split(".")[0])
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in {"import_module", "importlib.import_module"}:
            if node.args and isinstance(node.args[0], ast.Constant):
                names.add(str(node.args[0].value).split(".")[0])
    return names


def python_files(room: str) -> list[Path]:
    return sorted(p for p in (ROOT / room).rglob("*.py") if "__pycache__" not in p.parts)


def tracked_files() -> list[Path]:
    """What git holds or would hold; without git (an unpacked archive), every file outside hidden folders and runs/."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if listed.returncode == 0:
        return sorted(ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file())
    skipped = {"runs", "build", "dist"}
    parts = ((p, p.relative_to(ROOT).parts) for p in ROOT.rglob("*") if p.is_file())
    return sorted(p for p, names in parts if names[0] not in skipped and not names[0].startswith(".venv"))


def test_imports_are_read_from_every_form():
    source = (
        "import os.path, rewards.base as b\n"
        "def f():\n    from pipeline.ppo import math\n    from . import sibling\n    from ..other import x\n"
        "    importlib.import_module('recipes.sft')\n"
    )
    assert imported_modules(source, "house.room") == {"os", "rewards", "pipeline", "house", "recipes"}


@pytest.mark.parametrize("room", ROOMS)
def test_imports_run_one_way(room):
    wrong = []
    for path in python_files(room):
        package = ".".join(path.relative_to(ROOT).parent.parts)
        for name in sorted((imported_modules(path.read_text("utf-8"), package) & OURS) - ROOMS[room]):
            wrong.append(f"{path.relative_to(ROOT)} imports {name}")
    assert not wrong, f"imports run recipes -> pipeline -> rewards only: {wrong}"


def test_no_recipe_shadows_a_library():
    """`python recipes/x.py` puts recipes/ first on sys.path: a file there named like a library would replace it."""
    taken = set(sys.stdlib_module_names) | set(packages_distributions()) | {"pipeline", "rewards", "tests"}
    # A folder without __init__.py (recipes/accelerate) gives way to an installed package of that name.
    entries = [p for p in (ROOT / "recipes").iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()]
    shadows = sorted(p.name for p in entries if p.stem in taken)
    assert not shadows, f"these names in recipes/ hide an installed library: {shadows}"


def test_no_recipe_is_importable_from_the_packages():
    assert not (ROOT / "recipes" / "__init__.py").exists(), "recipes/ is launched, never imported"


MACHINE_PATH = re.compile(r"(?<![\w./:$}-])/(?:home|root|Users|work|mnt|opt/conda)/[\w.-]")


def test_machine_paths_are_recognised():
    for line in ("path: /home/" + "me/data", "'/root/" + ".cache'", "see /Users/" + "x/y"):
        assert MACHINE_PATH.search(line), line
    for line in ("runs/tiny/sft", "https://example.org/home/page", "recipes/home/x", "a/root/b"):
        assert not MACHINE_PATH.search(line), line


def test_no_file_names_a_path_of_one_machine():
    found = []
    for path in tracked_files():
        try:
            text = path.read_text("utf-8")
        except UnicodeDecodeError:
            continue
        for number, line in enumerate(text.splitlines(), 1):
            if MACHINE_PATH.search(line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()[:100]}")
    assert not found, f"a path that exists on one machine only: {found}"


@pytest.mark.parametrize("package", ["pipeline", "rewards"])
def test_packages_come_from_this_checkout(package):
    """Tests that run against another installed copy say nothing about this one."""
    spec = importlib.util.find_spec(package)
    assert spec is not None
    places = [Path(p).resolve() for p in spec.submodule_search_locations]
    assert ROOT / package in places, f"{package} is imported from {places}"
