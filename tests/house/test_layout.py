"""The house rules that a machine can check: which way imports run, names that hide a library, machine paths."""

import ast
import importlib.util
import re
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from house import ROOT, python_files

# The house, from the top floor down. A room may import itself and every room on the floors below it, never one beside
# it or above. `pipeline/__init__.py` is the ground that all stand on.
FLOORS = (
    ("recipes",),  # what a person launches
    ("eval", "chat", "sweep", "stages"),  # the commands behind it
    ("ilql",),  # the algorithms alone: Q-learning,
    ("ppo", "card", "scale"),  # and PPO (card and scale forward two commands to their rooms)
    ("memory", "hub", "judging"),
    ("cli", "data", "exam", "rollouts", "report"),
    ("models", "watching", "worlds"),
    ("runs",),  # a run on disk
    ("config", "safety", "metrics"),
    ("rewards", "errors"),  # text in, numbers out; the one error that a user sees
)
FLOOR = {room: len(FLOORS) - i for i, rooms in enumerate(FLOORS) for room in rooms}
OURS = {"recipes", "pipeline", "rewards", "tests"}


def room_of(module: str) -> str | None:
    """`pipeline.ppo.math` -> ppo, `rewards.base` -> rewards, `recipes.ppo` -> recipes; None for `pipeline` itself."""
    top, _, rest = module.partition(".")
    return (rest.partition(".")[0] or None) if top == "pipeline" else top


def imported_modules(source: str, package: str = "") -> set[str]:
    """Dotted names of all that `source` imports, also inside functions, as far as they can be modules.

    `package` is the dotted package in which the source lies; a relative import starts from it.
    """
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")
            base = ".".join(parts[: len(parts) - node.level + 1] if node.level else [])
            base = ".".join(filter(None, (base, node.module)))
            names |= {f"{base}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in {"import_module", "importlib.import_module"}:
            if node.args and isinstance(node.args[0], ast.Constant):
                names.add(str(node.args[0].value))
    return names


def rooms_imported(path: Path) -> set[str]:
    """The rooms of this house that a file imports."""
    found = imported_modules(path.read_text("utf-8"), ".".join(path.relative_to(ROOT).parent.parts))
    return {room_of(name) for name in found if name.partition(".")[0] in OURS} - {None, "__version__"}


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
    expected = {"os.path", "rewards.base", "pipeline.ppo.math", "house.room.sibling", "house.other.x", "recipes.sft"}
    assert imported_modules(source, "house.room") == expected


@pytest.mark.parametrize("top", ["recipes", "pipeline", "rewards"])
def test_imports_run_downwards_only(top):
    wrong = []
    for path in python_files(top):
        here = room_of(".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"))
        floor = FLOOR.get(here, 0)  # pipeline/__init__.py stands below all
        wrong += [
            f"{path.relative_to(ROOT)} (floor {floor}) imports {room} (floor {FLOOR.get(room, 'none')})"
            for room in sorted(rooms_imported(path) - {here})
            if not (room in FLOOR and FLOOR[room] < floor)
        ]
    assert not wrong, "\n".join(wrong)


def test_every_room_has_a_floor_and_there_are_ten_at_most():
    rooms = {p.stem for p in (ROOT / "pipeline").iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()}
    assert rooms - {"__init__"} | {"recipes", "rewards"} == set(FLOOR)
    assert len(FLOORS) <= 10


PACKAGES = sorted(p.parent.name for p in (ROOT / "pipeline").glob("*/__init__.py"))


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_says_what_is_in_it_what_it_may_import_and_where_to_begin(package):
    text = ast.get_docstring(ast.parse((ROOT / "pipeline" / package / "__init__.py").read_text("utf-8")))
    assert ("May import: " in text and "Begin with: " in text) or "forwards to it until" in text


LONGEST = 400  # lines of a file
LONGER: dict[str, str] = {}  # a file that must be longer, and why


@pytest.mark.parametrize("top", ["recipes", "pipeline", "rewards", "tests"])
def test_files_are_short(top):
    lines = {str(p.relative_to(ROOT)): len(p.read_text("utf-8").splitlines()) for p in python_files(top)}
    long = {name: count for name, count in lines.items() if count > LONGEST and name not in LONGER}
    assert not long, f"split by subject what has more than {LONGEST} lines: {long}"


# Beside the rooms of pipeline/: rewards/; this house; wrong input through the recipes; runs that must learn;
# what tests share; the tools of the Makefile.
OTHER_TESTS = {"rewards", "house", "faults", "learning", "support", "tools"}


def test_tests_lie_in_the_rooms_of_what_they_test():
    tests = ROOT / "tests"
    folders = {p.name for p in tests.iterdir() if p.is_dir() and p.name != "__pycache__"}
    assert folders - set(PACKAGES) == OTHER_TESTS
    assert [p.name for p in tests.glob("*.py")] == ["conftest.py"]
    # the names that pytest knows a file by, without packages
    names = [p.name for p in tests.rglob("*.py") if p.name.startswith("test_")]
    assert len(names) == len(set(names))
    assert not list((tests / "support").rglob("test_*.py"))


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
