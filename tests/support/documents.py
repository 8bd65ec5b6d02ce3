"""The documents: pages, their blocks of code, headings and links."""

import re
import unicodedata
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from house import ROOT

FENCE = re.compile(r"^( *)```(.*)$")
INLINE = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
LINK = re.compile(r"\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)")


class Block(NamedTuple):
    """One fenced block of a page. `title` is the file that it is to be saved as, where it says so."""

    page: Path
    line: int
    language: str
    title: str | None
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def pages() -> list[Path]:
    names = ("README.md", "README.zh.md", "CONTRIBUTING.md", "CHANGELOG.md")
    return [*map(ROOT.joinpath, names), *sorted(ROOT.glob("docs/**/*.md")), *sorted(ROOT.glob("recipes/*/*.md"))]


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page, without the indent of a list that they stand in."""
    found, opened = [], None
    for number, line in enumerate(page.read_text("utf-8").splitlines(), 1):
        fence = FENCE.match(line)
        if opened is None and fence:
            word, _, rest = fence[2].partition(" ")
            title = re.search(r'title="([^"]+)"', rest)
            opened = (number, len(fence[1]), word, title and title[1], [])
        elif opened and fence and not fence[2] and len(fence[1]) == opened[1]:
            found.append(Block(page, opened[0], opened[2], opened[3], "\n".join([*opened[4], ""])))
            opened = None
        elif opened:
            opened[4].append(line[opened[1] :])
    assert opened is None, f"{page}: the block at line {opened[0]} is not closed"
    return found


def prose(page: Path) -> str:
    """The page without its fenced blocks."""
    return re.sub(r"(?ms)^( *)```.*?^\1```$", "", page.read_text("utf-8"))


def headings(text: str) -> list[tuple[int, str]]:
    """Level and text of each heading."""
    return [(len(hashes), title) for hashes, title in re.findall(r"(?m)^(#+) (.+)$", text)]


def anchors(page: Path) -> set[str]:
    """What a link to a part of the page may be called, on the site and where Markdown is shown as it is."""
    found: Counter[str] = Counter()
    names = set()
    for _, title in headings(prose(page)):
        name = slug(title)
        names.add(f"{name}-{found[name]}" if found[name] else name)
        found[name] += 1
    return names


def slug(title: str) -> str:
    """The anchor of a heading: small letters, digits, hyphens."""
    title = unicodedata.normalize("NFKD", LINK.sub(r"\1", title)).encode("ascii", "ignore").decode("ascii")
    return re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", title).strip().lower())


def links(page: Path) -> list[str]:
    """Where the links and pictures of a page lead; code is left out."""
    return [target for _, target in LINK.findall(INLINE.sub("", prose(page)))]


def inline_code(page: Path) -> list[str]:
    return INLINE.findall(prose(page))


def save_titled(page: Path, folder: Path) -> list[Path]:
    """Writes the blocks that name a file into `folder`, as somebody who follows the page would."""
    written = []
    for block in blocks(page):
        if block.title:
            written.append(folder / block.title)
            written[-1].parent.mkdir(parents=True, exist_ok=True)
            written[-1].write_text(block.text, "utf-8")
    return written
