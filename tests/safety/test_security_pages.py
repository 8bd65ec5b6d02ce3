"""Text from models, data, settings, names and errors on pages and in the terminal: shown as text, in every place.

The page is opened in Chromium, with markup, attribute breaks and script wherever a run folder can hold a word.
"""

import json
import sys
from pathlib import Path

import pytest
import yaml
from browser import browser  # noqa: F401
from report_pages import token_row
from rows import write_rows

from pipeline import cli
from pipeline.config import DataArguments
from pipeline.data import loading as data
from pipeline.errors import UserError
from pipeline.report import write_comparison, write_report
from pipeline.safety.console import say
from pipeline.safety.visible import visible

EVIL = '\'"><img src=x onerror="hacked=1"><script>hacked=1</script>{{7*7}}<!--]]>'
NAME = EVIL.replace("/", "\u2215")  # as part of a path
ESCAPES = "\x1b[2J\x1b]0;title\x07\x9b31m\u202egnp.exe\r"


def evil_run(root: Path, name: str, kind: str = "ppo", evil: str = EVIL) -> Path:
    """A run folder with `evil` as every text and every name in it."""
    folder = root / name
    means = {f"keyword{evil}": 0.25, f"gold{evil}": 0.5, "length": 4.0}
    summary = {"before": means, "after": means, "kl": 1.0, "seed": 0, "episodes": 3, "base": evil, "dtype": evil}
    summary |= {"hardware": evil, "started_from": evil, "base_fingerprint": evil, f"odd{evil}": evil}
    summary |= {"greedy": {"before": means, "after": means}}
    summary |= {"stage": "reward", "accuracy": 0.5, "heldout_pairs": 1} if kind == "reward" else {"algorithm": evil}
    config = {"seed": 0, "adapter_path": evil, "referee": evil, f"key{evil}": evil, "note": f"{name}{evil}"}
    rewards, referee = f"keyword{evil}", f"gold{evil}"
    exams = [
        {"step": i, "kl": i / 2, "score": i, "rewards": {rewards: i}, "referee": {referee: 3 - (i - 1) ** 2}}
        for i in range(4)
    ]
    sample = {"prompt": evil, "before": evil, "after": [{"role": evil, "content": evil}]}
    scores = {f"keyword{evil}": 0.5, f"gold{evil}": 1.0}
    pair = {"prompt": evil, "chosen": evil, "rejected": [{"role": evil, "content": evil}]}
    tokens = token_row([evil, ""]) | {"prompt": evil, "why": evil, "silent": {"1": evil}}
    shift = {"token": evil, "id": 1, "before": 1.0, "after": 2.0, "change": 1.0, "sampled_before": 1}
    shift |= {"sampled_after": 2, "example": {"prompt": evil, "context": evil, "before": 0.1, "after": 0.2}}
    metrics = [{"step": s, f"score/{evil}": s, evil: s, f"time/{evil}": 1.0, "time/b": 2.0} for s in range(1, 5)]
    write_rows(folder / "metrics.jsonl", [*metrics, {"step": 9, f"once{evil}": 1.0}])
    write_rows(folder / "heldout.jsonl", exams)
    write_rows(folder / "samples.jsonl", [sample | {"scores_before": scores, "scores_after": scores}] * 2)
    write_rows(folder / "pairs.jsonl", [pair | {"score_chosen": 0.0, "score_rejected": 1.0}])
    write_rows(folder / "tokens.jsonl", [tokens])
    shifts = {"completions": [1, 1], "positions": 3, "gains": [shift], "losses": [shift]}
    (folder / "shifts.json").write_text(json.dumps(shifts), "utf-8")
    (folder / "summary.json").write_text(json.dumps(summary), "utf-8")
    (folder / "config.yaml").write_text(yaml.safe_dump(config, allow_unicode=True), "utf-8")
    return folder


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("pages") / NAME
    runs = [evil_run(root, NAME), evil_run(root, f"b{NAME}"), evil_run(root, "reward", "reward")]
    made = {"run": write_report(runs[0]), "reward": write_report(runs[2]), "several": write_comparison(runs[:2])}
    for name, path in made.items():  # an address with such a name in it is the browser's matter, not ours
        target = root.parent / f"{name}.html"
        target.write_bytes(path.read_bytes())
        made[name] = target
    return made


@pytest.mark.parametrize("kind", ["run", "reward", "several"])
@pytest.mark.parametrize("policy", [True, False], ids=["with its policy", "without its policy"])
def test_nothing_in_a_run_folder_becomes_markup(browser, pages, kind, policy):  # noqa: F811
    """Also without the page's Content-Security-Policy, so that the escaping alone has to hold."""
    path = pages[kind]
    if not policy:
        text = path.read_text("utf-8")
        assert text.count("Content-Security-Policy") == 1
        path = path.with_name(f"{kind}-bare.html")
        path.write_text(text.replace("Content-Security-Policy", "X-Nothing"), "utf-8")
    page = browser.new_page()
    said, asked = [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("dialog", lambda dialog: (said.append(dialog.message), dialog.dismiss()))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(path.as_uri())
    page.evaluate("for (const part of document.querySelectorAll('details')) part.open = true")
    page.mouse.move(200, 300)
    assert page.evaluate("typeof hacked") == "undefined" and said == [] and asked == [path.as_uri()]
    assert page.locator("img").count() == 0
    assert all(page.locator("script").evaluate_all("all => all.map(s => s.nonce !== '' && !s.src)"))
    handlers = "all => all.flatMap(e => [...e.attributes].map(a => a.name)).filter(n => n.startsWith('on'))"
    assert page.locator("*").evaluate_all(handlers) == []
    text = page.evaluate("document.documentElement.textContent")
    # it is there, in full, and was not run by the templates either
    assert text.count(EVIL) >= {"run": 30, "reward": 10, "several": 4}[kind] and "{{7*7}}" in text
    assert NAME in page.title() and "49" not in page.title()
    page.close()


# ------------------------------------------------------------ the terminal
def harmless(text: str) -> bool:
    return not set(text) & set("\x1b\x07\x9b\u202e\r")


def test_what_is_said_cannot_drive_the_terminal(capsys):
    say(f"a{ESCAPES}b\nsecond line")
    said = capsys.readouterr().out
    assert harmless(said) and "\\x1b[2J" in said and said.endswith("b\nsecond line\n")
    assert visible("plain") == "plain" and visible("é 鹭 🦊\n") == "é 鹭 🦊\n"


def test_an_error_about_hostile_data_is_text(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # launch sets its own
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({f"col{ESCAPES}": "x"}) + "\n", "utf-8")
    with pytest.raises(SystemExit) as caught:
        cli.launch(lambda: data.load(DataArguments(str(rows)), "sft"))
    said = capsys.readouterr().err
    assert caught.value.code == 2 and said.startswith("error: ") and "col\\x1b" in said and harmless(said)


def test_a_misspelt_key_is_shown_in_short_and_as_text(tmp_path):
    (tmp_path / "a.yaml").write_text(yaml.safe_dump({"x" * 5000: 1}))
    with pytest.raises(UserError) as caught:
        cli.parse(DataArguments, argv=["--config", str(tmp_path / "a.yaml")])
    assert len(str(caught.value)) < 500
