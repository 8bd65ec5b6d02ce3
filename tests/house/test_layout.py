"""The house rules that a machine can check: which way imports run, names that hide a library, machine paths."""

import ast
import importlib.util
import re
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from house import ROOT, python_files, tracked_files

import rewards
from rewards.build import REGISTRY

# The house, from the top floor down. A room may import itself and every room on the floors below it, never one beside
# it or above. `pipeline/__init__.py` is the ground that all stand on.
FLOORS = (
    ("recipes", "plumbline"),  # what a person launches: scripts and YAMLs; the command that finds them from anywhere
    ("eval", "chat", "sweep", "check", "stages"),  # the commands behind it
    ("ilql",),  # the algorithms alone: Q-learning,
    ("ppo", "card", "scale"),  # and PPO (card and scale forward two commands to their rooms)
    ("memory", "hub", "judging"),
    ("cli", "data", "exam", "rollouts", "report"),
    ("models", "watching", "worlds"),
    ("runs", "config"),  # a run on disk; the settings
    ("safety", "metrics"),
    ("rewards", "errors"),  # text in, numbers out; the one error that a user sees
)
FLOOR = {room: len(FLOORS) - i for i, rooms in enumerate(FLOORS) for room in rooms}
OURS = {"recipes", "plumbline", "pipeline", "rewards", "tests"}


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


def test_imports_are_read_from_every_form():
    source = (
        "import os.path, rewards.base as b\n"
        "def f():\n    from pipeline.ppo import math\n    from . import sibling\n    from ..other import x\n"
        "    importlib.import_module('recipes.sft')\n"
    )
    expected = {"os.path", "rewards.base", "pipeline.ppo.math", "house.room.sibling", "house.other.x", "recipes.sft"}
    assert imported_modules(source, "house.room") == expected


@pytest.mark.parametrize("top", ["recipes", "plumbline", "pipeline", "rewards"])
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


def test_one_file_of_rewards_hands_over_to_the_pipeline_and_nothing_imports_it():
    """`python -m rewards.check` is the name of a command that needs recipes and data: pipeline/check."""
    named = [
        path.name
        for path in python_files("rewards")
        if any(
            isinstance(node, ast.Constant) and str(node.value).startswith("pipeline.")
            for node in ast.walk(ast.parse(path.read_text("utf-8")))
        )
    ]
    assert named == ["check.py"]
    for top in ("rewards", "pipeline", "plumbline", "recipes"):
        for path in python_files(top):
            package = ".".join(path.relative_to(ROOT).parent.parts)
            assert "rewards.check" not in imported_modules(path.read_text("utf-8"), package), path


def test_every_room_has_a_floor_and_there_are_ten_at_most():
    rooms = {p.stem for p in (ROOT / "pipeline").iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()}
    assert rooms - {"__init__"} | {"recipes", "plumbline", "rewards"} == set(FLOOR)
    assert len(FLOORS) <= 10


def test_the_picture_of_the_house_is_this_table():
    picture = (ROOT / "docs/architecture.md").read_text("utf-8").split("```")[1]
    floors = dict(re.findall(r"^ ?(\d+)  (.+?)(?: {3,}[a-z]+ [a-z].*|  [a-z]+:.*)?$", picture, re.MULTILINE))
    rooms = {room for names in FLOORS for room in names}
    drawn = {int(n): {word for word in re.split(r" {4,}| {2,}", text) if word in rooms} for n, text in floors.items()}
    assert drawn == {len(FLOORS) - i: set(names) for i, names in enumerate(FLOORS)}


def test_the_architecture_page_names_files_that_are_there():
    text = (ROOT / "docs/architecture.md").read_text("utf-8")
    named = set(re.findall(r"`((?:pipeline|rewards|recipes|tests|[a-z_]+)/[\w/]*\.?\w*)`", text))
    assert len(named) > 25
    for name in named:
        assert (ROOT / name).exists() or (ROOT / "pipeline" / name).exists(), name


PACKAGES = sorted(p.parent.name for p in (ROOT / "pipeline").glob("*/__init__.py"))


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_says_what_is_in_it_what_it_may_import_and_where_to_begin(package):
    text = ast.get_docstring(ast.parse((ROOT / "pipeline" / package / "__init__.py").read_text("utf-8")))
    assert ("May import: " in text and "Begin with: " in text) or "forwards to it until" in text


LONGEST = 400  # lines of a file
LONGER: dict[str, str] = {}  # a file that must be longer, and why


@pytest.mark.parametrize("top", ["recipes", "plumbline", "pipeline", "rewards", "tests"])
def test_files_are_short(top):
    lines = {str(p.relative_to(ROOT)): len(p.read_text("utf-8").splitlines()) for p in python_files(top)}
    long = {name: count for name, count in lines.items() if count > LONGEST and name not in LONGER}
    assert not long, f"split by subject what has more than {LONGEST} lines: {long}"


# Beside the rooms of pipeline/: rewards/; plumbline/; this house; wrong input through the recipes; runs that must
# learn; what tests share; the tools of the Makefile.
OTHER_TESTS = {"rewards", "plumbline", "house", "faults", "learning", "support", "tools"}


