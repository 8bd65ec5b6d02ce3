"""The section about tokens: its figures by pencil, and its controls in a real browser."""

import json

import pytest
from browser import browser, chromium  # noqa: F401
from report_pages import token_row

from pipeline.errors import UserError
from pipeline.report import tokens as section
from pipeline.report.page import environment
from pipeline.report.tokens import SHIFTS, TOKENS, level, token_section, visible

EVIL = "<script>document.title = 'run'</script><img src=x onerror=alert(1)> {{ 7 * 7 }} &lt;"
PAGE = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Tokens</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><meta http-equiv="Content-Security-Policy"
content="default-src 'none'; style-src 'unsafe-inline'; script-src 'nonce-abc'">{style}</head>
<body><main><h1>A run</h1>{section}</main></body></html>"""


def shift(token: str, change: float) -> dict:
    example = {"prompt": "p", "context": f"I saw a{EVIL}", "before": 0.5, "after": 0.125}
    return {
        "token": token,
        "id": 7,
        "before": 40.0,
        "after": 40.0 + change,
        "change": change,
        "sampled_before": 3,
        "sampled_after": 1,
        "example": example,
    }


def run_folder(folder, rows, shifts=True):
    folder.mkdir(exist_ok=True)
    (folder / TOKENS).write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), "utf-8")
    if shifts:
        found = {"completions": [2, 3], "positions": 1234, "gains": [shift(" at", 4.5)], "losses": [shift(EVIL, -9.0)]}
        (folder / SHIFTS).write_text(json.dumps(found), "utf-8")
    return folder


def html(folder) -> str:
    environment_ = environment()
    style = "<style>" + environment_.get_template("style.css.j2").render() + "</style>"
    part = environment_.get_template("tokens.html.j2").render(tokens=token_section(folder), nonce="abc")
    return PAGE.format(style=style, section=part)


# ---------------------------------------------------------------- figures
def test_nothing_to_show(tmp_path):
    assert token_section(tmp_path) is None
    assert token_section(run_folder(tmp_path, [])) is None


def test_levels_grow_with_the_square_root_and_have_a_sign():
    assert [level(x, 0.0, 4.0) for x in (4.0, 1.0, 0.04, 0.0, -0.25, -4.0, 9.0)] == [100, 50, 10, 0, -25, -100, 100]
    assert level(3.0, 2.0, 1.0) == 100 and level(5.0, 5.0, 0.0) == 0


def test_the_scale_of_each_channel_is_told(tmp_path):
    found = token_section(run_folder(tmp_path, [token_row()]))
    legends = {c["name"]: [s["number"] for s in c["legend"]] for c in found["channels"]}
    assert legends["rewards"] == [-2.0, -0.5, 0.0, 0.5, 2.0]
    assert legends["values"] == [1.0, 1.75, 2.0, 2.25, 3.0]  # around its mean, 2
    assert legends["shift"] == [-0.25, -0.0625, 0.0, 0.0625, 0.25]
    first, second, _, last = found["rows"][0]["tokens"]
    # reward -0.02 of 2: the root of a hundredth; value at the lower end; advantage and KL at their largest
    assert first["style"] == "--r:-10;--v:-100;--a:100;--k:100;--s:100"
    assert second["style"] == "--r:-10;--v:100;--a:100;--k:100;--s:-100"
    assert first["numbers"] == "-0.02 0 1 0.25 0.04 0.5 0.75"
    assert (last["text"], last["silent"]) == ("", "</s>")


def test_without_a_critic_there_is_no_value_and_no_advantage(tmp_path):
    found = token_section(run_folder(tmp_path, [token_row(critic=False)], shifts=False))
    assert [channel["name"] for channel in found["channels"]] == ["rewards", "kl", "shift"]
    assert found["rows"][0]["tokens"][0]["numbers"] == "-0.02 0 - - 0.04 0.5 0.75"
    assert found["shifts"] is None
    assert "channel-values" not in html(tmp_path)


def test_where_all_is_paid_at_the_end_advantages_come_first(tmp_path):
    """The reward would color the last token alone. One row that was paid at a word, and rewards come first."""
    end, word = token_row(), token_row(scores=[0.0, 1.5, 0.0, 0.5])
    for i, (rows, first) in enumerate([([end, end], "advantages"), ([end, word], "rewards")]):
        found = token_section(run_folder(tmp_path / str(i), rows))
        rest = [name for name in ("rewards", "values", "advantages", "kl", "shift") if name != first]
        assert [channel["name"] for channel in found["channels"]] == [first, *rest]
        assert [channel["first"] for channel in found["channels"]] == [True, False, False, False, False]


def test_completions_of_a_kind_stand_together_and_long_ones_are_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(section, "MAX_TOKENS", 10)
    rows = [
        token_row(why="best"),
        token_row(["x"] * 8, why="worst"),
        token_row(why="most changed"),
        token_row(["y"] * 2, why="best"),
    ]
    found = token_section(run_folder(tmp_path, rows))
    # 4, not 4 + 8, 4 + 4, 4 + 4 + 2
    assert [r["why"] for r in found["rows"]] == ["best", "best", "most changed"] and found["left_out"] == 1
    found = token_section(run_folder(tmp_path, [token_row(["x"] * 12)]))
    assert len(found["rows"][0]["tokens"]) == 10 and found["rows"][0]["cut"] == 2


def test_the_section_stays_small(tmp_path):
    tokens = [" something"] * 200
    numbers = {name: [-0.000123456] * 200 for name in section.NUMBERS}
    page = html(run_folder(tmp_path, [token_row(tokens, **numbers) for _ in range(12)]))
    assert page.count("data-n=") == 9 * 200 and len(page.encode()) < 300_000


def test_spaces_can_be_seen():
    assert visible(" at") == "␣at" and visible("  ") == "␣␣" and visible(".\n") == ".⏎" and visible("a b") == "a b"


@pytest.mark.parametrize(
    ("text", "told"), [("{", "is not JSON"), (json.dumps(token_row(kl=[0.0])), "one number for each")]
)
def test_a_broken_file_is_told(tmp_path, text, told):
    (tmp_path / TOKENS).write_text(text + "\n")
    with pytest.raises(UserError, match=told):
        token_section(tmp_path)


# ---------------------------------------------------------------- in a browser
TEXTS = [("A", " he", "ron", " naps", ""), ("鹭", "", "🦊", f" {EVIL}\n", "\u2028", "end"), ("it", " is")]


@pytest.fixture(scope="module")
def page(tmp_path_factory, browser):  # noqa: F811
    """The section in Chromium; the console and every request are kept, a request would be one too many."""
    folder = run_folder(tmp_path_factory.mktemp("run"), [token_row(texts) for texts in TEXTS])
    (folder / "page.html").write_text(html(folder), "utf-8")
    opened = browser.new_page(viewport={"width": 900, "height": 700})
    opened.told, opened.asked = [], []
    opened.on("console", lambda message: opened.told.append(message.text))
    opened.on("pageerror", lambda error: opened.told.append(str(error)))
    opened.on("request", lambda request: opened.asked.append(request.url))
    opened.goto((folder / "page.html").as_uri())
    return opened


def test_text_stays_text_and_nothing_is_asked_for(page):
    shown = page.locator("[data-tokens]").all_text_contents()
    assert shown == ["A heron naps</s>", f"鹭</s>🦊 {EVIL}\n\u2028end", "it is"]
    assert page.title() == "Tokens" and page.locator("img").count() == 0 and page.locator("main script").count() == 1
    table = page.locator(".shifts").inner_text()
    assert EVIL in table and "{{ 7 * 7 }}" in table and "␣at" in table and "50.0 → 12.5 %" in table
    assert page.told == [] and len(page.asked) == 1


def background(page, token) -> str:
    return page.locator("[data-tokens] > span").nth(token).evaluate("t => getComputedStyle(t).backgroundImage")


def bars(page, token) -> list[str]:
    """Widths of the bars above and below a token."""
    read = "t => [getComputedStyle(t).borderTopWidth, getComputedStyle(t).borderBottomWidth]"
    return page.locator("[data-tokens] > span").nth(token).evaluate(read)


def test_the_channel_can_be_switched_by_mouse_and_keyboard(page):
    page.check("#channel-rewards")
    # the end of the first text was paid 2, its first token cost 0.02
    assert bars(page, 4) == ["0px", "4px"] and bars(page, 0) == ["1px", "0px"]
    before = background(page, 0)
    assert page.locator(".about-rewards").is_visible() and page.locator(".about-shift").is_hidden()
    page.get_by_label("Probability shift").click()
    assert bars(page, 0) == ["0px", "4px"] and bars(page, 4) == ["4px", "0px"]
    assert background(page, 0) != before
    assert page.locator(".about-shift").is_visible() and page.locator(".about-rewards").is_hidden()
    page.keyboard.press("ArrowLeft")
    assert page.locator("#channel-kl").is_checked() and page.locator(".about-kl").is_visible()
    assert bars(page, 4) == ["0px", "4px"]  # KL is at its largest everywhere


def focused(page) -> str:
    return page.evaluate("document.activeElement.textContent")


def test_tokens_are_walked_with_the_keyboard_and_told(page):
    status = page.get_by_role("status")
    page.locator("[name=channel]:checked").focus()
    page.keyboard.press("Tab")
    assert focused(page) == "A"
    for key, token in [
        ("ArrowRight", " he"),
        ("ArrowRight", "ron"),
        ("ArrowLeft", " he"),
        ("End", "</s>"),
        ("ArrowRight", "</s>"),  # nothing beyond the end
        ("Home", "A"),
        ("ArrowLeft", "A"),
    ]:
        page.keyboard.press(key)
        assert focused(page) == token, key
        assert f"“{token}”" in status.inner_text()
    told = " ".join(status.inner_text().split())
    assert told == (
        "token “A” reward −0.02 of it score 0 value 1 advantage 0.25 KL 0.04 probability before 0.5 after 0.75"
    )
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Tab")  # one stop a text
    assert focused(page) == "鹭"
    page.keyboard.press("Shift+Tab")
    assert focused(page) == " he"  # and back to where it was
    assert page.locator("[role=option][tabindex='0']").count() == len(TEXTS)
    assert page.locator("[role=option][aria-selected=true]").count() == 2
    assert page.told == []


def test_up_and_down_go_to_the_line_above_and_below(page):
    page.set_viewport_size({"width": 390, "height": 700})
    tokens = page.locator("[data-tokens]").nth(1).locator("[role=option]")
    tokens.nth(0).focus()
    page.keyboard.press("ArrowDown")
    below = page.evaluate("document.activeElement.getBoundingClientRect().bottom")
    assert below > tokens.nth(0).bounding_box()["y"] + tokens.nth(0).bounding_box()["height"]
    page.keyboard.press("Home")
    page.keyboard.press("ArrowUp")
    assert focused(page) == "鹭"
    page.set_viewport_size({"width": 900, "height": 700})


def test_numbers_on_hover(page):
    page.locator("[role=option]").nth(0).focus()
    status = page.get_by_role("status")
    page.locator("[data-tokens]").nth(2).locator("[role=option]").nth(1).hover()
    assert "“ is”" in status.inner_text() and "value 3" in " ".join(status.inner_text().split())
    page.locator("h1").hover()
    assert "“A”" in status.inner_text()  # what has the focus again


@pytest.mark.parametrize("width", [360, 900])
def test_nothing_sticks_out_to_the_side(page, width):
    page.set_viewport_size({"width": width, "height": 700})
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    tables = "[...document.querySelectorAll('.shifts .scroll')].every(t => t.scrollWidth <= t.clientWidth)"
    assert page.evaluate(tables)
    page.set_viewport_size({"width": 900, "height": 700})


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_accessibility(page, scheme):
    """axe-core finds nothing, contrast of the colored tokens included."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    page.emulate_media(color_scheme=scheme)
    page.check("#channel-rewards")
    found = axe.run(page)
    assert found.violations_count == 0, found.generate_report()


def test_without_a_script_the_colors_can_still_be_switched(tmp_path, browser):  # noqa: F811
    folder = run_folder(tmp_path, [token_row(scores=[0.0, 1.0, 0.0, 1.0])])
    (folder / "page.html").write_text(html(folder), "utf-8")
    plain = browser.new_context(java_script_enabled=False).new_page()
    plain.goto((folder / "page.html").as_uri())
    assert plain.locator("[role=status]").is_hidden()
    assert bars(plain, 3) == ["0px", "4px"] and bars(plain, 0) == ["1px", "0px"]  # the reward: 2 and -0.02
    plain.get_by_label("Value").check()
    assert bars(plain, 3) == ["0px", "4px"] and bars(plain, 0) == ["4px", "0px"]  # 3 and 1 around 2
    assert plain.locator(".about-values").is_visible() and plain.locator(".about-rewards").is_hidden()
