"""The reward instructions: each kind by hand, met, not met and at the border; its rows, options and errors."""

import sys

import pytest
from house import ROOT

from rewards import Instructions, RewardError, build_rewards
from rewards.instructions import KINDS, met
from rewards.instructions.reading import sentences, tokens

RELATION = {"relation": "at least"}
FIVE = {f"keyword{i}": word for i, word in enumerate(("ox", "cow", "pig", "hen", "cat"), 1)}
ANIMALS = "ox" + " cow" * 2 + " pig" * 3 + " hen" * 5 + " cat" * 7
WORDS = {
    "keywords:existence": ({"keywords": ["cat", "c++"]}, ["Concatenate in C++."], ["A cat in C.", "c++"]),
    "keywords:frequency": ({"keyword": "cat", "frequency": 2, **RELATION}, ["Cat, bobcats", "catcat"], ["a cat"]),
    "keywords:forbidden_words": ({"forbidden_words": ["cat", "c++"]}, ["bobcats", "c+"], ["A CAT.", "in C++", "cat"]),
    "keywords:letter_frequency": (
        {"letter": "E", "let_frequency": 2, "let_relation": "less than"},
        ["Ex", "no"],
        ["Even"],
    ),
    "keywords:word_frequency": (
        {"word": "cat", "frequency": 1, "relation": "exactly"},
        ["Cat and bobcat"],
        ["cat cat", "cats"],
    ),
    "language:response_language": (
        {"language": "de"},
        ["Das ist ein ganz gewöhnlicher deutscher Satz."],
        ["This is quite an ordinary English sentence.", "42"],
    ),
    "change_case:capital_word_frequency": (
        {"capital_frequency": 2, "capital_relation": "at least"},
        ["I am at NASA.", "WELL-KNOWN, I", "CAN'T"],
        ["WELL-KNOWN", "NaSA I", "5 I"],
    ),
    "change_case:english_capital": ({}, ["HELLO, 5!"], ["HELLo", "5"]),
    "change_case:english_lowercase": ({}, ["hello, 5!"], ["Hello", "5"]),
    "punctuation:no_comma": ({}, ["a; b"], ["a, b"]),
}
LENGTHS = {
    "length_constraints:number_sentences": (
        {"num_sentences": 2, "relation": "exactly"},
        ["One. Two", "Dr. No came. Why?!", "I see 3.5 of... them. Yes."],
        ["One.", "A. B. C. is one. Two. Three."],
    ),
    "length_constraints:number_paragraphs": (
        {"num_paragraphs": 2},
        ["a\n***\nb", "*** a***b ***"],
        ["a", "a***  ***b"],
    ),
    "length_constraints:number_words": (
        {"num_words": 3, "relation": "at most"},
        ["one two", "don't go", "..."],
        ["one two three four"],
    ),
    "length_constraints:nth_paragraph_first_word": (
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "Cats"},
        ["a\n\ncats, b", "a\n\n\"Cats' b"],
        ["a\n\ncat b", "cats a\n\nb", "a\n\nb\n\ncats", "a\n\n\n\ncats", "a\ncats"],
    ),
    "length_constraints:number_characters": (
        {"num_characters": 3, "relation": "exactly"},
        [" abc\n"],
        ["ab", "a b c"],
    ),
    "length_constraints:number_lines": ({"num_lines": 2, "relation": "less than"}, ["a\n\n"], ["a\nb"]),
}
FORMS = {
    "detectable_content:number_placeholders": ({"num_placeholders": 2}, ["[a] [b]", "[] [[c]"], ["[a]", "[a [b\n]"]),
    "detectable_content:postscript": (
        {"postscript_marker": "P.P.S"},
        ["a\np. p. s. b", "P.P.S"],
        ["P.S. a", "PPS a"],
    ),
    "detectable_format:number_bullet_lists": (
        {"num_bullets": 2},
        ["* a\n - b", "*a\n---"],
        ["* a", "* a\n* b\n* c", "**a**\n* b", "a * b"],
    ),
    "detectable_format:constrained_response": ({}, ["So: My answer is no."], ["my answer is no.", "My answer is no"]),
    "detectable_format:number_highlighted_sections": (
        {"num_highlights": 2},
        ["*a* **b**"],
        ["**a**", "* * *a*", "*a\n*"],
    ),
    "detectable_format:multiple_sections": (
        {"section_spliter": "Part", "num_sections": 2},
        ["Part 1 a Part2", "Part 1\nPart 2\nPart 3"],
        ["part 1 Part 2", "Part one Part 2"],
    ),
    "detectable_format:json_format": (
        {},
        ['```json\n{"a": [1]}\n```', "5"],
        ["{'a': 1}", 'So: {"a": 1}', "[" * 99999],
    ),
    "detectable_format:title": ({}, ["<<a song>>\nla"], ["<<>>", "<< >>", "<a>", "<<a\n>>"]),
    "detectable_format:number_numbered_items": (
        {"num_items": 2},
        ["1. a\n 2) b"],
        ["1. a", "a 1. b\n2. c", "1.5\n2.5"],
    ),
    "combination:two_responses": ({}, ["a ****** b", "******a******b"], ["a******a", "a*****b", "a************b"]),
    "combination:repeat_prompt": ({"prompt_to_repeat": "Say it."}, ["say IT. It."], ["So: Say it.", "Say it"]),
    "startend:end_checker": ({"end_phrase": "The end."}, ['So "the END."'], ["The end", "The end. Bye."]),
    "startend:start_checker": ({"start_phrase": "My dear"}, ['"my DEAR friend'], ["O my dear", "My"]),
    "startend:quotation": ({}, [' "a" '], ["'a'", '"', '"a".']),
}
IFBENCH = {
    "count:word_count_range": ({"min_words": 2, "max_words": 3}, ["a b", "a b-c"], ["a", "a b c d"]),
    "count:unique_word_count": ({"N": 2}, ["a, B a"], ["a A. (a)"]),
    "count:numbers": ({"N": 2}, ["1,000 and 3.5", "a1 2"], ["1", "1 2 3"]),
    "count:punctuation": ({}, [".,;:?!?!", ".,;:! ?\N{INTERROBANG}"], [".,;:?!", ".,;:?\N{INTERROBANG}"]),
    "count:pronouns": ({"N": 2}, ["I like us.", "his/her"], ["I am", "it's a he-man"]),
    "count:keywords_multiple": (FIVE, [ANIMALS], [ANIMALS + " cat", ANIMALS.replace("ox", "")]),
    "ratio:overlap": ({"reference_text": "abcdef", "percentage": 50}, ["abcdxy"], ["abcd", "abcxy", "xyz", "ab"]),
    "words:alphabet": ({}, ["Yes, zebras are", "a"], ["a c", "7 a", "a b ç"]),
    "words:vowel": ({}, ["a big top", "\nE a i\n"], ["a big top here", "a\nb"]),
    "words:consonants": ({}, ["Black apples"], ["Black a", "b-c"]),
    "words:palindrome": ({}, ["Level, " * 10], ["level " * 9 + "noon", "moon " * 10]),
    "words:prime_lengths": ({}, ["to the hello!"], ["moon", "a"]),
    "words:repeats": ({"small_n": 1}, ["a b"], ["a A."]),
    "words:no_consecutive": ({}, ["a b a"], ["a b 'B"]),
    "words:last_first": ({}, ["I go. Go you! You"], ["I go. You go."]),
    "words:paragraph_last_first": ({}, ["a b a.\n\nC c"], ["a b"]),
    "words:keywords_specific_position": (
        {"keyword": "cat", "n": 2, "m": 3},
        ["One. Two, cat."],
        ["One. Two cat.", "Two, cat."],
    ),
    "words:words_position": ({"keyword": "cat"}, ["A cat is a cat.", "A cat!"], ["A cat is a cat", "A Cat."]),
    "sentence:keyword": ({"word": "Cat", "N": 2}, ["One. Bobcats."], ["Cat. One.", "Cat."]),
    "sentence:increment": (
        {"small_n": 2},
        ["One. So it is. And so it is too.", "One"],
        ["One. It is.", "One. So it is ok.", "So it is. One."],
    ),
    "format:parentheses": ({}, ["([{([x])", "(((((x)))))"], ["([{([x", "([{(x)}])", "((((([x)]", "([{([} (x)"]),
    "format:options": ({"options": "yes/no"}, ["Yes.", '"no"'], ["yes no", "maybe"]),
    "format:newline": ({}, ["a\nb,\n\nc"], ["a b", "a\nb c"]),
    "format:list": ({"sep": "!?"}, ["!? a\n!? b"], ["!? a", "?! ?!"]),
    "format:title_case": ({}, ["The NASA And 7 I"], ["The nasa", "mY"]),
    "format:output_template": (
        {},
        ["My Answer: a My Conclusion: b Future Outlook: c"],
        ["My Answer: a My Conclusion: b future outlook: c"],
    ),
    "format:no_whitespace": ({}, ["a_b"], ["a b", "a\u3000b"]),
    "repeat:repeat_change": ({"prompt_to_repeat": "Say it now"}, ["Do it  now"], ["Say it now", "Do it", "it now"]),
    "repeat:repeat_span": ({"prompt_to_repeat": "a b c d", "n_start": 0, "n_end": 2}, ["A b"], ["a b c", "b c"]),
}
KNOWN = WORDS | LENGTHS | FORMS | IFBENCH
NASTY = [*"*'\"![](<\n .,a\x00İ\ud800", "?!", "1.", "- ", "'s", "***"]


