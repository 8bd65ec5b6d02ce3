"""People as judges: pairs and sides, the file of verdicts, the results, the settings."""

import json
import sys
from pathlib import Path

import pytest
from judges import COLUMNS, ROWS, load, no_more_than, opened
from rows import write_rows

from pipeline.cli import parse
from pipeline.data import loading as data
from pipeline.errors import UserError
from pipeline.judging import JudgeSettings, pairs, results, run
from pipeline.judging.verdicts import Verdicts, read_verdicts, winner


@pytest.fixture
def folder(tmp_path) -> Path:
    return tmp_path / "judged"


def prefer(verdicts: Verdicts, column: str) -> None:
    """The next verdict is for that column, whichever side it stands on; "tie" for none."""
    if column != "tie":
        on_left = (column == "after") == verdicts.second_left[len(verdicts.rows)]
        column = "left" if on_left else "right"
    verdicts.add(column, 1.0)


# --- pairs and sides -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 20, 21])
def test_sides_are_balanced_and_drawn_by_seed_and_judge(count):
    def sides(seed, judge):
        return pairs.Pairs(COLUMNS, seed, 0, [pairs.Pair("p", "a", "b")] * count).sides(judge)

    for seed in range(20):
        assert sum(sides(seed, "anna")) in (count // 2, (count + 1) // 2)
        assert sides(seed, "anna") == sides(seed, "anna")
    if count > 1:
        assert len({tuple(sides(seed, "anna")) for seed in range(20)}) > 15
        assert sides(0, "anna") != sides(0, "bert")


def test_the_order_is_drawn_by_seed_and_the_same_for_every_judge(tmp_path):
    rows = [{"prompt": f"p{i}", "before": "a", "after": "b"} for i in range(20)]
    orders = []
    for number, seed in enumerate((0, 0, 1)):
        (tmp_path / str(number)).mkdir()
        orders.append([pair.prompt for pair in load(tmp_path / str(number) / "judged", rows, seed=seed).pairs])
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[0]) == sorted(orders[2]) == sorted(row["prompt"] for row in rows)
    assert orders[0] != [row["prompt"] for row in rows]


def test_identical_completions_are_counted_and_not_shown(folder):
    same = [{"prompt": "p", "before": "x", "after": "x"}, {"prompt": "p", "before": "x", "after": " x\n"}]
    found = load(folder, ROWS + same)
    assert found.identical == 2 and len(found.pairs) == len(ROWS)


def test_any_two_columns_and_the_rows_of_an_evaluation(folder, tmp_path):
    found = load(folder, [{"prompt": "p", "a": "x", "b": "y", "n": 1}], ("b", "a"))
    assert found.pairs == [("p", "y", "x")] and found.columns == ("b", "a")
    said = {
        "sft": {"greedy": {"completion": "g"}, "sampled": {"completion": "s", "scores": {}}},
        "ppo": {"greedy": {"completion": "G"}, "sampled": {"completion": "S", "scores": {}}},
    }
    (tmp_path / "e").mkdir()
    (tmp_path / "f").mkdir()
    rows = [{"prompt": "p", "candidates": said}]
    assert load(tmp_path / "e/judged", rows, ("sft", "ppo")).pairs == [("p", "s", "S")]
    assert load(tmp_path / "f/judged", rows, ("sft.greedy", "ppo.greedy")).pairs == [("p", "g", "G")]


@pytest.mark.parametrize(
    "rows, columns, says",
    [
        (
            ROWS,
            ("before", "late"),
            r"row 1 has no column late \(it has prompt, before, after\): name two with --columns",
        ),
        ([{"before": "a", "after": "b"}], COLUMNS, "row 1 has no column prompt"),
        ([{"prompt": "p", "before": 1, "after": 2}], COLUMNS, "row 1: before is neither text nor messages"),
        ([{"prompt": "p", "before": "a", "after": "a"}], COLUMNS, "the same in every row"),
    ],
)
def test_samples_that_will_not_do(folder, rows, columns, says):
    with pytest.raises(UserError, match=says):
        load(folder, rows, columns)
    assert not folder.exists()


