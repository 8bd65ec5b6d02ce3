"""Two files of parallel text: read line by line together, or refused in one sentence."""

import gzip
from pathlib import Path

import pytest

from pipeline.config import DataArguments
from pipeline.data import loading as data
from pipeline.data.parallel_text import pair_of
from pipeline.errors import UserError


def rows_of(source, **settings):
    return data.load(DataArguments(dataset=str(source), **settings))[0].to_list()


@pytest.mark.parametrize(
    ("source", "files"),
    [
        ("a/train.{en,de}", ("a/train.en", "a/train.de")),
        ("{en,de}/train.txt.gz", ("en/train.txt.gz", "de/train.txt.gz")),
        ("{x.src,y.tgt}", ("x.src", "y.tgt")),
        ("train{,.de}", ("train", "train.de")),
        ("train.jsonl", None),
        ("train.{en}", None),
        ("train.{en,en}", None),
        ("train.{en,de,fr}", None),
        ("{a,b}.{en,de}", None),
    ],
)
def test_the_two_names(source, files):
    assert pair_of(source) == (files and tuple(map(Path, files)))


def test_line_n_goes_with_line_n(tmp_path):
    (tmp_path / "t.en").write_bytes("\ufeffThe owl.\r\n  \r\nA \u2028 B\r\n".encode())
    (tmp_path / "t.de.gz").write_bytes(gzip.compress(b"Die Eule.\n\nA und B"))
    (tmp_path / "t.en.gz").write_bytes(gzip.compress((tmp_path / "t.en").read_bytes()))
    expected = [
        {"source": "The owl.", "target": "Die Eule."},
        {"source": None, "target": None},
        {"source": "A \u2028 B", "target": "A und B"},
    ]
    assert rows_of(f"{tmp_path}/t.{{en,de}}.gz") == expected


def test_lines_that_do_not_pair_up_are_refused_with_both_counts(tmp_path):
    (tmp_path / "t.en").write_text("one\ntwo\nthree\n")
    (tmp_path / "t.de").write_text("eins\nzwei\n")
    with pytest.raises(UserError) as error:
        rows_of(f"{tmp_path}/t.{{en,de}}")
    assert f"{tmp_path}/t.en has 3 lines and {tmp_path}/t.de has 2" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_that_is_not_there_or_no_text(tmp_path):
    (tmp_path / "t.en").write_text("one\n")
    with pytest.raises(UserError, match=r"t\.de: there is no such file"):
        rows_of(f"{tmp_path}/t.{{en,de}}")
    (tmp_path / "t.de").write_bytes(b"eins \xff\n")
    with pytest.raises(UserError, match=r"t\.de, line 1 is not UTF-8"):
        rows_of(f"{tmp_path}/t.{{en,de}}")
    (tmp_path / "t.en").write_text("")
    (tmp_path / "t.de").write_text("")
    with pytest.raises(UserError, match="has no rows"):
        rows_of(f"{tmp_path}/t.{{en,de}}")


def test_a_file_with_braces_in_its_name_is_one_file(tmp_path):
    (tmp_path / "t{a,b}.jsonl").write_text('{"text": "x"}\n')
    assert rows_of(tmp_path / "t{a,b}.jsonl") == [{"text": "x"}]


def test_the_same_corpus_in_three_forms_gives_the_same_rows(tmp_path):
    (tmp_path / "t.en").write_text("The owl.\nThe goat.\n")
    (tmp_path / "t.de").write_text("Die Eule.\nDie Ziege.\n")
    (tmp_path / "t.tsv").write_text("source\ttarget\nThe owl.\tDie Eule.\nThe goat.\tDie Ziege.\n")
    (tmp_path / "t.jsonl").write_text(
        '{"source": "The owl.", "target": "Die Eule."}\n{"source": "The goat.", "target": "Die Ziege."}\n'
    )
    settings = {"prompt_template": "German: {source}\n", "completion_template": "{target}"}
    found = [rows_of(tmp_path / name, **settings) for name in ("t.{en,de}", "t.tsv", "t.jsonl")]
    assert found[0] == found[1] == found[2]
    assert found[0][1]["prompt"] == "German: The goat.\n" and found[0][1]["completion"] == "Die Ziege."


def test_blank_lines_are_dropped_and_counted_by_the_stages(tmp_path):
    (tmp_path / "t.en").write_text("The owl.\n\nThe goat.\n")
    (tmp_path / "t.de").write_text("Die Eule.\nLeer.\n\n")
    notes: list[str] = []
    settings = {"prompt_template": "German: {source}", "completion_template": "{target}"}
    args = DataArguments(dataset=f"{tmp_path}/t.{{en,de}}", **settings)
    rows, _ = data.load(args, "sft", log=notes.append)
    assert rows["source"][:] == ["The owl."]
    assert "1 rows dropped: prompt is empty (rows 2)" in notes[0] and "completion is empty (rows 3)" in notes[1]