@pytest.mark.parametrize("id", KNOWN)
def test_each_kind_by_hand(id):
    parameters, good, bad = KNOWN[id]
    assert [text for text in good if not met(id, text, **parameters)] == []
    assert [text for text in bad if met(id, text, **parameters)] == []
    assert not any(met(id, blank, **parameters) for blank in ("", " \n")), "a blank text meets something"


def test_every_kind_has_its_case():
    assert set(KNOWN) == set(KINDS)
    assert sum(kind.check.__module__.endswith("ifeval") for kind in KINDS.values()) == 25


@pytest.mark.parametrize("id", KNOWN)
def test_no_text_breaks_a_kind(id):
    for piece in NASTY:
        assert met(id, piece * 3000, **KNOWN[id][0]) in (True, False)


@pytest.mark.parametrize(
    "relation, counts", [("at least", [2, 3]), ("less than", [0, 1]), ("at most", [0, 1, 2]), ("exactly", [2])]
)
def test_the_four_relations(relation, counts):
    texts = ["no"] + ["cat " * n for n in (1, 2, 3)]
    found = [met("keywords:frequency", text, keyword="cat", frequency=2, relation=relation) for text in texts]
    assert [n for n, was in enumerate(found) if was] == counts


def test_sentences():
    text = 'Dr. Who (J. S. Bach) said: "Go!" She left... and came… back. 1,000 or 3.5, e.g. two.'
    text += "\n1. One.\n2. Two. It is I. So."
    assert sentences(text) == [
        'Dr. Who (J. S. Bach) said: "Go!"',
        "She left... and came… back.",
        "1,000 or 3.5, e.g. two.",
        "1. One.",
        "2. Two.",
        "It is I.",
        "So.",
    ]
    assert sentences("你好。「再见！」好") == ["你好。", "「再见！」", "好"]
    assert sentences(" \n") == []
    assert sentences("A title\n\nA text") == ["A title\n\nA text"]