def test_a_folder_keeps_its_pairs(folder):
    found = load(folder)
    assert load(folder) == found == pairs.load(None, folder / "pairs.json", COLUMNS, 0)
    for other in (dict(rows=ROWS[:5]), dict(seed=1), dict(columns=("after", "before"))):
        with pytest.raises(UserError, match="holds verdicts on other pairs than .* give another --output_dir"):
            load(folder, **other)
    (folder / "pairs.json").write_text('{"pairs": [1]}')
    with pytest.raises(UserError, match="is not a list of pairs"):
        load(folder)


# --- the file of verdicts --------------------------------------------------------------------------------------------


def test_a_verdict_is_in_the_file_at_once_with_its_sides(folder):
    with opened(folder) as verdicts:
        for number, verdict in enumerate(["left"] * 4 + ["right", "tie"]):
            verdicts.add(verdict, 1.234)
            row = json.loads((folder / "verdicts/anna.jsonl").read_text().splitlines()[-1])
            sides = ("after", "before") if verdicts.second_left[number] else ("before", "after")
            assert (row["left"], row["right"]) == sides
            assert winner(row) == {"left": sides[0], "right": sides[1], "tie": None}[verdict]
            prompt = verdicts.pairs.pairs[number].prompt
            assert (row["pair"], row["prompt"], row["verdict"], row["seconds"]) == (number + 1, prompt, verdict, 1.2)


def test_a_judge_goes_on_and_takes_back(folder):
    path = folder / "verdicts/anna.jsonl"
    with opened(folder) as verdicts:
        verdicts.add("left", 1)
        verdicts.add("right", 1)
    two = path.read_bytes()
    with opened(folder) as verdicts:
        assert len(verdicts.rows) == 2 and not verdicts.done
        verdicts.add("tie", 1)
        verdicts.undo()
        assert path.read_bytes() == two
        verdicts.undo()
        verdicts.undo()
        verdicts.undo()  # nothing is left to take back
        assert path.read_bytes() == b"" and verdicts.rows == []
        verdicts.add("right", 1)
    assert [row["verdict"] for row in read_verdicts(path, load(folder))[0]] == ["right"]


def test_a_line_that_was_cut_by_a_kill_is_asked_again(folder):
    path = folder / "verdicts/anna.jsonl"
    rows = [dict(row, prompt=row["prompt"] + " é") for row in ROWS]
    with opened(folder, rows) as verdicts:
        verdicts.add("left", 1)
        whole = len(path.read_bytes())
        verdicts.add("right", 1)
    full = path.read_bytes()
    found = load(folder, rows)
    for cut in range(whole, len(full)):
        path.write_bytes(full[:cut])
        assert len(read_verdicts(path, found)[0]) == 1  # another judge's results meanwhile
        with Verdicts(path, found, "anna") as verdicts:
            assert len(verdicts.rows) == 1 and len(path.read_bytes()) == whole
            verdicts.add("right", 1)
        assert path.read_bytes() == full


BROKEN = {"pair": 1, "prompt": "?", "left": "x", "verdict": "after", "seconds": None}


@pytest.mark.parametrize("key", ["nonsense", "[]", *BROKEN])
def test_a_broken_line_is_named(folder, key):
    with opened(folder) as verdicts:
        verdicts.add("left", 1)
        verdicts.add("left", 1)
    path = folder / "verdicts/anna.jsonl"
    first, second = path.read_text().splitlines()
    broken = json.dumps(json.loads(second) | {key: BROKEN[key]}) if key in BROKEN else key
    path.write_text(f"{first}\n{broken}\n")
    with pytest.raises(UserError, match=r"anna.jsonl, line 2 is not a verdict on pair 2: mend or remove"):
        opened(folder)
    assert path.read_text() == f"{first}\n{broken}\n"  # nothing was thrown away


def test_one_judge_judges_in_one_place(folder):
    with opened(folder):
        with pytest.raises(UserError, match="anna is judging already"):
            opened(folder)
        opened(folder, judge="bert").__exit__()
    opened(folder).__exit__()


