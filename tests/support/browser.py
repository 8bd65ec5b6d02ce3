"""A real headless Chromium for the tests of pages: `from browser import browser, chromium  # noqa: F401`."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def chromium() -> str:
    """The path of a Chromium: an installed one, else one that Playwright has fetched. Skips where there is none."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    for name in NAMES:
        if found := shutil.which(name):
            return found
    with api.sync_playwright() as playwright:
        fetched = playwright.chromium.executable_path
    if not Path(fetched).is_file():
        pytest.skip(f"no browser: none of {', '.join(NAMES)} is installed, nor has `playwright install chromium` run")
    return fetched


@pytest.fixture(scope="module")
def browser() -> Iterator:
    """Chromium, started once for a module; `browser.new_page()` opens a page."""
    path = chromium()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # Chromium's own sandbox does not run as root, which is who one is in most containers.
        started = playwright.chromium.launch(executable_path=path, chromium_sandbox=os.geteuid() != 0)
        yield started
        started.close()
