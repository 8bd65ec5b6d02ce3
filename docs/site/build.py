"""The site of the documents, `make docs`: `python docs/site/build.py [--output site]`.

The pages stay where they are written. They are laid out in a folder of their own as they lie in the repository, so
that their links hold, and built by MkDocs: static, searchable, without a request to anywhere, also from a disk.
"""

import argparse
import json
import logging
import re
import shutil
import sys
import tempfile
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
CONFIG = Path(__file__).with_name("mkdocs.yml")
PAGES = ("README.md", "README.zh.md", "CHANGELOG.md", "CONTRIBUTING.md", "docs/**/*.md", "docs/images/*")
PARTS = ("docs/site/*.css", "docs/site/*.js")
RESULTS = "recipes/*/RESULTS.md"
NOTEBOOKS = "notebooks/*.ipynb"  # each becomes a page of the same name, and lies beside it to be saved


def pages(root: Path = ROOT) -> list[Path]:
    """The files of the site, relative to the repository."""
    found = {path for pattern in (*PAGES, *PARTS, RESULTS, NOTEBOOKS) for path in root.glob(pattern) if path.is_file()}
    return sorted(path.relative_to(root) for path in found)


def navigation(nav: list, there: set[str]) -> list:
    """The navigation without pages that are not there, and with the results of the recipes."""
    found = []
    for entry in nav:
        [(title, target)] = entry.items()
        if title == "Recipes":
            results = sorted(name for name in there if Path(name).match(RESULTS))
            target = [{"All recipes": "docs/recipes.md"}, *({Path(name).parent.name: name} for name in results)]
        elif isinstance(target, list):
            target = navigation(target, there)
        elif target not in there:
            continue
        found.append({title: target})
    return found


def lay_out(folder: Path) -> dict:
    """Copies the pages into `folder` and returns the settings of MkDocs for them, with `docs_dir` and `nav`."""
    for page in pages():
        target = folder / page
        target.parent.mkdir(parents=True, exist_ok=True)
        text = page.suffix == ".md" and (ROOT / page).read_text("utf-8")
        target.write_text(with_source(text, page), "utf-8") if text else shutil.copy(ROOT / page, target)
    settings = yaml.safe_load(CONFIG.read_text("utf-8"))
    python = next(p["mkdocstrings"] for p in settings["plugins"] if "mkdocstrings" in p)["handlers"]["python"]
    python["paths"] = [str(ROOT)]
    python["options"]["extensions"] = [str(Path(__file__).with_name("docstrings.py"))]
    for notebook in (path for path in pages() if path.suffix == ".ipynb"):
        (folder / notebook).with_suffix(".md").write_text(page_of(notebook), "utf-8")
    there = {str(path.relative_to(folder)) for path in folder.rglob("*.md")}
    return settings | {"docs_dir": str(folder), "nav": navigation(settings["nav"], there)}


def page_of(notebook: Path) -> str:
    """The cells of a notebook as a page; the notebook itself can be saved from it."""
    texts = []
    for cell in json.loads((ROOT / notebook).read_text("utf-8"))["cells"]:
        text = "".join(cell["source"])
        texts.append(f"```python\n{text}\n```" if cell["cell_type"] == "code" else with_source(text, notebook))
    texts.insert(1, f'[Save this notebook]({notebook.name}){{ download="{notebook.name}" }}')
    return "\n\n".join(texts)


def with_source(text: str, page: Path) -> str:
    """The page as it is on the site: links to notebooks lead to their pages, those to files that are no pages (code,
    tests) are plain text."""
    there = {str(path) for path in pages()}

    def link(found: re.Match) -> str:
        path = (ROOT / page.parent / found[2].split("#")[0]).resolve()
        known = path.exists() and path.is_relative_to(ROOT) and path != ROOT / page.parent
        if known and str(path.relative_to(ROOT)) not in there:
            return found[1]
        return found[0].replace(".ipynb)", ".md)") if known else found[0]

    return re.sub(r"(?<!!)\[([^\[\]]+)\]\((?!https?://)([^)\s]+)\)", link, text)


def build(output: Path) -> Path:
    """Builds the site into `output` and returns its first page.

    Raises:
        SystemExit: when MkDocs is not installed, or warns of anything (a link that leads nowhere, say).
    """
    try:
        from mkdocs.commands.build import build as build_site
        from mkdocs.config import load_config
        from mkdocs.exceptions import Abort
    except ImportError:
        sys.exit('error: MkDocs is not installed: pip install -c constraints.txt -e ".[docs]"')
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    with tempfile.TemporaryDirectory() as folder:
        settings = lay_out(Path(folder, "pages"))
        written = Path(folder, "mkdocs.yml")
        written.write_text(yaml.safe_dump(settings, allow_unicode=True, sort_keys=False), "utf-8")
        try:
            config = load_config(str(written), site_dir=str(output.resolve()))
            config.plugins.on_startup(command="build", dirty=False)
            build_site(config)
            config.plugins.on_shutdown()
        except Abort as error:
            sys.exit(f"error: {error}")
    return output / "index.html"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0], allow_abbrev=False)
    parser.add_argument("--output", type=Path, default=ROOT / "site", help="folder of the site (default: site)")
    print(f"The site begins at {build(parser.parse_args().output)}")