def test_a_full_disk_leaves_the_file_as_it_was(folder):
    path = folder / "verdicts/anna.jsonl"
    with opened(folder) as verdicts:
        verdicts.add("left", 1)
        one = path.read_bytes()
        for room in (0, 20):
            with no_more_than(len(one) + room), pytest.raises(OSError):
                verdicts.add("right", 1)
            assert path.read_bytes() == one and len(verdicts.rows) == 1
        verdicts.add("right", 1)
    assert [row["verdict"] for row in read_verdicts(path, load(folder))[0]] == ["left", "right"]


# --- results ---------------------------------------------------------------------------------------------------------


def judge_all(folder: Path, judge: str, wanted: str) -> None:
    """One letter a pair: a for after, b for before, t for a tie."""
    with opened(folder, judge=judge) as verdicts:
        for letter in wanted:
            prefer(verdicts, {"a": "after", "b": "before", "t": "tie"}[letter])


def test_preferences_are_what_the_reward_stage_reads(folder):
    judge_all(folder, "anna", "abta")
    judge_all(folder, "bert", "bb")
    found = load(folder)
    summary = results.collect(folder, found)
    rows = [json.loads(line) for line in (folder / "preferences.jsonl").read_text().splitlines()]
    p = found.pairs
    wanted = [
        {"prompt": p[0].prompt, "chosen": p[0].second, "rejected": p[0].first, "judge": "anna"},
        {"prompt": p[0].prompt, "chosen": p[0].first, "rejected": p[0].second, "judge": "bert"},
        {"prompt": p[1].prompt, "chosen": p[1].first, "rejected": p[1].second, "judge": "anna"},
        {"prompt": p[1].prompt, "chosen": p[1].first, "rejected": p[1].second, "judge": "bert"},
        {"prompt": p[3].prompt, "chosen": p[3].second, "rejected": p[3].first, "judge": "anna"},
    ]
    assert rows == wanted and summary["preferences"] == 5
    read, notes = data.clean(pairs.read(str(folder / "preferences.jsonl")), "preference")
    assert len(read) == 5 and notes == []  # none of them is dropped


def test_messages_stay_messages_and_empty_texts_are_left_out(folder):
    chat = [{"role": "user", "content": "Hello"}]
    rows = [
        {"prompt": chat, "before": "old", "after": "new"},
        {"prompt": chat, "before": "", "after": "new"},
    ]
    with opened(folder, rows) as verdicts:
        prefer(verdicts, "after")
        prefer(verdicts, "after")
    summary = results.collect(folder, load(folder, rows))
    row = json.loads((folder / "preferences.jsonl").read_text())
    answer = {
        side: [{"role": "assistant", "content": text}] for side, text in (("chosen", "new"), ("rejected", "old"))
    }
    assert row == {"prompt": chat, **answer, "judge": "anna"}
    assert summary["left_out_as_empty"] == 1 and summary["judges"]["anna"]["wins"] == 2
    read, _ = data.clean(pairs.read(str(folder / "preferences.jsonl")), "preference")
    assert len(read) == 1


def test_the_summary_of_one_judge_by_pencil(folder):
    judge_all(folder, "anna", "aaabt")
    anna = results.collect(folder, load(folder))["judges"]["anna"]
    assert {key: anna[key] for key in ("judged", "wins", "losses", "ties")} == {
        "judged": 5, "wins": 3, "losses": 1, "ties": 1,
    }  # fmt: skip
    assert anna["ties_as_half"]["rate"] == pytest.approx(3.5 / 5) and anna["ties_as_half"]["n"] == 5
    assert anna["ties_left_out"]["rate"] == pytest.approx(3 / 4) and anna["ties_left_out"]["n"] == 4
    # z^2 = 3.8415: (2*3 + z^2 -+ 1.96 sqrt(z^2 + 4*4*0.75*0.25)) / (2 (4 + z^2)) = (9.8415 -+ 5.1266) / 15.6829
    assert anna["ties_left_out"]["low"] == pytest.approx(0.3006, abs=1e-4)
    assert anna["ties_left_out"]["high"] == pytest.approx(0.9544, abs=1e-4)
    assert anna["seconds"] == 1.0
    rows = read_verdicts(folder / "verdicts/anna.jsonl", load(folder))[0]
    assert anna["left"] == sum(row["verdict"] == "left" for row in rows) / 4


