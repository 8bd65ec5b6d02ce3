"""Pictures of a real report for the README: `python docs/screenshots.py runs/tiny/ppo/report.html`.

Writes docs/images/report-light.png and report-dark.png (a laptop) and report-phone.png, by Playwright and the Chromium
that is installed (or that `playwright install chromium` has fetched).
"""

import os
import shutil
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

IMAGES = Path(__file__).parent / "images"
LAPTOP, PHONE = {"width": 1200, "height": 900}, {"width": 390, "height": 844}
# name -> window, color scheme, and the part of the page at the top of the picture
SHOTS = {
    "light": (LAPTOP, "light", "body"),
    "dark": (LAPTOP, "dark", "#better"),
    "phone": (PHONE, "light", "#samples"),
}

# What lies far below is laid out only when it comes near, so what is above it moves: scroll until nothing does.
SCROLL = """async part => {
    for (let i = 0; i < 5; i++) {
        part.scrollIntoView();
        await new Promise(resolve => requestAnimationFrame(() => setTimeout(resolve, 100)));
    }
}"""


def main(page_path: Path) -> None:
    if not page_path.is_file():
        raise SystemExit(f"error: {page_path} does not exist: run `make ppo report` first, or name another report")
    IMAGES.mkdir(exist_ok=True)
    installed = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=installed, chromium_sandbox=os.geteuid() != 0)
        for name, (window, scheme, part) in SHOTS.items():
            page = browser.new_page(viewport=window, color_scheme=scheme)
            page.goto(page_path.resolve().as_uri())
            page.locator(part).evaluate(SCROLL)
            page.screenshot(path=IMAGES / f"report-{name}.png")
            print(IMAGES / f"report-{name}.png")
        browser.close()


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("usage: python docs/screenshots.py runs/tiny/ppo/report.html")
    main(Path(sys.argv[1]))