def test_tokens():
    assert tokens("I CAN'T (cannot), so: well-known U.S. 'cats' at 10:30 -- 'tis 1,000...") == (
        "I CA N'T ( can not ) , so : well-known U.S. ' cats ' at 10:30 -- ' tis 1,000 ...".split()
    )
    assert tokens('He said "it\'s over." So!') == ["He", "said", '"', "it", "'s", "over", ".", '"', "So", "!"]


def scores(reward, *rows, prompts=None, names=("instruction_id_list", "kwargs")):
    """Scores of `reward` for rows of (completion, ids, parameters)."""
    completions, ids, kwargs = map(list, zip(*rows, strict=True))
    return reward(prompts or ["p"] * len(rows), completions, **dict(zip(names, (ids, kwargs), strict=True)))


TWO = ["punctuation:no_comma", "length_constraints:number_words"]
# As a column comes out of Arrow: each dict has the keys of all, whole numbers beside gaps are floats.
GIVEN = [{"num_words": None, "relation": None}, {"num_words": 2.0, "relation": "at least"}]


def test_the_share_that_is_met_or_all():
    rows = [
        ("a b", TWO, GIVEN),
        ("a, b", TWO, GIVEN),
        ("a,", TWO, GIVEN),
        (" ", TWO, GIVEN),
        ("a", [], []),
        ("a", None, None),
    ]
    assert scores(Instructions(), *rows) == [1.0, 0.5, 0.0, 0.0, None, None]
    (built,) = build_rewards([{"name": "instructions", "mode": "all", "ids": "i", "kwargs": "k"}])
    assert scores(built.reward, *rows, names=("i", "k")) == [1.0, 0.0, 0.0, 0.0, None, None]


def test_messages_and_the_prompt_as_what_is_to_be_repeated():
    said = [{"role": "assistant", "content": "Say it. It."}]
    asked = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Say it."}]
    row = (said, ["combination:repeat_prompt"], [{"prompt_to_repeat": None}])
    assert scores(Instructions(), row, row, prompts=[asked, "Say that."]) == [1.0, 0.0]
    assert met("combination:repeat_prompt", said, prompt=asked)


