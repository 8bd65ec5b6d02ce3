"""The translation world: its grammar by hand-written sentences, its referee, its data."""

import random
import sys

import pytest

from pipeline.worlds import WorldSettings, referee, translation
from pipeline.worlds.translation.language import (
    ADJECTIVES,
    FORMS,
    NOUNS,
    TIMES,
    VERBS,
    Meaning,
    Phrase,
    inflect_adjective,
    inflect_noun,
    inflect_verb,
    read,
)
from pipeline.worlds.translation.learner import BEGINNER, LEARNER, Slips, write
from pipeline.worlds.translation.sentences import all_wordings, draw_meaning, in_english

SMALL = {"sft_rows": 200, "prompt_rows": 100, "heldout_rows": 40, "pretraining_texts": 300}
WOMEN = Phrase("woman", True, "old")
SEEN = Meaning("see", "past", WOMEN, Phrase("apple", True), "near", Phrase("river", False, "quiet"), "yesterday")


@pytest.fixture(scope="module")
def made():
    return translation.make_data(WorldSettings(world="translation", **SMALL))


def test_inflection_by_hand():
    assert inflect_noun("tamu", True, "object") == "tamurin"
    assert inflect_noun("laru", False, "near") == "larul" and inflect_noun("laru", False, "subject") == "laru"
    assert inflect_adjective("ort", "a", True, "subject") == "ortari"
    assert inflect_adjective("rov", "e", False, "object") == "roven"
    assert inflect_verb("dor", "past", "a", True) == "doretak" and inflect_verb("dor", "present", "o", False) == "doro"


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        ("elka tamuri ortari larul hulol pelurin doretak.", SEEN),
        ("pelurin larul hulol tamuri ortari elka nevetak.", SEEN),  # another order, another verb for it
        ("tamuri ortari pelurin elka larul hulol doretak.", SEEN),
        ("nelun hapi gira.", Meaning("find", "present", Phrase("dog", False), Phrase("goat", False))),
        ("nelu hapin gira.", Meaning("find", "present", Phrase("goat", False), Phrase("dog", False))),
        ("utsa juwe pika liruna.", Meaning("sing", "future", Phrase("owl", False, "small"), time="at night")),
        ("mikori rudas nuvak.", Meaning("sleep", "present", Phrase("child", True), None, "in", Phrase("mill", False))),
        (" kando nuva. ", Meaning("sleep", "present", Phrase("horse", False))),
    ],
)
def test_right_sentences_by_hand(text, meaning):
    assert read(text) == meaning


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".",
        "tamuri ortari",
        "elka tamuri ortari larul hulol pelurin doretak",  # no full stop
        "tamuri doretak ortari pelurin.",  # the verb is not last
        "tamuri ortari doretak pelurin.",
        "tamuri orta pelurin doretak.",  # one old, many women
        "tamuri orteri pelurin doretak.",  # the ending of things
        "tamuri ortarin pelurin doretak.",  # the ending of an object
        "ortari tamuri pelurin doretak.",  # the adjective first
        "tamuri ortari hulari pelurin doretak.",  # two adjectives
        "tamuri pelurin doreta.",  # one sees, many women
        "tamuri pelurin doretek.",  # the verb's ending of things
        "tamuri peluri doretak.",  # two subjects
        "pelurin doretak.",  # none
        "tamuri doretak.",  # sees what?
        "tamuri pelurin nuvetak.",  # sleeps what?
        "tamuri larul konos nuvetak.",  # two places
        "elka tamuri elka nuvetak.",  # twice yesterday
        "tamuri nuvetak nuvetak.",
        "the women slept.",
        "Tamuri nuvetak.",  # no capitals in Ondri
    ],
)
def test_what_the_grammar_forbids_is_not_read(text):
    assert read(text) is None


def test_referee_by_pencil():
    row = translation.columns_of(SEEN)
    assert row == {
        "verb": "see",
        "tense": "past",
        "subject": "many old woman",
        "object": "many apple",
        "place": "near one quiet river",
        "time": "yesterday",
    }
    judge = referee("translation")
    assert judge("pelurin tamuri ortari larul hulol elka nevetak.", row) == {"right": 1.0, "grammar": 1.0}
    # each says one thing otherwise: tense, number, adjective, role, relation, time
    for text in (
        "elka tamuri ortari larul hulol pelurin dorak.",
        "elka tamuri ortari larul hulol pelun doretak.",
        "elka tamuri larul hulol pelurin doretak.",
        "elka tamurin ortarin larul hulol peluri doretek.",
        "elka tamuri ortari larus hulos pelurin doretak.",
        "tamuri ortari larul hulol pelurin doretak.",
    ):
        assert judge(text, row) == {"right": 0.0, "grammar": 1.0}
    assert judge("elka tamuri ortari larul hulol pelurin doreta.", row) == {"right": 0.0, "grammar": 0.0}


