"""Which keyword is said, and where."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards import Keyword, RewardError, first_hit


@pytest.mark.parametrize(
    "text, keyword, end",
    [
        ("a cat, a concatenation", "cat", 5),
        ("concatenation", "cat", None),
        ("concatenation of a cat", "cat", 22),
        ("The Cat", "cat", 7),
        ("New \n York", "new york", 10),
        ("", "cat", None),
        # unicode
        ("Straße", "strasse", 6),
        ("ein Café.", "CAFÉ", 8),
        ("ein Cafe\u0301.", "café", 9),
        ("ein Café.", "cafe\u0301", 8),
        ("cafés", "café", None),
        ("cafe\u0301", "cafe", None),
        ("на кошку и кошка", "кошка", 16),
        ("हिन्दी भाषा", "हिन्द", None),
        ("हिन्दी भाषा", "हिन्दी", 6),
        # hyphens
        ("a non-smoking room", "smoking", None),
        ("twenty-one", "twenty", None),
        ("a well\u2011known inn", "well-known", 12),
        ("cheap - and good", "cheap", 5),
        ("cheap-", "cheap", 5),
        ("cheap--good", "good", 11),
        ("snake_case", "snake", None),
        ("_cat_", "cat", 4),
        # apostrophes
        ("you can't", "can", None),
        ("we’re here", "we", None),
        ("you can’t", "can't", 9),
        ("Anna's house", "Anna", 4),
        ("the dogs' house", "dogs", 8),
        ("l'eau", "eau", 5),
        ("'cat'", "cat", 4),
        # digits
        ("15 or 50", "5", None),
        ("5.2 and 1.5", "5", None),
        ("1,500", "500", None),
        ("at 10:30", "10", None),
        ("the 5th", "5", None),
        ("it is 5.", "5", 7),
        ("2010-2020", "2020", 9),
        ("at -5 degrees", "5", None),
        ("at −5 degrees", "-5", 5),
        ("room B2", "b", None),
        # punctuation at the keyword's own edges
        ("I like C++.", "C++", 10),
        ("for £20-25 a head", "£20-25", 10),
        # emoji
        ("good 👍", "👍", 6),
        ("good👍!", "👍", 5),
        ("good 👍🏽", "👍", None),
        ("good 👍🏽", "👍🏽", 7),
        ("👩\u200d🚀 up", "👩", None),
        ("👩\u200d🚀 up", "🚀", None),
        ("❤\ufe0f you", "❤", 1),
        ("❤ you", "❤\ufe0f", 1),
        # no spaces: found inside the text, also next to a word of another script
        ("我喜欢北京烤鸭。", "北京", 5),
        ("我的iPhone很好", "iphone", 8),
        ("我的iPhones很好", "iphone", None),
        ("東京タワーへ行く", "タワー", 5),
        ("ฉันรักแมว", "แมว", 9),
        ("서울에서 만나요", "서울", 2),
        # alternatives
        ("family friendly", "family-friendly|family friendly", 15),
        ("red or blue", "blue|red", 3),
        ("red", " blue | red ", 3),
        ("red", "|", None),
    ],
)
def test_first_hit(text, keyword, end):
    assert first_hit(text, keyword) == end


def test_first_hit_inside_words_and_with_case():
    assert first_hit("concatenation", "cat", whole_words=False) == 6
    assert first_hit("The Cat", "cat", ignore_case=False) is None
    assert first_hit("cat Cat", "Cat", ignore_case=False) == 7


@given(
    before=st.text(max_size=12), word=st.sampled_from(["zebra", "Ärger", "北京", "ß", "7"]), after=st.text(max_size=12)
)
def test_the_text_up_to_the_hit_holds_the_keyword_and_no_less_does(before, word, after):
    text = f"{before} {word} {after}"
    end = first_hit(text, word, whole_words=False)
    assert end is not None and 0 < end <= len(before) + 1 + len(word)
    # `e` + accent: the letter's end is after its accents, so compare one character earlier
    assert first_hit(text[:end], word, whole_words=False) == end
    assert first_hit(text[: end - 1], word, whole_words=False) is None


def test_score_by_pencil():
    reward = Keyword(wanted=["red", "blue|azure"], unwanted=["sorry", "maybe"], unwanted_cost=0.5)
    texts = ["red and azure", "red", "", "sorry, red", "sorry, sorry maybe", "maybe red, blue"]
    assert reward(prompts=texts, completions=texts) == [1.0, 0.5, 0.0, 0.0, -1.0, 0.5]


def test_the_penalty_stops_at_one():
    assert Keyword(unwanted=["a", "b", "c"])(["p"], ["a b c"]) == [-1.0]


@pytest.mark.parametrize("mode, scores", [("fraction", [1, 0.5, 0]), ("all", [1, 0, 0]), ("any", [1, 1, 0])])
def test_modes(mode, scores):
    assert Keyword(wanted=["a", "b"], mode=mode)(["p"] * 3, ["a b", "b", "c"]) == scores


@pytest.mark.parametrize("mode", ["fraction", "all", "any"])
def test_where_only_unwanted_words_are_given_silence_is_zero(mode):
    assert Keyword(unwanted=["x"], mode=mode)(["p"] * 2, ["", "x"]) == [0.0, -1.0]


def test_columns_of_the_row_lists_texts_numbers_and_nothing():
    reward = Keyword(wanted=["the"], column=["facts", "price"], unwanted_column="not")
    completions = ["the red one at 20", "the red one", "the", "blue"]
    facts = [["red"], "red", None, []]
    price = [20, 20.5, None, " "]
    # row 2: 'the' and 'red' of 3; row 4: nothing of 'the', one unwanted
    assert reward(completions, completions, facts=facts, price=price, **{"not": [None, [], "red", ["blue", "x"]]}) == [
        1.0,
        pytest.approx(2 / 3),
        1.0,
        -1.0,
    ]


def test_a_row_that_asks_for_nothing_has_no_score():
    assert Keyword(column="facts")(["p"] * 3, ["x"] * 3, facts=[None, [], [""]]) == [None, None, None]


def test_a_keyword_counts_once_however_often_it_is_listed():
    assert Keyword(wanted=["a"], column="facts")(["p"], ["b"], facts=[["a", "a", "b"]]) == [0.5]


def test_messages_are_read():
    completion = [{"role": "assistant", "content": "a red one"}]
    assert Keyword(wanted="red")([[{"role": "user", "content": "?"}]], [completion]) == [1.0]


def test_a_column_of_the_wrong_kind_is_named():
    with pytest.raises(RewardError, match="'facts'.*\\{'a': 1\\}"):
        Keyword(column="facts")(["p"], ["x"], facts=[{"a": 1}])
