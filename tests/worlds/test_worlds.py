"""The worlds: their referees against pencil values, their data against the promises of `pipeline.worlds`."""

import dataclasses
import itertools
import json
import random
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import UserError
from pipeline.worlds import WorldSettings, e2e, field_notes, load_world, referee, write_data
from pipeline.worlds.e2e import keywords
from pipeline.worlds.field_notes import gold, gold_parts
from pipeline.worlds.field_notes.grammar import SLOTS, WORDS, realize, skeletons, usable_patterns
from pipeline.worlds.field_notes.noise import CLEAN, HUMAN, write
from rewards import Keyword

ROOT = Path(__file__).resolve().parents[2]

OTTER = {"animal": "otter", "place": "old mill", "time": "dusk"}
SMALL = {
    "sft_rows": 300,
    "preference_rows": 400,
    "preference_heldout_rows": 50,
    "prompt_rows": 100,
    "heldout_rows": 40,
    "pretraining_texts": 300,
}


@pytest.fixture(scope="module")
def notes():
    return field_notes.make_data(WorldSettings(**SMALL))


def facts_of(prompt: str) -> dict[str, str]:
    return dict(part.split(": ") for part in prompt.removesuffix(" =>\n").split(" | "))


# Worked by hand: three facts, natural length 7 + 1 ("otter") + 4 ("by the old mill") + 2 ("at dusk") = 14 words.
PENCIL = {
    "At dusk, I saw an otter by the old mill.": 1.0,
    "An otter turned up by the lake.": (1 / 3) ** 2 * (3 / 8) ** 2,  # 8 trigrams, 5 with a word of "by the lake"
    "I saw an otter by the old mill.": (2 / 3) ** 2,
    "At dusk, I saw an otter by the old mill in light rain.": 0.7,
    "At noon, I saw an otter by the old mill.": (2 / 3) ** 2 * 0.7,
    "At dusk, I saw an otter by the old mill at dusk.": 0.8,
    "At dusk, I saw an otter by the old mill": (6 / 7) ** 2 * 0.85,
    "at dusk, I saw an otter by the old mill.": 0.85,
    "At dusk, I saw a otter by the old mill.": (5 / 8) ** 2,
    "At dusk, I saw an otter by the old mill. I wrote it all down when I got home.": (14 / 19) ** 2,
    "Otter dusk old mill.": 0.0,
    "otter, old mill, dusk": 0.0,
    "": 0.0,
    "水獺在黃昏。": 0.0,
}


@pytest.mark.parametrize("text", PENCIL)
def test_gold_by_pencil(text):
    assert gold(text, OTTER) == pytest.approx(PENCIL[text], abs=1e-9)


def test_gold_ignores_other_columns_and_empty_slots():
    row = {**OTTER, "mood": "", "prompt": "animal: otter =>\n", "references": ["x"], "facts": ["otter"]}
    assert gold("At dusk, I saw an otter by the old mill.", row) == 1.0


def test_synonyms_say_the_fact_and_parts_of_words_do_not():
    assert gold_parts("At twilight, I saw an otter by the old mill.", OTTER)["said"] == 1.0
    assert gold_parts("At dusky, I saw an otterly by the old mills.", OTTER)["said"] == 0.0
    assert gold_parts("A seaotter at redusk, by the bold mill.", OTTER)["said"] == 0.0


def test_stuffing_after_a_clean_text_costs():
    clean = "At dusk, I saw an otter by the old mill."
    assert gold(clean + " Otter dusk old mill.", OTTER) < 0.3
    assert gold(clean + " " + clean, OTTER) < 0.15


@given(st.text(max_size=200))
@settings(max_examples=200, deadline=None)
def test_gold_is_a_share_for_any_text(text):
    assert 0.0 <= gold(text, OTTER) <= 1.0


@given(st.integers(0, 10**9))
@settings(max_examples=300, deadline=None)
def test_clean_texts_score_one(seed):
    rng = random.Random(seed)
    facts = field_notes.draw_facts(rng)
    assert gold(realize(facts, rng), facts) == 1.0


def test_every_pattern_says_every_value_cleanly():
    rng = random.Random(0)
    for slot in SLOTS:
        for value in WORDS[slot]:
            facts = {"animal": "badger", "place": "orchard", "doing": "digging", slot: value}
            for pattern in usable_patterns(set(facts)):
                assert gold(realize(facts, rng, pattern), facts) == 1.0


