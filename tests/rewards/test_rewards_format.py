"""The format reward: patterns with a time limit, sections in order, JSON by a schema."""

import json

import pytest

from rewards import Format, RewardError, build_rewards

ANSWER = r"(?m)^#### \d+\Z"


def scores(reward, *completions):
    return reward(["p"] * len(completions), list(completions))


def test_a_pattern():
    assert scores(Format(pattern=ANSWER), "so\n#### 12", "#### 12\nor so", "12", "") == [1, 0, 0, 0]
    assert scores(Format(pattern="^yes$"), "yes", "oh yes", [{"role": "assistant", "content": "yes"}]) == [1, 0, 1]


def test_several_patterns():
    patterns = ["[0-9]", "(?i)because", r"\.$", "^[A-Z]"]
    assert scores(Format(pattern=patterns), "No. 5, because it is.", "5 it is.") == [1, 0]
    assert scores(Format(pattern=patterns, partial=True), "No. 5, because it is.", "5 it is.", "") == [1, 0.5, 0]


@pytest.mark.parametrize("pattern", ["^(a|aa)+$", "(x+x+)+y", "^(0|00)*$"])
def test_a_catastrophic_pattern_is_refused_when_it_is_read(pattern):
    with pytest.raises(RewardError, match="more than 0.2 seconds .* it backtracks"):
        Format(pattern=pattern, seconds=0.2)


def test_a_catastrophic_completion_ends_in_an_error():
    """No trial meets this one: the pattern runs away on q alone."""
    reward = Format(pattern="^(q|qq)+$", seconds=0.2)
    assert scores(reward, "qqq", "q" * 10 + "!") == [1, 0]
    with pytest.raises(RewardError, match="Reward 'format': the regular expression .* on a text of 5001 characters"):
        scores(reward, "q" * 5000 + "!")


def test_patterns_that_take_long_on_nothing_are_not_refused():
    Format(
        pattern=[r"(?s)<think>.*</think>.*<answer>.*</answer>", r"^\s*\S.*\S\s*$", r"(\d+)\s*\+\s*(\d+)\s*=\s*(\d+)"]
    )


# --- sections -------------------------------------------------------------------------------------------------------
GOOD = "<think>\nhm\n</think>\n<answer>4</answer>"


@pytest.mark.parametrize(
    ("text", "whole", "part"),
    [
        (GOOD, 1, 1),
        (f"  {GOOD}\n", 1, 1),
        (f"Well: {GOOD}", 0, 2 / 3),  # text outside
        (f"{GOOD} Bye.", 0, 2 / 3),
        ("<think>hm</think> so <answer>4</answer>", 0, 2 / 3),
        ("<answer>4</answer><think>hm</think>", 0, 1 / 3),  # the order
        ("<think>hm</think><answer></answer>", 0, 1 / 3),  # nothing in it
        ("<think> </think><answer>4</answer>", 0, 1 / 3),
        ("<think>hm</think>", 0, 1 / 3),
        ("<think>hm<answer>4</answer>", 0, 1 / 3),  # never closed
        ("<think>hm<answer>4</answer></think>", 0, 1 / 3),  # one in the other
        ("<think>hm</think><think>hm</think><answer>4</answer>", 0, 1 / 3),  # twice
        ("<think>hm</think><answer>4</answer><answer>4</answer>", 0, 1 / 3),
        ("<Think>hm</Think><answer>4</answer>", 0, 1 / 3),
        ("</think>hm<think>", 0, 0),
        ("4", 0, 0),
        ("", 0, 0),
    ],
)
def test_sections_by_pencil(text, whole, part):
    assert scores(Format(sections=["think", "answer"]), text) == [whole]
    assert scores(Format(sections=["think", "answer"], partial=True), text) == pytest.approx([part])


def test_sections_that_the_prompt_opens_and_text_outside():
    opened = Format(sections=["think", "answer"], opened=True)
    assert scores(opened, "hm</think><answer>4</answer>", GOOD, "<answer>4</answer>") == [1, 0, 0]
    loose = Format(sections=["think"], outside=True)
    assert scores(loose, "<think>hm</think>4", "4 <think>hm</think>", "<think>hm", "4") == [1, 1, 0, 0]


# --- JSON -----------------------------------------------------------------------------------------------------------
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "pattern": "^[A-Z]"}, "age": {"type": "integer", "minimum": 0}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    ("text", "whole", "part"),
    [
        ('{"name": "Ida", "age": 3}', 1, 1),
        ('\n{"age": 3, "name": "Ida"}\n', 1, 1),
        ('```json\n{"name": "Ida", "age": 3}\n```', 1, 1),
        ('Here: {"name": "Ida", "age": 3}', 0, 0),
        ('{"name": "Ida", "age": 3', 0, 0),
        ('{"name": "Ida", "age": -3}', 0, 1 / 3),
        ('{"name": "ida", "age": 3}', 0, 1 / 3),
        ('{"name": "Ida"}', 0, 1 / 3),
        ('{"name": "Ida", "age": 3, "more": 1}', 0, 2 / 3),
        ('{"more": 1}', 0, 0),
        ("{}", 0, 0),
        ("3", 0, 0),  # JSON of another kind
        ("[]", 0, 0),
        ('{"name": "Ida", "age": NaN}', 0, 0),  # no JSON
        ("[" * 100_000, 0, 0),
        ("", 0, 0),
    ],
)
def test_json_by_pencil(text, whole, part):
    assert scores(Format(schema=PERSON), text) == [whole]
    assert scores(Format(schema=PERSON, partial=True), text) == pytest.approx([part])


