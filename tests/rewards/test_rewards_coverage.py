"""Coverage of a source, by pencil."""

import pytest

from rewards import Coverage, RewardError, build_rewards

SOURCE = "The council of Leeds will build 240 homes on the old airfield."
# without stop words: council, leeds, build, 240, homes, old, airfield


@pytest.mark.parametrize(
    "completion, score",
    [
        ("", 0.0),
        ("The of will on the", 0.0),
        ("Leeds plans homes.", 2 / 7),
        ("LEEDS: 240 homes! 240 homes, Leeds", 3 / 7),
        ("council leeds build 240 homes old airfield", 1.0),
        (SOURCE, 1.0),
        ("24 home", 0.0),
    ],
)
def test_the_share_of_the_sources_content_words(completion, score):
    assert Coverage(column="source")(["p"], [completion], source=[SOURCE]) == [pytest.approx(score)]


def test_the_prompt_is_the_source_unless_a_column_is_named():
    assert Coverage()([SOURCE], ["Leeds plans homes."]) == [pytest.approx(2 / 7)]
    messages = [{"role": "user", "content": SOURCE}], [{"role": "assistant", "content": "Leeds plans homes."}]
    assert Coverage()([messages[0]], [messages[1]]) == [pytest.approx(2 / 7)]
    with pytest.raises(RewardError, match="no column 'sauce'.*did you mean 'source'"):
        Coverage(column="sauce")(["p"], ["x"], source=["y"])


def test_a_list_of_texts_is_one_source_and_one_without_content_words_has_no_score():
    reward = Coverage(column="source")
    sources = [["old homes", "new homes"], [], [""], None, "to be or not to be"]
    assert reward(["p"] * 5, ["old homes"] * 5, source=sources) == [pytest.approx(2 / 3), None, None, None, None]
    with pytest.raises(RewardError, match="column 'source' must hold a text"):
        reward(["p"], ["x"], source=[7])
    with pytest.raises(RewardError, match="column 'source' must hold a text"):
        reward(["p"], ["x"], source=[["x", 7]])


def test_what_an_apostrophe_leaves_behind_is_no_content():
    assert Coverage().content_words("I'm sure they don't, it's Anna's and we've won") == {"sure", "anna", "won"}


def test_scripts_without_spaces_and_other_stop_words():
    # 猫坐在上 are 4 of the 5 different characters
    assert Coverage().score("猫在上坐", "猫坐在床上") == pytest.approx(4 / 5)
    assert Coverage(stop_words=["在"]).score("猫在上坐", "猫坐在床上") == pytest.approx(3 / 4)
    # Die is a stop word in German, not in English
    assert Coverage().score("Katze", "Die Katze") == pytest.approx(1 / 2)
    assert Coverage(stop_words=["die"]).score("Katze", "Die Katze") == 1.0
    assert Coverage(stop_words=[]).score("the", "the cat") == pytest.approx(1 / 2)


def test_options_are_checked():
    with pytest.raises(RewardError, match="'coverage': stop_words is 'the'; give a list"):
        build_rewards([{"name": "coverage", "stop_words": "the"}])
    with pytest.raises(RewardError, match=r"stop_words is \[1\]; give a list"):
        Coverage(stop_words=[1])
    with pytest.raises(RewardError, match="no option 'stopwords'.*did you mean 'stop_words'"):
        build_rewards([{"name": "coverage", "stopwords": []}])
