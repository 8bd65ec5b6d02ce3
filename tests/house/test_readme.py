"""The front page: short, and in Chinese the same."""

import re
from collections import Counter

from documents import blocks, headings, inline_code, links, prose
from house import ROOT

ENGLISH, CHINESE = ROOT / "README.md", ROOT / "README.zh.md"


def test_the_readme_is_a_screen_and_a_half():
    text = ENGLISH.read_text("utf-8")
    assert len(text.splitlines()) <= 110 and len(text.split()) <= 1000
    assert [title for _, title in headings(prose(ENGLISH))] == [
        *("Plumbline", "Run it", "A real model", "You want, you type", "Where the rest is")
    ]


def test_the_chinese_readme_has_the_headings_commands_and_figures_of_the_english_one():
    assert [level for level, _ in headings(prose(ENGLISH))] == [level for level, _ in headings(prose(CHINESE))]
    for one, other in zip(blocks(ENGLISH), blocks(CHINESE), strict=True):
        assert (one.language, one.text) == (other.language, other.text)
    assert Counter(inline_code(ENGLISH)) == Counter(inline_code(CHINESE))
    assert links(ENGLISH)[1:] == links(CHINESE)[1:]
    assert (links(ENGLISH)[0], links(CHINESE)[0]) == ("README.zh.md", "README.md")
    assert figures(ENGLISH) == figures(CHINESE)
    rows = [len(re.findall(r"(?m)^\|", prose(page))) for page in (ENGLISH, CHINESE)]
    assert rows[0] == rows[1]


def figures(page) -> Counter:
    """The numbers of the page, as they are written, in order of no matter."""
    return Counter(re.findall(r"\d+(?:[.,]\d+)*", prose(page)))


def test_the_chinese_readme_is_chinese():
    words = re.sub(r"`[^`]*`|\([^)]*\)|!?\[|\]", "", prose(CHINESE))
    han = len(re.findall(r"[\u4e00-\u9fff]", words))
    assert han > 600 and han > len(re.findall(r"[A-Za-z]", words))


def test_the_figures_of_the_readme_are_those_of_the_results():
    results = (ROOT / "recipes/tiny/RESULTS.md").read_text("utf-8")
    pairs = re.findall(r"(\d\.\d{3}) to (\d\.\d{3})", prose(ENGLISH))
    assert len(pairs) == 4  # the picture, and three seeds
    assert all(f"{before} → {after}" in results for before, after in pairs)
    real = (ROOT / "recipes/smollm2/RESULTS.md").read_text("utf-8")
    shares = re.search(
        r"by (0\.\d{3}) of the answers\s+before and (0\.\d{3}) after; .* never showed: (0\.\d{3}) and (0\.\d{3})",
        prose(ENGLISH),
    )
    assert all(
        re.search(rf"^\| {name}\b[^|]*\| (\*\*)?{share}\b", real, re.M)
        for name, share in zip(("base", "PPO", "base", "PPO"), shares.groups(), strict=True)
    )
    for pair in re.findall(r"SFT  (.+)  gold ([\d.]+)\n  PPO  (.+)  gold ([\d.]+)", blocks(ENGLISH)[1].text):
        first_run = (ROOT / "docs/tutorials/first-run.md").read_text("utf-8")
        assert all(part in first_run for part in pair)
