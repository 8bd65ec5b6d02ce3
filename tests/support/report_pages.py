"""The report: a run to report on, and its page taken apart."""

import html.parser
import json
from pathlib import Path

from rows import write_rows

EVIL = "<script>alert('x')</script>\"><img src=http://evil.example/a.png onerror=alert(1)> {{ 7 * 7 }} & </svg>"
LOADS = {"src", "srcset", "data", "action", "formaction", "poster", "background", "ping", "cite"}


class Page(html.parser.HTMLParser):
    """The parts of a page that could load, run or link anything, and its text."""

    def __init__(self, text: str):
        super().__init__()
        self.tags, self.attributes, self.text, self.open, self.unmatched = [], [], [], [], []
        self.scripts = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in ("meta", "link", "br", "img", "input", "hr"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.unmatched.append(tag)

    def handle_data(self, data):
        inside = self.open[-1] if self.open else ""
        {"script": self.scripts, "style": []}.get(inside, self.text).append(data)


def make_run(root: Path, evil: str = "") -> Path:
    ppo = root / "tiny" / "ppo"
    rows = [
        {"step": s, "epoch": s / 9, "score/keyword": s / 30, "kl": 0.1 * s, "loss/value": 1 / s} for s in range(1, 31)
    ]
    write_rows(
        ppo / "metrics.jsonl", [row | {f"score/{evil}": 1.0} for row in rows] + [{"step": 30, "train_runtime": 12.5}]
    )
    name = f"keyword{evil}"
    summary = {"before": {name: 0.25, "gold": 0.5}, "after": {name: 0.75, "gold": 0.625}, "kl": 3.25, "seconds": 95}
    summary |= {"episodes": 2048, "length": {"before": 20.5, "after": 18.25}}
    (ppo / "summary.json").write_text(json.dumps(summary), "utf-8")
    (ppo / "config.yaml").write_text(f"seed: 7\nnote: {evil}\n", "utf-8")
    sample = {"prompt": f"heron{evil}", "before": f"a bird{evil}", "after": f"a calm heron{evil}"}
    scores = {"scores_before": {name: 0.0}, "scores_after": {name: 1.0}}
    write_rows(ppo / "samples.jsonl", [sample | scores for _ in range(3)])
    write_rows(root / "tiny" / "sft" / "metrics.jsonl", [{"step": s, "loss": 3 / s} for s in range(1, 6)])
    return ppo


def token_row(tokens=("A", " he", "ron", ""), why="best", critic=True, **changes) -> dict:
    """A row of tokens.jsonl."""
    count = len(tokens)
    found = {
        "prompt": "animal: heron =>\n",
        "why": why,
        "row": 0,
        "score": 2.0,
        "score_before": -0.5,
        "kl_coef": 0.5,
        "tokens": list(tokens),
        "silent": {str(t): "</s>" for t, token in enumerate(tokens) if not token},
        "rewards": [-0.02] * (count - 1) + [2.0],
        "scores": [0.0] * (count - 1) + [2.0],
        "values": [1.0 + 2.0 * (t % 2) for t in range(count)] if critic else None,
        "advantages": [0.25] * count if critic else None,
        "kl": [0.04] * count,
        "probs_before": [0.5] * count,
        "probs_after": [0.75] + [0.25] * (count - 1),
    }
    return found | changes
