"""What pyproject.toml cannot say: the wheel carries recipes/ as data of the package `plumbline`.

The clone has that folder at its top, for make and `accelerate launch`; `plumbline/launching.py` finds it in both.
"""

from setuptools import find_namespace_packages, setup

RECIPES = "plumbline.recipes"

code = find_namespace_packages(include=["pipeline*", "plumbline*", "rewards*"])
folders = [f"{RECIPES}.{name}" for name in find_namespace_packages("recipes") if "__pycache__" not in name]

setup(
    packages=[*code, RECIPES, *folders],
    package_dir={RECIPES: "recipes"},
    package_data={"": ["*.yaml", "*.sbatch"], "pipeline": ["templates/*.j2", "metrics/**/*"]},
)
