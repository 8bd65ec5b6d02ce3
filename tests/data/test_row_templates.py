"""Prompts and completions made of other columns."""

import pytest
from datasets import Dataset

from pipeline.config import DataArguments
from pipeline.data.row_templates import fill_templates
from pipeline.errors import UserError

ROWS = [
    {"text": "Double x.", "code": "def f(x): return {x: 1}", "tests": ["assert f(1)", "assert f(2)"], "n": 7},
    {"text": "Half {n}.", "code": None, "tests": [], "n": 8},
]


def filled(rows=ROWS, **settings):
    return fill_templates(Dataset.from_list(rows), DataArguments(**settings), "mine").to_list()


def test_a_template_by_hand():
    found = filled(prompt_template='{n}. {text}\n{tests}\n{"a": {}}\n', completion_template="# {n}\n{code}")
    assert found[0]["prompt"] == '7. Double x.\nassert f(1)\nassert f(2)\n{"a": {}}\n'
    assert found[0]["completion"] == "# 7\ndef f(x): return {x: 1}"
    # what stands in a value is never read as a template; a value that is not there makes an empty text
    assert found[1]["prompt"] == '8. Half {n}.\n\n{"a": {}}\n' and found[1]["completion"] == ""
    assert found[0]["tests"] == ROWS[0]["tests"]  # the rewards need it still


def test_one_entry_of_a_list():
    assert filled(ROWS[:1], prompt_template="{tests[1]}")[0]["prompt"] == "assert f(2)"


def test_rows_without_templates_are_left_alone():
    assert filled() == ROWS


def test_messages():
    found = filled(ROWS[:1], prompt_template="{text}", completion_template="{code}", as_messages=True)[0]
    assert found["prompt"] == [{"role": "user", "content": "Double x."}]
    assert found["completion"] == [{"role": "assistant", "content": "def f(x): return {x: 1}"}]
    found = filled([{"prompt": "Say a.", "completion": "a"}], as_messages=True)[0]
    assert found["prompt"][0]["content"] == "Say a." and found["completion"][0]["role"] == "assistant"
    found = filled([{"prompt": "Say a.", "chosen": "a", "rejected": "b"}], as_messages=True)[0]
    assert found["rejected"] == [{"role": "assistant", "content": "b"}] and found["chosen"][0]["content"] == "a"


def test_pairs_of_columns_with_other_names():
    row = {"ask": "Say a.", "better": "a", "worse": "b"}
    templates = {"prompt_template": "{ask}", "chosen_template": "{better}!", "rejected_template": "{worse}"}
    assert filled([row], **templates) == [row | {"prompt": "Say a.", "chosen": "a!", "rejected": "b"}]


def test_a_column_may_be_made_of_itself():
    assert filled([{"prompt": "a"}], prompt_template="Say {prompt}.") == [{"prompt": "Say a."}]


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("{txt}", "prompt_template: dataset mine has no column txt (it has text, code, tests, n); did you mean text?"),
        ("{tests[0]}", "row 2: {tests[0]} is not there, the list has 0 entries"),
        ("{text[0]}", "row 1: {text[0]} wants a list in the column text, not str"),
    ],
)
def test_what_does_not_fit_is_said(template, says):
    with pytest.raises(UserError) as error:
        filled(prompt_template=template)
    assert says in str(error.value) and "\n" not in str(error.value)


def test_a_column_that_is_no_text():
    with pytest.raises(UserError, match="row 1: the column x holds dict; a template wants text"):
        filled([{"x": {"a": 1}}], prompt_template="{x}")


def test_messages_already_there_are_refused():
    with pytest.raises(UserError, match="row 1: prompt is no text"):
        filled([{"prompt": [{"role": "user", "content": "a"}]}], as_messages=True)
