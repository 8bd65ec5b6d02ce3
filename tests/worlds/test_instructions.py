"""The world of checkable instructions: every row can be met, what is held out is held out, the referee by hand."""

import random

import pytest

from pipeline.data.readers import read
from pipeline.worlds.base import WorldSettings, write_data
from pipeline.worlds.instructions import KINDS, draw_kinds, make_data, referee, revised
from pipeline.worlds.instructions.answers import shortened_to, whole_sentences
from pipeline.worlds.instructions.kinds import groups, plain
from pipeline.worlds.instructions.requests import TOPICS, draw_request, topics
from pipeline.worlds.instructions.unseen import UNSEEN
from rewards import build_rewards
from rewards.instructions import met
from rewards.instructions import read as read_instruction

TEXTS = (
    "Honey bees are small, busy insects. They live in hives, and they make honey. Each hive has a queen. Bees are "
    "important for plants. Without bees, many fruits would not grow.",
    "Dear friend,\n\nthe garden is green again! Do you remember the roses? I planted three of them. They like water, "
    'light and "good words". Come and see them soon.',
    "1. Get up early.\n2. Drink **water** before coffee.\n3. Walk to work, if you can.\n4. Read a little.\n5. Sleep.",
)


@pytest.fixture(scope="module")
def data():
    return make_data(WorldSettings(world="instructions", prompt_rows=1500, heldout_rows=150, seed=7))


def test_twenty_five_kinds_or_more_and_five_that_training_never_shows(data):
    shown = {id for row in data["prompts_train"] for id in row["instruction_id_list"]}
    assert shown == {kind.id for kind in KINDS}
    assert len(shown) >= 25
    assert len(UNSEEN) == 5
    assert not shown & set(UNSEEN)
    assert {id for row in data["unseen_kinds"] for id in row["instruction_id_list"]} == set(UNSEEN)


def test_topics_of_held_out_prompts_are_in_no_training_prompt(data):
    assert set(topics(True)) | set(topics(False)) == set(TOPICS)
    assert len(set(TOPICS)) == len(TOPICS) > 150
    for row in data["prompts_heldout"] + data["unseen_kinds"]:
        assert row["topic"] in topics(True)
    for row in data["prompts_train"]:
        assert row["topic"] in topics(False)
        assert row["topic"] in row["prompt"][0]["content"]


def test_every_prompt_is_new_and_has_one_to_three_instructions_with_parameters_that_the_checks_take(data):
    rows = data["prompts_train"] + data["prompts_heldout"] + data["unseen_kinds"]
    assert len({row["prompt"][0]["content"] for row in rows}) == len(rows) == 1800
    for row in rows:
        assert 1 <= len(row["instruction_id_list"]) == len(row["kwargs"]) <= 3
        for id, kwargs in zip(row["instruction_id_list"], row["kwargs"], strict=True):
            read_instruction(id, kwargs, row["prompt"])  # raises for what it does not take


def test_kinds_that_contradict_each_other_are_not_asked_for_together(data):
    by_id = {kind.id: kind for kind in KINDS}
    for row in data["prompts_train"]:
        kinds = [by_id[id] for id in row["instruction_id_list"]]
        marks = [mark for kind in kinds for mark in kind.clashes]
        assert len(marks) == len(set(marks)), row["instruction_id_list"]
        if any(kind.alone for kind in kinds):
            assert all(kind.alone or kind.id.startswith("keywords:") for kind in kinds)
            assert sum(kind.alone for kind in kinds) == 1
    case = {"change_case:english_capital", "change_case:english_lowercase"}
    assert not any(case <= set(row["instruction_id_list"]) for row in data["prompts_train"])


def test_a_seed_gives_the_same_rows_and_another_other_ones(data):
    again = make_data(WorldSettings(world="instructions", prompt_rows=1500, heldout_rows=150, seed=7))
    other = make_data(WorldSettings(world="instructions", prompt_rows=1500, heldout_rows=150, seed=8))
    assert again == data
    assert other["prompts_train"] != data["prompts_train"]


