"""People as judges, end to end: a real browser on the real page, then a reward model on what was preferred."""

import json
import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
from browser import browser  # noqa: F401
from judges import no_more_than, opened, serving
from rows import write_rows

from pipeline.config import DataArguments, ModelArguments, RewardStage
from pipeline.judging import results
from pipeline.stages import reward_model

ROOT = Path(__file__).resolve().parents[2]
ROWS = [{"prompt": f"{a}{b} =>", "before": f" {a}{b}!", "after": f" {a}{b}."} for a in "abcd" for b in "uvwxy"]
PHONE = {"viewport": {"width": 390, "height": 780}, "has_touch": True, "is_mobile": True}


@contextmanager
def looking(browser, url: str, said: tuple = (), **settings):  # noqa: F811
    """The page in a window of its own. In the end its console has `said` just that, and nobody else was asked."""
    context = browser.new_context(**settings)
    page = context.new_page()
    page.set_default_timeout(60_000)
    heard, asked = [], []
    page.on("console", lambda message: heard.append(message.text))
    page.on("pageerror", lambda error: heard.append(str(error)))
    page.on("request", lambda request: asked.append(request.url) if not request.url.startswith("data:") else None)
    page.goto(url)
    yield page
    context.close()
    assert heard == list(said) and all(each.startswith(url) for each in asked)


@contextmanager
def showing(browser, folder: Path, rows=ROWS, **settings):  # noqa: F811
    with opened(folder, rows) as verdicts, serving(verdicts) as (url, _), looking(browser, url, **settings) as page:
        yield page, verdicts


def wait_for_pair(page, number: int) -> None:
    page.get_by_text(f"Pair {number} of 20", exact=True).wait_for()


def better_one(page) -> str:
    """The key of a judge who likes full stops."""
    return "1" if page.inner_text("#left").endswith(".") else "2"


def test_twenty_pairs_by_keys_a_restart_and_a_reward_model(browser, tmp_path, tiny_model_folder, monkeypatch):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "judged"
    with showing(browser, folder) as (page, _):
        for number in range(1, 10):
            wait_for_pair(page, number)
            page.keyboard.press(better_one(page))
        wait_for_pair(page, 10)
    path = folder / "verdicts/anna.jsonl"
    path.write_bytes(path.read_bytes() + b'{"pair": 10, "pro')  # what a kill leaves behind
    with showing(browser, folder) as (page, verdicts):
        wait_for_pair(page, 10)
        page.keyboard.press("t")
        wait_for_pair(page, 11)
        page.keyboard.press("u")
        wait_for_pair(page, 10)
        page.keyboard.press("0")
        for number in range(11, 21):
            wait_for_pair(page, number)
            page.keyboard.press(better_one(page))
        page.get_by_text("All pairs are judged.", exact=True).wait_for()
        assert verdicts.done
        page.keyboard.press("Enter")
        page.get_by_text("Finished. Thank you!").wait_for()
        summary = results.collect(folder, verdicts.pairs)
    assert summary["judges"]["anna"]["wins"] == 19 and summary["judges"]["anna"]["ties"] == 1
    assert {row["left"] for row in verdicts.rows} == {"before", "after"}

    trained = reward_model.run(
        ModelArguments(model_name_or_path=str(tiny_model_folder), lora_r=4),
        DataArguments(dataset=str(folder / results.PREFERENCES), eval_fraction=0.25),
        RewardStage(
            output_dir="reward", num_train_epochs=8, learning_rate=1e-2, max_length=64,
            save_strategy="no", use_cpu=True,
        ),
    )  # fmt: skip
    assert trained["pairs"] + trained["heldout_pairs"] == 19
    assert trained["accuracy"] == 1.0 and trained["margin"] > 1  # it has learned to like full stops


def test_buttons_undo_and_the_switch_for_keys(browser, tmp_path):  # noqa: F811
    with showing(browser, tmp_path / "judged") as (page, verdicts):
        undo = page.get_by_role("button", name="Undo the last")
        assert undo.is_disabled()
        for number, name in enumerate(("1 is better", "Tie", "2 is better"), start=1):
            page.get_by_role("button", name=name, exact=True).click()
            wait_for_pair(page, number + 1)
        undo.click()
        wait_for_pair(page, 3)
        assert [row["verdict"] for row in verdicts.rows] == ["left", "tie"]
        page.get_by_role("checkbox").uncheck()
        page.keyboard.press("1")  # keys are off; this must do nothing
        page.get_by_role("checkbox").check()
        for key, number in (("Numpad2", 4), ("Shift+Digit1", 5), ("T", 6)):
            page.keyboard.press(key)
            wait_for_pair(page, number)
        page.keyboard.press("Control+1")
        page.keyboard.press("x")
        page.keyboard.press("u")
        wait_for_pair(page, 5)
        assert [row["verdict"] for row in verdicts.rows] == ["left", "tie", "right", "left"]


def test_by_tab_and_enter_and_what_a_screen_reader_hears(browser, tmp_path):  # noqa: F811
    with showing(browser, tmp_path / "judged") as (page, verdicts):
        for name in ("1 is better", "Tie"):
            page.keyboard.press("Tab")
            assert page.evaluate("document.activeElement.firstChild.textContent") == name
        page.keyboard.press("Enter")
        wait_for_pair(page, 2)
        assert page.evaluate("document.activeElement.id") == "judge-tie"  # the next verdict is one key away
        heard = page.get_by_role("status").text_content()
        pair = verdicts.pairs.pairs[1]
        assert heard.startswith("Tie.\nPair 2 of 20.\nPrompt: " + pair.prompt)
        assert "Completion 1: " in heard and pair.second.strip() in heard and "after" not in heard


