"""The railway records: what a summary claims and what it is worth, by pencil; the data; the rewards of the recipe."""

import random
from pathlib import Path

import pytest
import yaml

from pipeline.worlds import WorldSettings, lower_is_better, records
from pipeline.worlds.base import draw_new
from pipeline.worlds.records import claims
from pipeline.worlds.records.grammar import CAUSES, OUTCOMES, Record, draw_record, sentence, source
from rewards import build_rewards
from rewards.text import words

RECIPE = Path(__file__).resolve().parents[2] / "recipes/summarisation"
SMALL = {"sft_rows": 60, "prompt_rows": 50, "heldout_rows": 40, "pretraining_texts": 100}
TREE = Record("8:20", "Alder", "Kirby", 25, "tree", "bus")
GOOD = "The 8:20 from Alder to Kirby was 25 minutes late because of a fallen tree, and a bus took over."


@pytest.fixture(scope="module")
def data():
    return records.make_data(WorldSettings(world="records", **SMALL))


# For TREE, which has six key facts.
PENCIL = {
    GOOD: (1.0, 0.0, 1.0),
    "A fallen tree delayed the 8:20 from Alder to Kirby by 25 minutes, and a bus took over.": (1.0, 0.0, 1.0),
    "The 8:20 from Alder to Kirby lost 25 minutes to a fallen tree.": (5 / 6, 0.0, 0.0),
    "The 8:20 from Kirby to Alder was late.": (1 / 6, 2 / 3, 0.0),  # the wrong way round
    "The 8:20 from Alder to Kirby was 40 minutes late because of heavy snow, and it ended early.": (3 / 6, 3 / 6, 0.0),
    "The 8:20 from Alder to Kirby lost 25 minutes to animals on the line.": (4 / 6, 1 / 5, 0.0),
    GOOD + " The guard handed out tea.": (1.0, 0.0, 0.0),  # two sentences
    GOOD + " The 9:05 to Larch was on time.": (1.0, 2 / 8, 0.0),
    GOOD.removesuffix("."): (1.0, 0.0, 0.0),
    "The train from Alderney to Kirby was late.": (1 / 6, 1 / 2, 0.0),  # no station of the record
    "The train was late.": (0.0, 0.0, 0.0),
    "": (0.0, 0.0, 0.0),
}  # fmt: skip


@pytest.mark.parametrize("text", PENCIL)
def test_the_referee_by_pencil(text):
    judged = records.referee(text, TREE._asdict())
    assert tuple(judged.values()) == pytest.approx(PENCIL[text])
    assert judged.keys() == records.HIGHER_IS_BETTER.keys() and lower_is_better("records") == {"invented"}


def test_five_facts_without_an_outcome():
    row = TREE._replace(outcome="")._asdict()
    judged = records.referee("The 8:20 from Alder to Kirby lost 25 minutes to a fallen tree.", row)
    assert tuple(judged.values()) == (1.0, 0.0, 1.0)
    assert records.referee(GOOD, row)["invented"] == pytest.approx(1 / 6)  # nobody said that there was a bus


def test_every_clean_sentence_is_perfect_and_has_the_important_words(data):
    rng = random.Random(0)
    for cause in CAUSES:
        for outcome in ("", *OUTCOMES):
            record = draw_record(rng)._replace(cause=cause, outcome=outcome)
            for _ in range(6):
                text = sentence(record._asdict(), rng)
                assert records.referee(text, record._asdict()) == {"facts": 1.0, "invented": 0.0, "perfect": 1.0}, text
    for row in data["prompts_heldout"]:
        assert len(row["important"].split()) == 5 + bool(row["outcome"])
        assert all(set(words(row["important"])) <= set(words(text)) for text in row["references"])


