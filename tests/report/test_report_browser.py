"""The report in a real browser: nothing in the console, nothing from outside, every control, phone and laptop."""

import json
import re

import pytest
from browser import browser, chromium  # noqa: F401
from report_pages import EVIL, make_run
from rows import write_rows

from pipeline.report import write_comparison, write_report

LAPTOP, PHONE = {"width": 1280, "height": 800}, {"width": 390, "height": 844}
COUNT = 60  # samples; a few of them with scores that the tests know


def sample(i: int) -> dict:
    """Sample i: `bleu` falls with i before and rises after; every third has no `odd` score."""
    scores = [{"bleu": 1 - i / 100, "odd": None if i % 3 == 0 else float(i)}, {"bleu": i / 100, "odd": float(-i)}]
    row = {"prompt": f"prompt number {i:02d}", "before": f"before {i:02d}", "after": f"after {i:02d} {'word ' * i}"}
    return row | {"scores_before": scores[0], "scores_after": scores[1]}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run with 60 samples and a second one beside it, texts full of markup; PPO's, with exams."""
    root = tmp_path_factory.mktemp("runs")
    found = []
    for name in ("ppo", "other"):
        run = make_run(root / name, EVIL)
        evil = {"prompt": EVIL, "before": EVIL, "after": EVIL, "scores_before": {}, "scores_after": {}}
        write_rows(run / "samples.jsonl", [sample(i) for i in range(COUNT)] + [evil])
        exams = [
            {"step": i, "kl": i / 2, "score": i, "rewards": {"bleu": i}, "referee": {"gold": 3 - (i - 1) ** 2}}
            for i in range(4)
        ]
        write_rows(run / "heldout.jsonl", exams)
        (run / "config.yaml").write_text(f"seed: 0\nnote: {json.dumps(EVIL + name)}\n", "utf-8")
        found.append(run)
    return found


@pytest.fixture(scope="module")
def page_file(runs):
    return write_report(runs[0])


@pytest.fixture(scope="module")
def comparison_file(runs):
    return write_comparison(runs)


class Visit:
    """A page that is open, and what it said and asked for since."""

    def __init__(self, browser, path, **settings):  # noqa: F811
        self.page = browser.new_page(**{"viewport": LAPTOP} | settings)
        self.page.set_default_timeout(10_000)
        self.said, self.asked = [], []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.said.append(dialog.message), dialog.dismiss()))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(path.as_uri())

    def order(self) -> list[str]:
        """The prompts of the samples that are shown, from the top."""
        return self.page.locator("#sample-list article:not([hidden]) .prompt .text").all_text_contents()


@pytest.fixture
def visit(browser):  # noqa: F811
    opened = []

    def open_page(path, **settings) -> Visit:
        opened.append(Visit(browser, path, **settings))
        return opened[-1]

    yield open_page
    for found in opened:
        found.page.close()


def numbers(prompts: list[str]) -> list[int]:
    return [int(re.search(r"\d+", prompt)[0]) for prompt in prompts]


@pytest.mark.parametrize("kind", ["page_file", "comparison_file"])
@pytest.mark.parametrize(("window", "scheme"), [(LAPTOP, "light"), (PHONE, "dark")], ids=["laptop", "phone"])
def test_nothing_goes_wrong_anywhere(visit, kind, window, scheme, request):
    """No word in the console, no request but for the file, nothing wider than the window, no broken accessibility."""
    from axe_playwright_python.sync_playwright import Axe

    path = request.getfixturevalue(kind)
    there = visit(path, viewport=window, color_scheme=scheme)
    there.page.evaluate("for (const part of document.querySelectorAll('details')) part.open = true")
    assert there.page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    found = Axe().run(there.page)
    assert found.violations_count == 0, found.generate_report()
    assert there.said == [] and there.asked == [path.as_uri()]


def test_markup_in_texts_is_shown_and_never_run(visit, page_file):
    there = visit(page_file)
    there.page.locator("#all").click()
    texts = there.page.locator("#sample-list article").last.locator(".text").all_text_contents()
    assert texts == [EVIL] * 3
    assert there.page.locator("img").count() == 0 and there.page.locator("script").count() == 1
    # and were there a script from elsewhere, the page's policy would not let it run
    there.page.evaluate("document.body.append(Object.assign(document.createElement('script'), {text: 'evil = 1'}))")
    assert there.page.evaluate("typeof evil") == "undefined"
    assert len(there.said) == 1 and "Content Security Policy" in there.said[0]