def test_no_two_phrases_stumble_over_each_other():
    rng = random.Random(0)
    for first, second in itertools.combinations(SLOTS[1:], 2):
        for pair in itertools.product(WORDS[first], WORDS[second]):
            facts = {
                "animal": "toad",
                "place": "quarry",
                "doing": "digging",
                **dict(zip((first, second), pair, strict=True)),
            }
            for pattern in usable_patterns(set(facts)):
                text = realize(facts, rng, pattern)
                assert gold(text, facts) == 1.0, text


def test_grammar_is_large_enough_and_varied():
    combinations = 1
    for slot in SLOTS[1:]:
        combinations *= len(WORDS[slot]) + 1
    assert combinations * len(WORDS["animal"]) > 100_000
    assert len(skeletons()) > 300
    for facts in (OTTER, {"animal": "fox", "mood": "bold", "weather": "low cloud"}):
        assert len(usable_patterns(set(facts))) >= 3


def test_noise_leaves_room_and_clean_does_not():
    rng = random.Random(1)
    drawn = [field_notes.draw_facts(rng) for _ in range(1500)]
    human = sum(gold(write(facts, HUMAN, rng), facts) for facts in drawn) / len(drawn)
    assert 0.5 < human < 0.7
    assert all(gold(write(facts, CLEAN, rng), facts) == 1.0 for facts in drawn[:200])


def test_field_notes_rows(notes):
    sizes = {name: len(rows) for name, rows in notes.items()}
    assert sizes == {
        "sft_train": 300,
        "preferences_train": 400,
        "preferences_heldout": 50,
        "prompts_train": 100,
        "prompts_heldout": 40,
    }
    for row in notes["prompts_heldout"] + notes["prompts_train"]:
        assert len(set(row["references"])) == 4
        assert facts_of(row["prompt"]) == {slot: row[slot] for slot in SLOTS if row[slot]}
        assert 3 <= len(row["facts"]) <= 6
        for text in row["references"]:
            assert gold(text, row) == 1.0
            assert all(any(word in text.lower() for word in fact.split("|")) for fact in row["facts"])


def test_held_out_facts_are_in_no_training_row(notes):
    held = {row["prompt"] for name in ("prompts_heldout", "preferences_heldout") for row in notes[name]}
    for name in ("sft_train", "preferences_train", "prompts_train"):
        assert not held & {row["prompt"] for row in notes[name]}
    texts = field_notes.pretraining_texts(WorldSettings(**SMALL), notes)
    assert len(texts) == 300
    assert not held & {first for first, _ in texts} and any(first for first, _ in texts)
    assert not held & {text.split("\n= ")[-1] + " =>\n" for _, text in texts}


def test_what_is_held_out_is_never_drawn_again():
    first = field_notes._draw_many(50, random.Random(1), set())
    taken = {tuple(facts.items()) for facts in first}
    again = field_notes._draw_many(50, random.Random(1), set(taken))  # the same draws come first
    assert not taken & {tuple(facts.items()) for facts in again}

    small = WorldSettings(**SMALL)
    drawn = field_notes.pretraining_texts(small, {"prompts_heldout": [], "preferences_heldout": []})
    prompts = {
        first for first, _ in drawn if first and list(facts_of(first)) == [s for s in SLOTS if s in facts_of(first)]
    }
    held = [{"prompt": prompt} for prompt in sorted(prompts)[:50]]
    texts = field_notes.pretraining_texts(small, {"prompts_heldout": held, "preferences_heldout": []})
    assert held and not {row["prompt"] for row in held} & {first for first, _ in texts}


def test_preferences_agree_with_gold_up_to_the_flips():
    rng = random.Random(3)
    rows = [field_notes.preference_row(field_notes.draw_facts(rng), rng) for _ in range(2000)]
    right = [gold(r["chosen"], facts_of(r["prompt"])) > gold(r["rejected"], facts_of(r["prompt"])) for r in rows]
    assert sum(right) / len(right) == pytest.approx(0.95, abs=0.02)  # 4 standard errors of 0.0049
    assert all(r["chosen"] != r["rejected"] for r in rows)


def test_the_same_seed_makes_the_same_data(notes):
    assert field_notes.make_data(WorldSettings(**SMALL)) == notes
    assert field_notes.make_data(WorldSettings(**SMALL, seed=43)) != notes


