"""tests/tools/latest.py, which `make test-latest` runs: what it pins, what it says. It installs nothing here."""

import latest


def test_dependencies_are_names_without_ranges():
    project = {"dependencies": ["trl>=1.16,<1.17", "PyYAML>=6.0"]}
    project["optional-dependencies"] = {"dev": ["pre-commit>=4"], "quant": [], "ja": ["mecab_python3"], "cuda": ["x"]}
    assert latest.dependencies({"project": project}) == ["mecab-python3", "pre-commit", "pyyaml", "trl"]


def test_what_stays_pinned(tmp_path, monkeypatch):
    commands = []

    class Done:
        returncode = 0

    monkeypatch.setattr(latest.subprocess, "run", lambda command, **kwargs: commands.append(command) or Done)
    monkeypatch.setattr(latest, "VENV", tmp_path)
    pins = latest.pinned((latest.ROOT / "constraints.txt").read_text("utf-8"))
    assert latest.install(pins)
    kept = latest.pinned((tmp_path / "constraints.txt").read_text("utf-8"))
    assert kept["torch"] == pins["torch"] and kept["pre-commit"] == pins["pre-commit"]
    assert not set(kept) & {*latest.LIBRARIES, "huggingface-hub", "tokenizers"}
    upgrade, project = commands[-2:]
    assert set(latest.LIBRARIES) <= set(upgrade) and "--upgrade" in upgrade and "--no-deps" in project


def test_the_report_tells_newer_versions_and_held_back_ones():
    pins = dict.fromkeys(latest.LIBRARIES, "1.0")
    found = pins | {"trl": "1.1", "peft": "0.9"}
    assert latest.describe(found, pins, found | {"peft": "1.2"}) == (
        "trl 1.1 (pin 1.0), transformers 1.0 (as pinned), peft 0.9 (pin 1.0, held back: 1.2 exists), "
        "accelerate 1.0 (as pinned), datasets 1.0 (as pinned)"
    )
    assert "held back" not in latest.describe(found, pins, {})


def test_errors_count_as_failed(tmp_path):
    file = tmp_path / "report.xml"
    assert latest.tally(file) == "pytest did not get as far as a report"
    file.write_text('<testsuites><testsuite tests="10" failures="2" errors="1" skipped="3"/></testsuites>')
    assert latest.tally(file) == "4 passed, 3 failed, 3 skipped"