def test_through_a_data_set():
    from datasets import Dataset

    rows = [{"instruction_id_list": TWO, "kwargs": [{}, {"num_words": 2, "relation": "at least"}]}]
    rows += [{"instruction_id_list": ["keywords:existence"], "kwargs": [{"keywords": ["b"]}]}]
    data = Dataset.from_list(rows)
    assert Instructions()(["p", "p"], ["a b", "a"], **data[:]) == [1.0, 0.0]


def test_the_language_is_the_same_each_time():
    text = "la no mi"  # Italian, Spanish or Tagalog: what is drawn of it decides
    assert len({met("language:response_language", text, language="es") for _ in range(20)}) == 1


def test_language_without_its_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "langdetect", None)
    with pytest.raises(RewardError, match=r"needs langdetect; install it with: pip install -e \"\.\[instructions\]\""):
        met("language:response_language", "a", language="en")


@pytest.mark.parametrize(
    "id, parameters, says",
    [
        ("punctuation:nocomma", {}, "no instruction 'punctuation:nocomma' (did you mean 'punctuation:no_comma'?)"),
        (5, {}, "no instruction 5"),
        ("punctuation:no_comma", {"num": 1}, "punctuation:no_comma has no parameter 'num'; it takes none"),
        ("keywords:existence", {"keyword": "a"}, "has no parameter 'keyword' (did you mean 'keywords'?)"),
        (
            "keywords:existence",
            {"keywords": None},
            "keywords:existence needs the parameter 'keywords': a list of texts",
        ),
        ("keywords:existence", {"keywords": "a"}, "keywords is 'a'; give a list of texts"),
        ("keywords:existence", {"keywords": [""]}, "keywords is ['']; give a list of texts"),
        ("count:numbers", {"N": "3"}, "count:numbers: N is '3'; give a whole number"),
        ("count:numbers", {"N": True}, "N is True; give a whole number"),
        ("count:numbers", {"N": 2.5}, "N is 2.5; give a whole number"),
        ("count:numbers", {"N": float("nan")}, "N is nan; give a whole number"),
        ("count:numbers", {"N": float("inf")}, "N is inf; give a whole number"),
        ("count:numbers", {"N": -1}, "N is -1; give a whole number"),
        ("sentence:keyword", {"word": "a", "N": 0}, "N is 0; give a whole number from 1"),
        ("keywords:letter_frequency", {"letter": "ab"}, "letter is 'ab'; give one letter"),
        (TWO[1], {"num_words": 2, "relation": "more than"}, "relation is 'more than'; give \"at least\" or"),
        ("language:response_language", {"language": "zh"}, "language is 'zh'; give one of af, ar"),
        ("combination:repeat_prompt", {"prompt": "a"}, "has no parameter 'prompt'; it takes prompt_to_repeat"),
    ],
)
def test_wrong_instructions(id, parameters, says):
    with pytest.raises(RewardError) as error:
        scores(Instructions(), ("a", [TWO[0]], [{}]), ("", [TWO[0], id], [None, parameters]))
    assert says in str(error.value) and "\n" not in str(error.value)
    assert str(error.value).startswith("Reward 'instructions': row 1 of the batch: ")


@pytest.mark.parametrize(
    "ids, kwargs, says",
    [
        (TWO, [{}], "row 0 of the batch has 2 in 'instruction_id_list' and 1 in 'kwargs'"),
        (
            TWO[0],
            [{}],
            "column 'instruction_id_list', row 0 of the batch, holds 'punctuation:no_comma'; it must hold a list",
        ),
        (TWO[:1], {}, "column 'kwargs', row 0 of the batch, holds {}; it must hold a list of dicts"),
        (TWO[:1], ["{}"], "holds ['{}']; it must hold a list of dicts"),
    ],
)
def test_rows_of_another_form(ids, kwargs, says):
    with pytest.raises(RewardError) as error:
        scores(Instructions(), ("a", ids, kwargs))
    assert says in str(error.value)


def test_columns_and_options_that_do_not_exist():
    with pytest.raises(
        RewardError, match=r"no column 'kwargs'; it has instruction_id_list, kwarg \(did you mean 'kwarg'"
    ):
        Instructions()(["p"], ["a"], instruction_id_list=[[]], kwarg=[[]])
    with pytest.raises(RewardError, match="mode is 'any'; give share or all"):
        Instructions(mode="any")


def test_every_kind_is_in_the_docs():
    page = (ROOT / "docs/checkable.md").read_text(encoding="utf-8")
    for id, kind in KINDS.items():
        parameters = ", ".join(f"`{name}`" for name in kind.parameters)
        assert f"| `{id}` | {parameters} | {kind.says} |" in page, id