def test_no_two_words_share_a_form():
    count = {name: sum(map(len, words.values())) for name, words in (("adj", ADJECTIVES), ("verb", VERBS))}
    nouns, times = sum(len(words) for _, words in NOUNS.values()), sum(map(len, TIMES.values()))
    # numbers x cases; classes x numbers x cases; tenses x classes x numbers
    assert len(FORMS) == nouns * 2 * 4 + count["adj"] * 3 * 2 * 4 + count["verb"] * 3 * 3 * 2 + times


def test_all_wordings_by_hand():
    meaning = Meaning("see", "present", Phrase("king", False), Phrase("rope", False))
    assert set(all_wordings(meaning)) == {
        f"{words} {verb}a." for words in ("sarko doman", "doman sarko") for verb in ("dor", "nev")
    }  # noqa: E501
    # 4 parts in any order, 2 words for seeing
    assert len(set(all_wordings(SEEN))) == 24 * 2


def test_every_wording_is_read_as_what_it_says():
    rng = random.Random(1)
    for _ in range(300):
        meaning = draw_meaning(rng)
        for text in all_wordings(meaning):
            assert read(text) == meaning


def test_english_by_hand():
    class First(random.Random):
        """Takes what stands first, and is sure of everything: passive, time in front."""

        def choice(self, options):
            return options[0]

        def random(self):
            return 0.0

    passive = "yesterday the apples were seen by the old women near the quiet river."
    assert in_english(SEEN, First()) == passive
    one = Meaning("break", "present", Phrase("child", False), Phrase("knife", True))
    assert in_english(one._replace(object=None, verb="sleep"), First()) == "the child sleeps."
    assert in_english(one._replace(tense="future"), First()) == "the knives will be broken by the child."
    assert in_english(one, First()) == "the knives are broken by the child."


def test_a_learners_slips_by_hand():
    def said(**slips):
        return {write(SEEN, Slips(**slips), random.Random(seed)) for seed in range(60)}

    assert all(read(text) == SEEN for text in said())
    assert all("peluri " in text and "pelurin" not in text for text in said(case=1.0))
    assert all(read(text) is None for text in said(verb=1.0))
    assert all(" orta" in text and " hula" in text and read(text) is None for text in said(adjective=1.0))
    assert not any(text.split()[-1].startswith(("dor", "nev")) for text in said(order=1.0))
    bare = SEEN._replace(subject=WOMEN._replace(adjective=None), relation=None, place=None, time=None)
    assert {read(text) for text in said(drop=1.0)} == {bare}
    assert {read(text).tense for text in said(tense=1.0)} == {"present", "future"}
    assert all(read(text).verb != "see" and read(text).subject.noun != "woman" for text in said(wrong=1.0))


def test_training_texts_leave_room():
    rng = random.Random(2)
    share = {}
    for slips in (LEARNER, BEGINNER):
        drawn = [draw_meaning(rng) for _ in range(1500)]
        share[slips] = sum(read(write(meaning, slips, rng)) == meaning for meaning in drawn) / len(drawn)
    assert 0.05 < share[BEGINNER] < share[LEARNER] < 0.25


def test_rows(made):
    assert {name: len(rows) for name, rows in made.items()} == {
        "prompts_heldout": 40,
        "prompts_train": 100,
        "sft_train": 200,
    }
    judge = referee("translation")
    for row in made["prompts_heldout"] + made["prompts_train"]:
        assert row["prompt"].endswith(".\n") and 1 <= len(row["references"]) == len(set(row["references"])) <= 4
        assert all(judge(text, row) == {"right": 1.0, "grammar": 1.0} for text in row["references"])
    assert set(made["sft_train"][0]) == {"prompt", "completion"}


def test_the_same_seed_makes_the_same_data(made):
    assert translation.make_data(WorldSettings(world="translation", **SMALL)) == made
    assert translation.make_data(WorldSettings(world="translation", **SMALL, seed=43)) != made


def test_what_held_out_sentences_mean_is_in_no_training_text(monkeypatch):
    """Few meanings, so that the same ones are drawn again and again: each must fall on one side."""
    pool = [draw_meaning(random.Random(seed)) for seed in range(60)]
    monkeypatch.setattr(translation, "draw_meaning", lambda rng: rng.choice(pool))
    monkeypatch.setattr(sys.modules[translation.__name__], "LEARNER", Slips())
    monkeypatch.setattr(sys.modules[translation.__name__], "BEGINNER", Slips())
    world_settings = WorldSettings(sft_rows=20, prompt_rows=20, heldout_rows=15, pretraining_texts=200)
    made = translation.make_data(world_settings)
    held = {tuple(translation.columns_of(read(row["references"][0])).items()) for row in made["prompts_heldout"]}
    trained = [row["completion"] for row in made["sft_train"]]
    trained += [row["references"][0] for row in made["prompts_train"]]
    documents = translation.pretraining_texts(world_settings, made)
    trained += [text.split("\n= ")[0] for _, text in documents]
    assert len(held) == 15 and len(documents) == 200
    assert not held & {tuple(translation.columns_of(read(text)).items()) for text in trained}