def test_a_schema_from_a_file_with_references_within_it(tmp_path):
    tree = {"$ref": "#/$defs/node", "$defs": {"node": {"type": "array", "items": {"$ref": "#/$defs/node"}}}}
    path = tmp_path / "schema.json"
    path.write_text(json.dumps(tree))
    assert scores(Format(schema=str(path)), "[[], [[]]]", "[1]") == [1, 0]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "give one of pattern, sections and schema"),
        ({"pattern": "a", "sections": ["b"]}, "give one of"),
        ({"pattern": "(a"}, "'\\(a' is no regular expression: missing"),
        ({"pattern": []}, "give a regular expression, or a list"),
        ({"pattern": [3]}, "give a regular expression, or a list"),
        ({"pattern": "a", "opened": True}, "opened is for sections"),
        ({"pattern": "a", "partial": 2}, "partial is 2; give true or false"),
        ({"pattern": "a", "seconds": 0}, "seconds is 0; give a number above 0"),
        ({"sections": []}, "give names without brackets"),
        ({"sections": ["<think>"]}, "without brackets"),
        ({"sections": "think"}, "sections is 'think'"),
        ({"sections": ["a", "a"]}, "each name once"),
        ({"schema": {"type": "obj"}}, "no JSON Schema: 'obj' is not valid .* \\(at type\\)"),
        ({"schema": "nowhere.json"}, "schema 'nowhere.json' cannot be read"),
        ({"schema": 3}, "schema is 3; give a JSON Schema"),
        ({"schema": {"type": "array"}, "partial": True}, "names none"),
        ({"schema": {"$ref": "https://example.org/x.json"}}, "only a \\$ref within it"),
        ({"schema": {"$ref": "#/$defs/x"}}, "a \\$ref to '#/\\$defs/x', which is not in it"),
        ({"schema": {"$ref": "#"}}, "refers to itself without an end"),
        ({"schema": {"patternProperties": {"^a": {}}}}, "patternProperties"),
        ({"schema": {"type": "string", "pattern": "(a"}}, "no JSON Schema: '\\(a' is not a 'regex'"),
        ({"schema": {"type": "string", "pattern": "^(a|aa)+$"}, "seconds": 0.2}, "it backtracks"),
    ],
)
def test_options_that_are_wrong(options, says):
    with pytest.raises(RewardError, match=says):
        build_rewards([{"name": "format"} | options])


def test_a_schema_nested_without_an_end(tmp_path):
    (tmp_path / "deep.json").write_text("[" * 99999)
    with pytest.raises(RewardError, match="the schema .*deep.json' cannot be read: maximum recursion depth"):
        Format(schema=str(tmp_path / "deep.json"))


def test_a_fence_around_many_empty_lines_is_read_in_one_go():
    """A regular expression tried every line end as the last one: minutes for a completion of line ends."""
    reward = Format(schema={"type": "object"})
    assert scores(reward, "```\n" + "\n" * 200_000, "```json\n{}" + "\n" * 200_000 + "```") == [0, 1]
    assert scores(reward, "~~~\n{}\n~~~", "```\n{}```", "```\n{}\n````", "```js\n{}\n```") == [1, 0, 0, 0]


DEEP = {"properties": {"a": {"items": {"$ref": "#/$defs/x"}}}}


@pytest.mark.parametrize(
    "schema, says",
    [
        (DEEP, "a .ref to '#/.defs/x', which is not in it"),
        (DEEP | {"$defs": {"x": {"anyOf": [{"$ref": "#/$defs/x"}]}}}, "refers to itself without an end"),
        ({"properties": {"a": {"items": {"pattern": "^(q|qq)+$"}}}}, "takes more than 0.2 seconds"),
    ],
)
def test_a_fault_of_the_schema_that_shows_late_is_an_error_and_no_score(schema, says):
    reward = Format(schema=schema, seconds=0.2)
    assert scores(reward, '{"a": 3}') == [1]
    with pytest.raises(RewardError, match=says):
        scores(reward, json.dumps({"a": ["q" * 5000 + "!"]}))


def test_a_schema_too_deep_is_refused(tmp_path):
    (tmp_path / "deep.json").write_text('{"not":' * 100_000)
    with pytest.raises(RewardError, match="cannot be read: maximum recursion"):
        Format(schema=str(tmp_path / "deep.json"))
    deep = {}
    for _ in range(5000):
        deep = {"not": deep}
    with pytest.raises(RewardError, match="or is too deep"):
        Format(schema=deep)


def test_names_of_properties_and_constants_are_no_keywords():
    names = dict.fromkeys(["$ref", "pattern", "patternProperties"], {"type": "string"})
    assert scores(Format(schema={"properties": names}), '{"$ref": "("}', '{"pattern": 3}') == [1, 0]
    assert scores(Format(schema={"const": {"$ref": "http://x"}}), '{"$ref": "http://x"}') == [1]
    with pytest.raises(RewardError, match="patternProperties, which are not read"):
        Format(schema={"properties": {"const": {"patternProperties": {}}}})


def test_a_key_twice_is_no_json():
    assert scores(Format(schema={"properties": {"a": {"type": "integer"}}}), '{"a": "x", "a": 1}', '{"a": 1}') == [
        0,
        1,
    ]


@pytest.mark.parametrize("pattern", ["a{1000000000}", "(ab|c){10001,}", "a{" + "9" * 5000 + "}"])
def test_a_pattern_that_takes_minutes_to_compile_is_refused(pattern):
    with pytest.raises(RewardError, match="repeats more than 10000 times") as error:
        Format(pattern=pattern)
    assert len(str(error.value)) < 400 and Format(pattern="a{2,5}")
