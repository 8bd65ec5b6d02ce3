"""Every test of the repository is one that pytest finds: a test in a file that it passes over never fails."""

import ast
from fnmatch import fnmatch
from pathlib import PurePath

from house import ROOT, tracked_files


def meant_as_tests(source: str) -> list[str]:
    """Names of what would be tests in a file that pytest collects."""
    found = []
    for node in ast.parse(source).body:
        if isinstance(node, ast.ClassDef) and node.name.startswith("Test"):
            methods = (x for x in node.body if isinstance(x, ast.FunctionDef | ast.AsyncFunctionDef))
            found += [f"{node.name}.{x.name}" for x in methods if x.name.startswith("test_")]
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
            found.append(node.name)
    return found


def is_collected(path: PurePath, config) -> bool:
    """Whether pytest, called without a path, looks into a file; `path` is relative to the repository."""
    inside = any(path.is_relative_to(folder) for folder in config.getini("testpaths"))
    passed = any(fnmatch(part, pattern) for part in path.parts[:-1] for pattern in config.getini("norecursedirs"))
    return inside and not passed and any(fnmatch(path.name, pattern) for pattern in config.getini("python_files"))


def test_which_files_are_collected(pytestconfig):
    kept = ("tests/ppo/test_math.py", "tests/math_test.py")
    passed = ("tests/ppo/math.py", "tests/ppo/tests_math.py", "recipes/test_math.py", "tests/build/test_math.py")
    assert [is_collected(PurePath(name), pytestconfig) for name in kept + passed] == [True] * 2 + [False] * 4
    source = "def test_a(): pass\nasync def test_b(): pass\ndef help(): pass\nclass TestC:\n    def test_d(self): pass"
    assert meant_as_tests(source) == ["test_a", "test_b", "TestC.test_d"]


def test_every_test_lies_where_pytest_finds_it(pytestconfig):
    lost = {}
    for path in tracked_files():
        name = path.relative_to(ROOT)
        if path.suffix == ".py" and not is_collected(name, pytestconfig):
            if found := meant_as_tests(path.read_text("utf-8")):
                lost[str(name)] = found
    assert not lost, f"pytest never runs these tests (its files are tests/**/test_*.py): {lost}"


def test_every_file_called_a_test_has_one(pytestconfig):
    """Named like a test and without one, a file looks like cover that is not there."""
    files = [path for path in tracked_files() if path.suffix == ".py" and path.is_relative_to(ROOT / "tests")]
    named = [path for path in files if is_collected(path.relative_to(ROOT), pytestconfig)]
    empty = [str(p.relative_to(ROOT)) for p in named if not meant_as_tests(p.read_text("utf-8"))]
    assert named and not empty, f"files named like tests, without a test: {empty}"