def test_the_summary_of_several_judges_by_pencil(folder):
    judge_all(folder, "anna", "aabt")
    judge_all(folder, "bert", "aab")
    two = results.collect(folder, load(folder))
    # On three pairs both say a, a, b.
    assert two["agreement"] == {"pairs": 3, "raw": 1, "krippendorff_alpha": 1, "cohen_kappa": 1}
    judge_all(folder, "cleo", "abbaa")
    three = results.collect(folder, load(folder))
    # Units aaa, aab, bbb, ta, a: of 3 + 3 + 3 + 1 pairs of verdicts 3 + 1 + 3 + 0 are equal.
    assert three["agreement"]["raw"] == pytest.approx(7 / 10) and three["agreement"]["pairs"] == 4
    # n_a = 6, n_b = 4, n_t = 1, n = 11; disagreements: aab 2 * 2 / 2, ta 2 * 1 / 1; n^2 - sum n_c^2 = 121 - 53.
    assert three["agreement"]["krippendorff_alpha"] == pytest.approx(1 - 10 * 4 / 68)
    assert "cohen_kappa" not in three["agreement"]
    # Majorities: a, a, b, a (one vote and a tie), a.
    assert {key: three["majority"][key] for key in ("wins", "losses", "ties")} == {"wins": 4, "losses": 1, "ties": 0}
    told = results.table(three)
    assert "anna: 2 won, 1 lost, 1 ties; win rate 0.62 (" in told and "agreement 0.70" in told
    assert results.majority(["after", "before"]) == results.majority(["tie", "tie"]) == "tie"


# --- the stage -------------------------------------------------------------------------------------------------------


def settings(folder: Path, *more: str) -> JudgeSettings:
    return parse(JudgeSettings, argv=["--output_dir", str(folder), *more])[0]


@pytest.mark.parametrize(
    "flags, says",
    [
        (["--judge", "../x"], "judge: '../x' is not valid: a name of letters"),
        (["--judge", ""], "judge: '' is not valid"),
        (["--columns", "before"], "columns: .* is not valid: the names of two columns"),
        (["--columns", "a", "a"], "columns: .* is not valid"),
        (["--columns", "a", "tie"], "columns: .* is not valid"),
        (["--port", "99999"], "port: 99999 is not valid"),
    ],
)
def test_settings_that_will_not_do(folder, flags, says):
    with pytest.raises(UserError, match=says):
        settings(folder, *flags)


def test_what_is_missing_is_named(folder, monkeypatch):
    with pytest.raises(UserError, match="samples is not set"):
        run(settings(folder))
    with pytest.raises(UserError, match="output_dir is not set"):
        run(parse(JudgeSettings, argv=[])[0])
    folder.write_text("a file")
    samples = write_rows(folder.parent / "samples.jsonl", ROWS)
    with pytest.raises(UserError, match="output_dir .*judged cannot be written"):
        run(settings(folder, "--samples", samples))
    monkeypatch.setitem(sys.modules, "flask", None)
    monkeypatch.delitem(sys.modules, "pipeline.judging.server")
    monkeypatch.delattr("pipeline.judging.server")
    with pytest.raises(UserError, match="flask, which is not installed: pip install flask"):
        run(settings(folder, "--samples", samples))


def test_who_has_judged_everything_gets_the_results_at_once(folder, capsys):
    judge_all(folder, "anna", "aaabtt")
    summary = run(settings(folder, "--judge", "anna"))  # without --samples: the folder has the texts
    told = capsys.readouterr().out
    assert summary["judges"]["anna"]["wins"] == 3 and "http://" not in told
    assert "anna has judged 6 of 6" in told and "4 preference pairs lie in" in told and "make reward ARGS=" in told