def test_text_is_shown_as_text(browser, tmp_path):  # noqa: F811
    nasty = "</script><script>document.title='hacked'</script><b onclick=1>bold</b>"
    chat = [{"role": "user", "content": nasty}, {"role": "assistant", "content": "two\n  lines"}]
    rows = [{"prompt": chat, "before": nasty, "after": ""}]
    with showing(browser, tmp_path / "judged", rows) as (page, verdicts):
        assert page.title() == "Which is better? – Plumbline"
        assert page.inner_text("#prompt") == f"user{nasty}\n\nassistanttwo\n  lines"
        assert sorted([page.inner_text("#left"), page.inner_text("#right")]) == sorted([nasty, "(empty)"])
        assert page.locator("main b").count() == 0
        page.keyboard.press("1")
        page.get_by_text("All pairs are judged.", exact=True).wait_for()


def test_two_windows(browser, tmp_path):  # noqa: F811
    conflict = "Failed to load resource: the server responded with a status of 409 (CONFLICT)"  # Chromium's own words
    with opened(tmp_path / "judged", ROWS) as verdicts, serving(verdicts) as (url, _):
        with looking(browser, url) as first, looking(browser, url, (conflict,)) as second:
            first.keyboard.press("1")
            wait_for_pair(first, 2)
            second.keyboard.press("2")  # still shows the first pair
            wait_for_pair(second, 2)
            assert second.get_by_role("status").text_content().startswith("Another window was faster.")
            assert [row["verdict"] for row in verdicts.rows] == ["left"]


def test_a_verdict_that_is_not_saved_is_not_lost_in_silence(browser, tmp_path):  # noqa: F811
    failed = "Failed to load resource: the server responded with a status of 500 (INTERNAL SERVER ERROR)"
    gone = "Failed to load resource: net::ERR_CONNECTION_REFUSED"
    with opened(tmp_path / "judged", ROWS) as verdicts:
        running = serving(verdicts)
        url, _ = running.__enter__()
        with looking(browser, url, (failed, gone)) as page:
            problem = page.get_by_role("alert")
            with no_more_than(0):
                page.keyboard.press("1")
                problem.filter(has_text="Not saved. The verdict could not be written (File too large).").wait_for()
            page.keyboard.press("1")
            wait_for_pair(page, 2)
            assert problem.text_content() == ""
            running.__exit__(None, None, None)
            page.keyboard.press("1")
            problem.filter(has_text="Not saved. No answer. Is it still running in the terminal?").wait_for()
            assert page.get_by_text("Pair 2 of 20", exact=True).is_visible() and len(verdicts.rows) == 1


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("device", [{"viewport": {"width": 1280, "height": 760}}, PHONE], ids=["laptop", "phone"])
def test_it_fits_and_axe_finds_nothing(browser, tmp_path, scheme, device):  # noqa: F811
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
    long = "word " * 400 + "unbroken" * 60
    rows = [{"prompt": long, "before": long, "after": long + "!"}, ROWS[0]]
    with showing(browser, tmp_path / "judged", rows, color_scheme=scheme, **device) as (page, _):
        for visible in ("Pair 1 of 2", "Pair 2 of 2", "All pairs are judged."):
            page.get_by_text(visible, exact=True).wait_for()
            found = axe.Axe().run(page).response["violations"]
            assert [(each["id"], [node["html"] for node in each["nodes"]]) for each in found] == []
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
            if visible.startswith("Pair"):
                button = page.get_by_role("button", name="1 is better", exact=True)
                assert button.bounding_box()["y"] + button.bounding_box()["height"] <= device["viewport"]["height"]
                assert page.evaluate("scrollY") == 0
                page.mouse.wheel(0, 500)
                button.click()


@pytest.mark.slow
def test_the_recipe_is_killed_goes_on_and_ends_by_ctrl_c(browser, tmp_path):  # noqa: F811
    samples = write_rows(tmp_path / "samples.jsonl", ROWS)
    flags = ["--samples", samples, "--output_dir", str(tmp_path / "judged"), "--judge", "anna"]
    command = [sys.executable, str(ROOT / "recipes/judge.py"), *flags]
    env = os.environ | {"PYTHONPATH": str(ROOT)}

    def launch():
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env)
        for line in process.stdout:
            if line.startswith("Judge here: "):
                return process, line.split()[-1]
        raise AssertionError("it ended before it showed an address")

    process, url = launch()
    with looking(browser, url) as page:
        for number in (1, 2, 3):
            wait_for_pair(page, number)
            page.keyboard.press(better_one(page))
        wait_for_pair(page, 4)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert len((tmp_path / "judged/verdicts/anna.jsonl").read_text().splitlines()) == 3

    process, url = launch()
    with looking(browser, url) as page:
        wait_for_pair(page, 4)
        page.keyboard.press("0")
        wait_for_pair(page, 5)
    process.send_signal(signal.SIGINT)
    told, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    assert "3 won, 0 lost, 1 ties" in told and "16 pairs are left for anna: start again to go on." in told
    assert json.loads((tmp_path / "judged/summary.json").read_text())["judges"]["anna"]["wins"] == 3
