"""The site of the documents: every page is in it, it asks nothing from outside, and can be searched from a disk."""

import importlib.util
import re
from pathlib import Path

import pytest
from browser import browser, chromium  # noqa: F401
from documents import ROOT, pages

LAPTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
PAGES = (
    "index README.zh docs/settings docs/rewards docs/recipes docs/api/ppo docs/tutorials/own-data notebooks/first_run"
).split()


def tool(name: str):
    spec = importlib.util.spec_from_file_location(f"site_{name}", ROOT / f"docs/site/{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    pytest.importorskip("mkdocs", reason='MkDocs is not installed: pip install -e ".[docs]"')
    return tool("build").build(tmp_path_factory.mktemp("site")).parent


def names_in(nav) -> list[str]:
    targets = [target for entry in nav for target in entry.values()]
    return [name for target in targets for name in (names_in(target) if isinstance(target, list) else [target])]


def test_every_page_is_in_the_navigation_once(tmp_path):
    names = names_in(tool("build").lay_out(tmp_path)["nav"])
    notebooks = [str(path.relative_to(ROOT).with_suffix(".md")) for path in ROOT.glob("notebooks/*.ipynb")]
    assert sorted(names) == sorted([*(str(page.relative_to(ROOT)) for page in pages()), *notebooks])


def test_links_to_code_become_text_and_links_to_pages_stay(tmp_path):
    build, page = tool("build"), (ROOT / "docs/ppo.md").relative_to(ROOT)
    text = "[a](metrics.md#x) [b](../tests/conftest.py) [c](#y) [d](https://e.org) ![f](images/g.png) [h](nowhere.md)"
    kept = "[a](metrics.md#x) b [c](#y) [d](https://e.org) ![f](images/g.png) [h](nowhere.md)"
    assert build.with_source(text, page) == kept


def test_sections_of_docstrings_become_lists():
    pytest.importorskip("griffe", reason="griffe comes with mkdocstrings")
    docstrings = tool("docstrings")
    text = "What.\n\nOptions:\n    a ([]), b (none): one,\n        and more.\n    all of it\n\nThen: this.\n\nArgs: x."
    assert docstrings.with_lists(text).split() == (
        "What. **Options:** - `a` ([]), `b` (none): one, and more. - all of it Then: this. **Args:** x.".split()
    )
    assert docstrings.help_of('setting(3, "How many, 5%% of all.")') == "How many, 5% of all."
    assert docstrings.help_of("field(default=4.0, metadata={'help': 'Weight.'})") == "Weight."
    assert docstrings.default_of("field(default=4.0, metadata={'help': 'Weight.'})") == "4.0"
    assert docstrings.help_of("dict(a=1)") == ""


def test_a_notebook_is_a_page_with_its_cells_and_can_be_saved_from_it(tmp_path):
    tool("build").lay_out(tmp_path)
    page = (tmp_path / "notebooks/first_run.md").read_text("utf-8")
    assert page.startswith("# A first run") and "](first_run.ipynb)" in page and "](../docs/metrics.md)" in page
    assert "```python\nRUN = " in page and "\n## 4. PPO\n" in page
    assert (tmp_path / "notebooks/first_run.ipynb").read_bytes() == (ROOT / "notebooks/first_run.ipynb").read_bytes()
    notebook = tool("build").with_source("[n](../notebooks/first_run.ipynb)", Path("docs/ppo.md"))
    assert notebook == "[n](../notebooks/first_run.md)"


@pytest.mark.slow
def test_no_page_of_the_site_names_anything_from_outside_to_be_loaded(site):
    parts = (
        r"""<(?:script|img|iframe|source)[^>]+src=["']?https?:|<link[^>]+href=["']?https?:|@import|url\(["']?https?:"""
    )
    loaded = re.compile(parts)
    for path in [*site.rglob("*.html"), *site.rglob("*.css")]:
        assert not loaded.search(path.read_text("utf-8")), path


@pytest.mark.slow
def test_the_reference_has_shapes_options_and_help_texts(site):
    text = {name: (site / f"docs/api/{name}.html").read_text("utf-8") for name in ("ppo", "math", "rewards", "stages")}
    assert "kl_horizon" in text["ppo"] and "Episodes in which the adaptive kl_coef reacts." in text["ppo"]
    assert "(B, T)" in text["math"] and "arXiv 1506.02438" in text["math"]
    assert "<code>unwanted_cost</code> (1.0): what each" in text["rewards"]
    assert "Rank of the LoRA matrices." in text["stages"]


@pytest.mark.slow
@pytest.mark.parametrize("window", [LAPTOP, PHONE], ids=["laptop", "phone"])
def test_pages_open_from_a_disk_without_a_request_and_fit_the_window(site, browser, window):  # noqa: F811
    for name in PAGES:
        page, asked, said = browser.new_page(viewport=window), [], []
        page.on("request", lambda request: asked.append(request.url))  # noqa: B023
        page.on("console", lambda message: said.append(message.text))  # noqa: B023
        page.on("pageerror", lambda error: said.append(str(error)))  # noqa: B023
        page.goto((site / f"{name}.html").as_uri())
        page.wait_for_load_state("networkidle", timeout=120_000)  # of a busy machine, too
        assert not [url for url in asked if not url.startswith(("file:", "data:"))], name
        assert not said, name
        assert page.evaluate("document.documentElement.scrollWidth") <= window["width"], name
        page.close()


@pytest.mark.slow
@pytest.mark.parametrize("sought", ["kl_horizon", "watchers", "chrf"])
def test_search_works_from_a_disk(site, browser, sought):  # noqa: F811
    page = browser.new_page(viewport=LAPTOP)
    page.goto((site / "docs/ppo.html").as_uri())
    page.click("input.md-search__input")
    page.keyboard.type(sought)
    found = page.locator(".md-search-result__item a.md-search-result__link")
    found.first.wait_for(timeout=20_000)
    assert found.first.get_attribute("href").startswith("file:")
    page.close()