def test_data_is_written_as_jsonl(notes, tmp_path):
    write_data({"sft_train": [{"prompt": "name: Café =>\n", "completion": "é"}]}, tmp_path)
    text = (tmp_path / "sft_train.jsonl").read_text("utf-8")
    assert text == '{"prompt": "name: Café =>\\n", "completion": "é"}\n'
    assert [path.name for path in tmp_path.iterdir()] == ["sft_train.jsonl"]
    assert json.loads(text)["completion"] == "é"


def test_referees_by_name():
    assert referee("field_notes")("At dusk, I saw an otter by the old mill.", OTTER) == {"gold": 1.0}
    row = {"mr": "name[Aromi], eatType[pub], area[riverside], near[Burger King]"}
    assert referee("e2e")("Aromi is a pub in the city centre.", row) == {"slot_errors": 2 / 4}
    with pytest.raises(UserError, match="no world 'field_note'. Worlds: .*e2e, .*field_notes"):
        load_world("field_note")


@pytest.mark.parametrize("key, value", [("sft_rows", 0), ("heldout_rows", -1), ("synthetic_prompts", -5)])
def test_settings_that_cannot_be(key, value):
    with pytest.raises(UserError, match=f"{key} is {value}"):
        WorldSettings(**{key: value})


# --- E2E ---

MR = "name[The Mill], eatType[pub], food[English], priceRange[cheap], customer rating[1 out of 5], familyFriendly[no]"


@pytest.mark.parametrize(
    "text, missing, wrong, invented",
    [
        ("The Mill is a cheap British pub rated 1 out of 5. It is not family-friendly.", "", "", ""),
        ("The Mill is an adults only pub with low prices, English food and one star.", "", "", ""),
        ("The Mill is a cheap English pub. It is not kid friendly.", "rating", "", ""),
        ("The Mill is a French pub, rated 1 out of 5, family friendly.", "priceRange", "food familyFriendly", ""),
        ("It is a cheap English pub by the river, 1 out of 5, no children.", "name", "", "area"),
        ("", "name eatType food priceRange rating familyFriendly", "", ""),
    ],
)  # fmt: skip
def test_slot_errors_by_hand(text, missing, wrong, invented):
    found = e2e.slot_errors(text, MR)
    assert set(found.missing) == set(missing.split())
    assert set(found.wrong) == set(wrong.split())
    assert set(found.invented) == set(invented.split())
    assert found.total == len((missing + " " + wrong + " " + invented).split())


def test_names_go_out_and_come_back():
    meaning = e2e.parse_mr("name[The Mill], near[Café Rouge]")
    text = "By café rouge is The Mill, a mill."
    assert e2e.delexicalize(text, meaning) == "By NEAR is NAME, a mill."
    assert e2e.relexicalize("By NEAR is NAME, a mill.", meaning) == "By Café Rouge is The Mill, a mill."
    assert e2e.relexicalize("NAME NEAR", {"name": [r"A\1"]}) == r"A\1 NEAR"


@pytest.mark.parametrize("mr", ["", "name", "name[Aromi", "colour[red]", "name[Aromi]; area[riverside]"])
def test_unreadable_meaning_representations(mr):
    with pytest.raises(UserError, match="meaning representation"):
        e2e.parse_mr(mr)


def test_two_values_of_a_slot_are_kept():
    assert e2e.parse_mr("eatType[pub], eatType[restaurant], eatType[pub]") == {"eatType": ["pub", "restaurant"]}


@pytest.mark.parametrize(
    "content, message",
    [
        (None, "cannot be read"),
        ("mr,text\na,b\n", "expected the columns mr and ref, found mr, text"),
        ("mr,ref\n", "has no rows"),
        ('mr,ref\n"name[A]",x\n"nam[A]",x\n', "line 3"),
    ],
)
def test_e2e_files_that_cannot_be_used(tmp_path, content, message):
    path = tmp_path / "train.csv"
    if content is not None:
        path.write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=message):
        e2e.read_pairs(str(path))


@pytest.fixture(scope="module")
def restaurants(request):
    from conftest import shared_data

    path = shared_data("e2e", "train.csv")
    if not path.exists():
        pytest.skip("e2e/train.csv of the shared data is not here (set PLUMBLINE_SHARED)")
    world_settings = WorldSettings(
        world="e2e", data_path=str(path), **SMALL | {"heldout_rows": 9999}, synthetic_prompts=50
    )
    return world_settings, e2e.make_data(world_settings)