def test_a_source_has_the_facts_in_other_words_and_traps():
    rng = random.Random(0)
    for _ in range(100):
        record = draw_record(rng)
        text = source(record, rng)
        assert text.count(".") - bool(record.outcome) in (5, 6)  # journey, cause, delay, two or three trifles
        for word in (record.time, record.origin, record.destination, f"{record.delay} minutes"):
            assert word in text
        assert not {slot for slot, _ in claims(text)} & {"cause", "outcome"}
    traps = [t for t in (source(TREE, rng) for _ in range(50)) if claims(t) - claims(GOOD) or "Kirby" in t]
    assert traps


def test_people_forget_and_mistake_and_ramble():
    rng = random.Random(1)
    judged = [
        records.referee(records.write(r, records.HUMAN, rng), r._asdict()) for r in map(draw_record, [rng] * 1500)
    ]
    mean = {name: sum(row[name] for row in judged) / len(judged) for name in judged[0]}
    # by the chances: of five facts that may be forgotten 80% are said, the time always; a mistake in 8% of six facts
    assert 0.7 < mean["facts"] < 0.85 and 0.05 < mean["invented"] < 0.15 and mean["perfect"] < 0.25
    clean = [records.referee(records.write(r, (0, 0, 0), rng), r._asdict()) for r in map(draw_record, [rng] * 100)]
    assert all(row["perfect"] for row in clean)


def test_what_is_held_out_is_in_no_training_file(data):
    assert {name: len(rows) for name, rows in data.items()} == {
        "prompts_heldout": 40,
        "prompts_train": 50,
        "sft_train": 60,
    }
    held = {Record(*(row[slot] for slot in Record._fields)) for row in data["prompts_heldout"]}
    train = {Record(*(row[slot] for slot in Record._fields)) for row in data["prompts_train"]}
    assert len(held) == 40 and not held & train
    prompts = {row["prompt"] for row in data["prompts_heldout"]}
    assert not prompts & {row["prompt"] for row in data["sft_train"]}
    taken = set(held)
    rng = random.Random("records 42")
    assert not held & set(draw_new(lambda: draw_record(rng), 200, taken)) and len(taken) == 240


def test_pretraining_keeps_away_from_held_out_records(data):
    """Held out is what would come first."""
    settings = WorldSettings(world="records", **SMALL)
    first = records.pretraining_texts(settings, {"prompts_heldout": []})
    assert len(first) == 100
    rng = random.Random("records pretraining 42")
    record = draw_record(rng)
    again = records.pretraining_texts(settings, {"prompts_heldout": [record._asdict()]})
    assert first[0][0] == records.prompt_of(source(record, rng)) and again[0] != first[0]


def test_the_same_seed_makes_the_same_data(data):
    assert records.make_data(WorldSettings(world="records", **SMALL)) == data
    assert records.make_data(WorldSettings(world="records", **SMALL, seed=43)) != data


def test_the_recipe_rewards_by_pencil():
    """22 words of source: half of them are 11. GOOD has 21 (8:20 are two), 10 too many."""
    row = {
        "source": "The 8:20 from Alder to Kirby ran today. Branches lay all over the track. "
        "It lost 25 minutes. A dog slept.",
        "references": [GOOD],
        "important": "8:20 Alder Kirby 25 tree bus",
    }
    specs = yaml.safe_load((RECIPE / "ppo.yaml").read_text("utf-8"))["rewards"]
    columns = {name: [value] for name, value in row.items()}
    scores = {r.__name__: r(prompts=["p"], completions=[GOOD], **columns)[0] for r, _ in build_rewards(specs)}
    assert scores == pytest.approx({"rougeL": 1.0, "coverage": 1.0, "brevity": -10 / 11})
    short = "The train from Alder to Kirby was late."  # 8 words; 2 of 7 important ones (8 and 20 are two)
    scores = {r.__name__: r(prompts=["p"], completions=[short], **columns)[0] for r, _ in build_rewards(specs)}
    # common in order: the from alder to kirby was late, 7 of 8 and of 21
    assert scores == pytest.approx({"rougeL": 2 * 7 / 29, "coverage": 2 / 7, "brevity": 0.0})
