"""What pyproject.toml cannot say: the wheel carries recipes/ as data of the package `plumbline`.

The clone has that folder at its top, for make and `accelerate launch`; `plumbline/launching.py` finds it in both.
"""

from setuptools import find_namespace_packages, setup

RECIPES = "plumbline.recipes"

setup(
    packages=[*find_namespace_packages(include=["pipeline*", "plumbline*", "rewards*"]), RECIPES],
    package_dir={RECIPES: "recipes"},
    package_data={RECIPES: ["*/*.yaml", "*/*.sbatch"], "pipeline": ["templates/*.j2", "metrics/**/*"]},
)