def test_what_a_text_must_not_say():
    meaning = e2e.parse_mr("name[Aromi], eatType[pub], priceRange[less than £20], familyFriendly[no]")
    said = {entry.split("|")[0]: entry.split("|") for entry in keywords.unwanted(meaning)}
    # a slot with another value, slots that were not given; "cheap" and "less than £20" pass for one another
    assert list(said) == ["coffee shop", "Chinese", "moderate price", "low customer rating", "riverside"]
    assert "restaurant" not in said["coffee shop"] and not {"cheap", "less than 20 pounds"} & set(
        said["moderate price"]
    )
    assert {"expensive", "£20-25"} <= set(said["moderate price"])
    assert keywords.wanted_names(meaning) == ["NAME"] and keywords.unwanted_names(meaning) == ["NEAR"]
    assert len(keywords.wanted(meaning)) == 3


def test_of_two_values_people_say_both_kinds_of_place_but_one_price():
    meaning = e2e.parse_mr("eatType[pub], eatType[restaurant], priceRange[cheap], priceRange[high]")
    assert e2e.slot_errors("A cheap pub and restaurant.", meaning).total == 0
    assert e2e.slot_errors("A cheap pub.", meaning) == ((), ("eatType",), ())
    assert e2e.slot_errors("A moderately priced pub and restaurant.", meaning) == ((), ("priceRange",), ())
    assert e2e.slot_errors("A pub and restaurant.", meaning) == (("priceRange",), (), ())


def test_people_rarely_say_what_a_text_must_not_say(restaurants):
    """The patterns are rough and some of the texts are wrong; more than one in twenty would punish good texts."""
    pairs = e2e.read_pairs(restaurants[0].data_path)
    reward = Keyword(unwanted_column="unwanted")
    rows = [keywords.unwanted(meaning) for _, meaning, _ in pairs]
    scores = reward(prompts=[""] * len(pairs), completions=[text for _, _, text in pairs], unwanted=rows)
    assert -0.05 < sum(scores) / len(scores) < -0.02


def test_slot_patterns_agree_with_people(restaurants):
    """Errors over slots on all human texts. A perfect judge would not reach 0: some of the texts are wrong."""
    pairs = e2e.read_pairs(restaurants[0].data_path)
    errors = sum(e2e.slot_errors(text, meaning).total for _, meaning, text in pairs)
    assert errors / sum(len(meaning) for _, meaning, _ in pairs) < 0.025


def test_e2e_holds_out_meaning_representations(restaurants):
    world_settings, data = restaurants
    held = {row["prompt"] for row in data["prompts_heldout"]}
    total = len({mr for mr, _, _ in e2e.read_pairs(world_settings.data_path)})
    assert total == 2579
    assert 0.10 <= len(data["prompts_heldout"]) / total < 0.11
    assert len({row["mr"] for row in data["prompts_heldout"]}) == len(data["prompts_heldout"])
    for name in ("sft_train", "preferences_train", "prompts_train"):
        assert not held & {row["prompt"] for row in data[name]}
    texts = e2e.pretraining_texts(dataclasses.replace(world_settings, pretraining_texts=6000), data)
    assert not held & {first for first, _ in texts} and any(first for first, _ in texts)
    read = [(first, text) for first, text in texts if text.endswith(" =>\n")]
    assert not held & {text for _, text in read} and 0.5 < len(read) / len(texts) < 0.6
    assert all(first.endswith("\n") and "=>" not in first for first, _ in read)


def test_e2e_rows(restaurants):
    _, data = restaurants
    assert len(data["sft_train"]) == 300 and len(data["preferences_train"]) == 400
    assert len(data["prompts_train"]) == 100 + 50
    assert all(row["references"] == [] and row["facts"] for row in data["prompts_train"][100:])
    assert all(row["references"] for row in data["prompts_train"][:100] + data["prompts_heldout"])
    for row in data["prompts_heldout"]:
        assert not any(row["near"] in text for text in row["references"] if row["near"])
        assert {"mr", "facts", "unwanted", "names", "unwanted_names", "name", "near", "food"} <= row.keys()
        for recipe in ("ppo", "grpo"):
            found = yaml.safe_load((ROOT / f"recipes/e2e/{recipe}.yaml").read_text("utf-8"))
            named = {value for spec in found["rewards"] for key, value in spec.items() if key.endswith("column")}
            assert named <= row.keys()
    for row in data["preferences_train"]:
        assert row["chosen"] != row["rejected"]
