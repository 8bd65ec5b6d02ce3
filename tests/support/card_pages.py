"""Model cards taken apart, and texts that would like to break out of one."""

from html.parser import HTMLParser
from pathlib import Path

from huggingface_hub import ModelCard
from markdown_it import MarkdownIt

HOSTILE = (
    "<script>alert('evil')</script>",
    "<img src=x onerror=\"alert('evil')\">",
    "\"'><svg onload=evil()>",
    "</code></pre><script>evil()</script>",
    "<!-- evil",
    "[evil](javascript:evil())",
    "![evil](https://evil.example/pixel.png)",
    "<https://evil.example>",
    "https://evil.example www.evil.example me@evil.example",
    "[evil]: https://evil.example",
    "---\nlicense: evil\n---\n",
    "\n---\n\n# evil\n\n* evil",
    "```\n<script>evil()</script>\n```",
    "`````\n\n<script>evil()</script>\n\n``````",
    "~~~\n<b>evil",
    "` <i>evil</i> `` <b>evil</b> ```",
    "evil | <b>evil</b> | `evil` |",
    "evil \\| <b>evil</b> \\\\| `|` \\`<b>evil",
    "{{ evil }}{% raw %}{# evil",
    "&lt;evil&gt;&#60;b&#62;",
    "\revil\r\n\u2028<b>evil\x0b\x0c\x85",
    "\u202elive \u2066\x1b[31m\x00 \ud800 evil",
)


class Page(HTMLParser):
    """The card as HTML: its elements with their attributes, the text in code, the text outside, the tables' rows."""

    def __init__(self, markdown: str):
        super().__init__()
        self.elements, self.code, self.outside, self.rows, self.inside = [], [], "", [], []
        html = MarkdownIt("commonmark", {"html": True}).enable("table").render(markdown)
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        self.inside.append(tag)
        if tag == "code":
            self.code.append("")
        elif tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.inside.pop() == tag

    def handle_data(self, data):
        if "code" in self.inside:
            self.code[-1] += data
        else:
            self.outside += data
        if "td" in self.inside:
            self.rows[-1][-1] += data

    def row(self, first: str) -> list[str]:
        return next(row for row in self.rows if row and row[0].startswith(first))


def page_of(path: Path) -> Page:
    return Page(ModelCard.load(path).text)