def test_samples_are_sorted_by_score_side_and_direction(visit, page_file):
    there = visit(page_file)
    page = there.page
    assert numbers(there.order()) == list(range(10))
    assert page.locator("#sample-count").inner_text() == "10 of 61 samples shown"
    assert page.locator("#sort-of").is_disabled() and page.locator("#sort-order").is_disabled()
    page.locator("#sort-score").select_option("bleu")
    assert numbers(there.order()) == list(range(10))  # after: lowest first
    page.locator("#sort-order").select_option("highest (best)")
    assert numbers(there.order()) == list(range(59, 49, -1))
    page.locator("#sort-of").select_option("before")
    assert numbers(there.order()) == list(range(10))
    page.locator("#sort-of").select_option("the change")  # 2 i / 100 - 1
    assert numbers(there.order()) == list(range(59, 49, -1))
    page.locator("#sort-order").select_option("lowest (worst)")
    assert numbers(there.order()) == list(range(10))
    page.locator("#sort-score").select_option("words")  # of the change: as many more words as the sample's number
    page.locator("#sort-order").select_option("highest (best)")
    assert numbers(there.order()) == list(range(59, 49, -1))
    page.locator("#sort-score").select_option("order of the file")
    assert numbers(there.order()) == list(range(10))
    assert there.said == []


@pytest.mark.parametrize("direction", ["lowest (worst)", "highest (best)"])
def test_samples_without_the_score_come_last_either_way(visit, page_file, direction):
    there = visit(page_file)
    there.page.locator("#sort-score").select_option("odd")
    there.page.locator("#sort-of").select_option("before")
    there.page.locator("#sort-order").select_option(direction)
    there.page.locator("#all").click()
    found = there.order()
    known = [i for i in range(COUNT) if i % 3]
    assert numbers(found[:40]) == (known if direction.startswith("lowest") else known[::-1])
    assert numbers(found[40:60]) == list(range(0, COUNT, 3)) and found[60] == EVIL


def test_samples_are_filtered_by_any_of_their_texts(visit, page_file):
    there = visit(page_file)
    box, count = there.page.locator("#sample-filter"), there.page.locator("#sample-count")
    box.fill("AFTER 4")
    assert numbers(there.order()) == list(range(40, 50))
    assert count.inner_text() == "10 of 10 samples with this text shown"
    assert there.page.locator("#more").is_hidden() and there.page.locator("#all").is_hidden()
    there.page.locator("#sort-score").select_option("bleu")
    there.page.locator("#sort-order").select_option("highest (best)")
    assert numbers(there.order()) == list(range(49, 39, -1))
    box.fill("<script>")
    assert there.order() == [EVIL]
    box.fill("no such text")
    assert there.order() == [] and count.inner_text() == "0 of 0 samples with this text shown"
    box.fill("")
    assert len(there.order()) == 10


def test_more_samples_by_keyboard(visit, page_file):
    """The button that was pressed may go away; the keyboard then stands at the first sample that is new."""
    there = visit(page_file)
    there.page.locator("#more").focus()
    there.page.keyboard.press("Enter")
    assert len(there.order()) == 30
    assert there.page.evaluate("document.activeElement.getAttribute('aria-label')") == "Sample 11"
    there.page.locator("#all").focus()
    there.page.keyboard.press("Space")
    assert len(there.order()) == COUNT + 1
    assert there.page.evaluate("document.activeElement.getAttribute('aria-label')") == "Sample 31"
    assert there.page.locator("#more").is_hidden()


def test_every_control_is_reached_by_tab_and_every_part_opens(visit, page_file):
    there = visit(page_file)
    page = there.page
    wanted = "a[href], select:enabled, input, button, summary"
    for element in page.locator(wanted).all():
        assert element.evaluate("e => e.tabIndex") == 0 and element.is_visible()
    page.locator("#sort-score").focus()
    page.keyboard.press("Tab")  # over what is disabled, to the filter
    assert page.evaluate("document.activeElement.id") == "sample-filter"
    closed = page.locator("main details:not([open]) > summary")
    before = closed.count()
    closed.last.focus()
    page.keyboard.press("Enter")
    assert before > 0 and closed.count() == before - 1
    for link in page.locator("nav a").all():
        link.click()
        assert page.evaluate("document.querySelector(location.hash) !== null")