def test_tests_lie_in_the_rooms_of_what_they_test():
    tests = ROOT / "tests"
    folders = {p.relative_to(tests).parts[0] for p in python_files("tests") if p.parent != tests}
    assert folders - set(PACKAGES) == OTHER_TESTS
    assert [p.name for p in tests.glob("*.py")] == ["conftest.py"]
    # the names that pytest knows a file by, without packages
    names = [p.name for p in tests.rglob("*.py") if p.name.startswith("test_")]
    assert len(names) == len(set(names))
    assert not list((tests / "support").rglob("test_*.py"))


def test_no_recipe_shadows_a_library():
    """`python recipes/x.py` puts recipes/ first on sys.path: a file there named like a library would replace it."""
    taken = set(sys.stdlib_module_names) | set(packages_distributions()) | OURS - {"recipes"}
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


@pytest.mark.parametrize("package", ["pipeline", "plumbline", "rewards"])
def test_packages_come_from_this_checkout(package):
    """Tests that run against another installed copy say nothing about this one."""
    spec = importlib.util.find_spec(package)
    assert spec is not None
    places = [Path(p).resolve() for p in spec.submodule_search_locations]
    assert ROOT / package in places, f"{package} is imported from {places}"


# --- circles --------------------------------------------------------------------------------------------------------
def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_among(sources: dict[str, str], packages: set[str]) -> dict[str, set[str]]:
    """Which of the modules in `sources` (dotted name -> source) each one imports, also inside functions.

    `from .x import y` counts as the module x.y where there is one, else as x. That the packages above a module are
    loaded with it does not count.
    """
    graph: dict[str, set[str]] = {}
    for module, source in sources.items():
        package = module if module in packages else module.rpartition(".")[0]
        named = set()
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Import):
                named |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
                base = ".".join(above + ([node.module] if node.module else []))
                whole = {f"{base}.{alias.name}" for alias in node.names}
                named |= {name if name in sources else base for name in whole}
        graph[module] = named & set(sources) - {module}
    return graph


def circle_in(graph: dict[str, set[str]]) -> list[str]:
    """One circle, from a module back to itself; empty where there is none."""
    done: set[str] = set()

    def search(module: str, way: list[str]) -> list[str]:
        if module in way:
            return [*way[way.index(module) :], module]
        if module in done:
            return []
        found = next((circle for other in sorted(graph[module]) if (circle := search(other, [*way, module]))), [])
        done.add(module)
        return found

    return next((circle for module in sorted(graph) if (circle := search(module, []))), [])


def test_a_circle_is_found_also_through_a_function_and_a_relative_name():
    sources = {
        "room": "from .a import x",
        "room.a": "import room.b as b",
        "room.b": "def f():\n    from . import c",
        "room.c": "from room import d\nfrom room.d import name",
        "room.d": "import os",
    }
    assert circle_in(imports_among(sources, {"room"})) == []
    sources["room.d"] = "def f():\n    from .a import x"
    assert circle_in(imports_among(sources, {"room"})) == ["room.a", "room.b", "room.c", "room.d", "room.a"]
    assert circle_in(imports_among({"room": "from . import a", "room.a": "import room"}, {"room"})) == [
        "room",
        "room.a",
        "room",
    ]


@pytest.mark.parametrize("room", ["rewards", "pipeline", "plumbline"])
def test_no_import_goes_round_in_a_circle(room):
    files = {module_name(path): path for path in python_files(room)}
    packages = {name for name, path in files.items() if path.stem == "__init__"}
    graph = imports_among({name: path.read_text("utf-8") for name, path in files.items()}, packages)
    if room == "rewards":  # imports that go by a table
        graph["rewards.build"] |= {f"rewards.{module}" for module, _, _ in REGISTRY.values()} - {"rewards.build"}
    assert not (circle := circle_in(graph)), f"{' -> '.join(circle)}: move what both need below them"


# --- rewards are loaded when they are used --------------------------------------------------------------------------
def test_a_reward_that_needs_no_torch_loads_none():
    code = (
        "import sys, rewards\n"
        "assert set(sys.modules) & {'rewards.' + m for m in rewards._MODULES} == set()\n"
        "rewards.Keyword, rewards.Code, rewards.Length, rewards.Mixture\n"
        "(reward, _), = rewards.build_rewards([{'name': 'keyword', 'wanted': ['cat'], 'instant': True}])\n"
        "assert reward(prompts=['p'], completions=['a cat']) == [1.0]\n"
        "heavy = {'torch', 'transformers', 'trl', 'peft', 'accelerate'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_rewards_lists_each_name_once_and_the_same_way():
    """Type checkers read imports that are never run; `__getattr__` reads a table; `import *` reads `__all__`."""
    tree = ast.parse((ROOT / "rewards" / "__init__.py").read_text("utf-8"))
    imported = {
        alias.name: node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.level
        for alias in node.names
    }
    assert imported == rewards._HOME
    assert sorted(imported) == rewards.__all__
    for name, module in imported.items():
        written = ast.parse((ROOT / "rewards" / Path(*module.split("."))).with_suffix(".py").read_text("utf-8")).body
        names = {getattr(node, "name", None) for node in written}
        names |= {ast.unparse(target) for node in written if isinstance(node, ast.Assign) for target in node.targets}
        assert name in names, f"rewards/{module}.py has no {name}"
    with pytest.raises(ImportError, match="Keywrod"):
        from rewards import Keywrod  # noqa: F401