def test_answers_put_into_form_meet_every_kind():
    rng, seen = random.Random(0), set()
    for i in range(1500):
        row = revised(draw_request(rng, False), TEXTS[i % 3], rng)
        if row is None:
            continue
        [answer] = row["completion"]
        assert answer["role"] == "assistant"
        for id, kwargs in zip(row["instruction_id_list"], row["kwargs"], strict=True):
            assert met(id, answer["content"], row["prompt"], **kwargs), (id, kwargs, answer["content"])
            seen.add(id)
    assert seen == {kind.id for kind in KINDS}


def test_the_request_says_what_the_parameters_say():
    rng = random.Random(1)
    kind = next(kind for kind in KINDS if kind.id == "startend:end_checker")
    kwargs = kind.draw(draw_request(rng, False), rng)
    assert kwargs["end_phrase"] in kind.word(kwargs, rng)
    words = next(kind for kind in KINDS if kind.id == "length_constraints:number_words")
    said = {words.word({"relation": "less than", "num_words": 30}, random.Random(i)) for i in range(60)}
    assert all("30" in one and any(x in one for x in ("less than", "fewer than", "under")) for one in said)


def test_rows_go_through_a_file_into_the_reward(data, tmp_path):
    write_data({"prompts": data["prompts_train"]}, tmp_path)
    rows = read(str(tmp_path / "prompts.jsonl"))
    [weighted] = build_rewards([{"name": "instructions"}])
    columns = {name: rows[name] for name in ("instruction_id_list", "kwargs")}
    scores = weighted.reward(prompts=rows["prompt"], completions=["no"] * len(rows), **columns)
    kept = {"punctuation:no_comma", "change_case:english_lowercase"}
    wanted = [i for i, row in enumerate(data["prompts_train"]) if set(row["instruction_id_list"]) <= kept]
    assert wanted
    assert all(scores[i] == 1 for i in wanted)
    assert all(0 <= score <= 1 for score in scores)


def test_the_referee_by_hand():
    row = {
        "prompt": [{"role": "user", "content": "Say something. Write at least 5 words. Do not use commas."}],
        "instruction_id_list": ["length_constraints:number_words", "punctuation:no_comma"],
        "kwargs": [{"num_words": 5, "relation": "at least", "letter": None}, {}],
    }
    # 8 words; 7 pairs, of which ab, bc, ca are different; 5 runs of four: abca bcab cabc, and abca bcab again
    found = referee("A b c a b c a b", row)
    assert found == {"all_met": 1.0, "met": 1.0, "distinct_2": pytest.approx(3 / 7), "repeated": pytest.approx(2 / 5)}
    found = referee("Yes, sir.", row)
    assert (found["all_met"], found["met"]) == (0.0, 0.0)
    assert referee("One, two three four five.", row)["met"] == 0.5
    assert referee("", row) == {"all_met": 0.0, "met": 0.0, "distinct_2": 1.0, "repeated": 0.0}


def test_whole_sentences_by_hand():
    assert whole_sentences('One is here. Two "is." And thr') == 'One is here. Two "is."'
    assert whole_sentences("Version 2.5 is out! It c") == "Version 2.5 is out!"
    assert whole_sentences("no end") == ""


def test_pieces_of_texts_by_hand():
    assert plain(TEXTS[2]).startswith("Get up early. Drink water before coffee.")
    assert groups("One. Two. Three. Four. Five.", 2) == ["One. Two.", "Three. Four. Five."]
    assert groups("One. Two.", 3) is None
    assert shortened_to("One.\nTwo. Three.", 2) == "One.\nTwo."


def test_kinds_are_drawn_one_to_three_at_a_time():
    rng = random.Random(0)
    numbers = [len(draw_kinds(rng)) for _ in range(2000)]
    assert set(numbers) == {1, 2, 3}