def test_without_a_script_every_sample_is_there(visit, page_file):
    """As in a mail program: no control that does nothing, and nothing hidden."""
    context = visit(page_file).page.context.browser.new_context(java_script_enabled=False, viewport=PHONE)
    page = context.new_page()
    page.goto(page_file.as_uri())
    articles = page.locator("#sample-list article")
    assert articles.count() == COUNT + 1 and articles.last.is_visible()
    assert page.locator("#sample-controls").is_hidden() and page.locator("#sample-more").is_hidden()
    context.close()


def test_in_black_and_white_before_and_after_have_other_dashes(visit, page_file):
    there = visit(page_file)
    dashes = there.page.locator("figure[aria-label^='Histogram of bleu'] svg path").evaluate_all(
        "paths => paths.map(p => [getComputedStyle(p).stroke, getComputedStyle(p).strokeDasharray])"
    )
    drawn = {(stroke, dash != "none") for stroke, dash in dashes if "rgb" in stroke}
    after, before = (
        there.page.evaluate(
            f"(() => {{ const e = document.body.appendChild(document.createElement('i')); "
            f"e.style.color = 'var(--line{i})'; return getComputedStyle(e).color; }})()"
        )
        for i in (0, 1)
    )
    assert (after, False) in drawn and (before, True) in drawn
    assert (after, True) not in drawn and (before, False) not in drawn


def test_the_marked_point_is_told_in_words(visit, page_file):
    there = visit(page_file)
    figure = there.page.get_by_role("group", name=re.compile("^Training score and gold by KL"))
    assert "After the exam at KL 0.5" in figure.inner_text()
    assert there.page.get_by_role("navigation", name="On this page").is_visible()


# ---------------------------------------------------------------- 2,000 samples
MANY = 2000


@pytest.fixture(scope="module")
def large_file(tmp_path_factory):
    run = make_run(tmp_path_factory.mktemp("large"))
    write_rows(run / "samples.jsonl", [sample(i) | {"after": f"after {i}"} for i in range(MANY)])
    return write_report(run)


def test_of_2000_samples_only_those_that_are_shown_are_part_of_the_page(visit, large_file):
    """What a browser lays out does not grow with the samples: that is what keeps the page quick."""
    there = visit(large_file)
    assert there.page.locator("#sample-list article").count() == len(there.order()) == 10
    assert there.page.locator("#sample-count").inner_text() == "10 of 2000 samples shown"
    assert there.page.evaluate("document.querySelectorAll('*').length") < 6000
    assert there.page.locator("#first-only").is_hidden() and there.said == []


def test_all_of_2000_samples_are_sorted_filtered_and_shown(visit, large_file):
    there = visit(large_file)
    page = there.page
    page.locator("#sort-score").select_option("bleu")
    page.locator("#sort-order").select_option("highest (best)")
    assert numbers(there.order()) == list(range(1999, 1989, -1))
    page.locator("#sample-filter").fill("after 1234")
    assert numbers(there.order()) == [1234]
    page.locator("#sample-filter").fill("")
    page.locator("#sort-score").select_option("order of the file")
    page.locator("#all").click()
    assert numbers(there.order()) == list(range(MANY)) and page.locator("#more").is_hidden()


def test_without_a_script_the_first_of_2000_samples_stand_there(visit, large_file):
    context = visit(large_file).page.context.browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(large_file.as_uri())
    assert page.locator("#sample-list article").count() == 200
    assert page.get_by_text("Without a script the page shows the first 200 of them.").is_visible()
    context.close()


def test_evidence_of_an_answer_is_one_click_away(visit, tmp_path):
    run = make_run(tmp_path)
    summary = json.loads((run / "summary.json").read_text())
    (run / "summary.json").write_text(json.dumps(summary | {"algorithm": "ppo"}))
    there = visit(write_report(run))
    questions = there.page.locator("#answers dt").all_inner_texts()
    assert questions == [
        "Is it better?", "By how much?", "Did it cheat?", "What did it cost?", "What should I try next?"
    ]  # fmt: skip
    for link in there.page.locator("#answers a").all():
        link.click()
        assert there.page.evaluate("document.querySelector(location.hash).getBoundingClientRect().top < innerHeight")
