"""What is in the wheel. That it works outside the clone: `make wheel` (.ci/try-wheel)."""

import shutil
import subprocess
import sys
import zipfile

from house import ROOT, tracked_files


def test_the_wheel_has_the_recipes_and_the_command(tmp_path):
    source = tmp_path / "source"
    for name in ("pipeline", "plumbline", "rewards", "recipes"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    build = "from setuptools import build_meta; print(build_meta.build_wheel('..'))"
    done = subprocess.run([sys.executable, "-c", build], cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    [wheel] = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as opened:
        names = set(opened.namelist())
        [entry] = [name for name in names if name.endswith("entry_points.txt")]
        assert "plumbline = plumbline.main:main" in opened.read(entry).decode()
    kept = {".yaml", ".sbatch", ".py"}
    recipes = [path.relative_to(ROOT) for path in tracked_files() if path.is_relative_to(ROOT / "recipes")]
    assert {f"plumbline/{path}" for path in recipes if path.suffix in kept} <= names
    code = [path.relative_to(ROOT) for path in tracked_files() if path.suffix in {".py", ".j2"}]
    assert {str(path) for path in code if path.parts[0] in ("pipeline", "plumbline", "rewards")} <= names
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"pipeline", "plumbline", "rewards"}
