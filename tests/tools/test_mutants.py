"""The list of wrong edits fits the code as it is, and its table is up to date. `make mutants` tries the edits."""

import ast

from mutants import ROOT, TABLE, edited_file, read_mutants, table


def test_every_edit_fits_the_code_and_leaves_python():
    mutants = read_mutants()
    assert len(mutants) >= 30 and len({m["what"] for m in mutants}) == len(mutants)
    for mutant in mutants:
        text = edited_file(ROOT, mutant["file"]).read_text(encoding="utf-8")
        edited = text.replace(mutant["old"], mutant["new"])
        assert ast.dump(ast.parse(edited)) != ast.dump(ast.parse(text)), mutant["what"]


def test_the_table_is_that_of_this_list_and_nothing_survived():
    found = TABLE.read_text(encoding="utf-8")
    rows = [line.split(" | ") for line in found.splitlines() if line.startswith("| ") and line[2].isdigit()]
    assert [(row[1], row[2]) for row in rows] == [(f"`{m['file']}`", m["what"]) for m in read_mutants()]
    assert "survived" not in found and f"Caught: {len(rows)} of {len(rows)}" in found


def test_a_survivor_is_shown_in_the_table():
    text = table([(1, "a.py", "one", "test_x.py::test_y"), (2, "b.py", "two", None)])
    assert "Caught: 1 of 2." in text
    assert "| 1 | `a.py` | one | `test_x.py::test_y` |" in text and "| 2 | `b.py` | two | survived |" in text
