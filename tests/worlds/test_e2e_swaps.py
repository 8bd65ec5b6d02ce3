"""Texts of E2E with another value, or without a sentence, and the meaning that they then have."""

import random

import pytest

from pipeline.worlds.e2e import parse_mr, prompt_of
from pipeline.worlds.e2e.swaps import drop_sentence, swap_value


def every(make, times=60):
    """What comes out with many seeds, as (meaning, text) without None."""
    return [made for seed in range(times) if (made := make(random.Random(seed)))]


@pytest.mark.parametrize(
    "mr, slot, text, expected",
    [
        (
            "name[Aromi], food[Italian]",
            "food",
            "NAME serves Italian food.",
            {("Fast food", "NAME serves Fast food."), ("French", "NAME serves French food.")},
        ),
        (
            "name[Aromi], eatType[pub], customer rating[low]",
            "rating",
            "NAME is a pub with a low customer rating.",
            {
                ("average", "NAME is a pub with an average customer rating."),
                ("5 out of 5", "NAME is a pub with a customer rating of 5 out of 5."),
            },
        ),
        (
            "name[Aromi], area[riverside]",
            "area",
            "In the riverside area is NAME.",
            {("city centre", "In the city centre is NAME.")},
        ),
        (
            "name[Aromi], familyFriendly[no]",
            "familyFriendly",
            "NAME is not kid friendly.",
            {("yes", "NAME is kid friendly.")},
        ),
        (
            "name[Aromi], eatType[pub]",
            "eatType",
            "NAME is a pub.",
            {("pub+restaurant", "NAME is a pub and restaurant."), ("coffee shop", "NAME is a coffee shop.")},
        ),
    ],
)  # fmt: skip
def test_a_value_is_said_otherwise(mr, slot, text, expected):
    meaning = parse_mr(mr)
    made = every(lambda rng: swap_value(meaning, text, rng, slot))
    assert expected <= {("+".join(other[slot]), changed) for other, changed in made}
    for other, changed in made:
        assert changed != text and {**other, slot: 0} == {**meaning, slot: 0} and other[slot] != meaning[slot]
    assert meaning == parse_mr(mr)


def test_a_text_without_the_wording_or_with_a_second_mention_is_left_alone():
    assert not every(lambda rng: swap_value(parse_mr("name[Aromi], food[Thai]"), "NAME serves Thai food.", rng))
    twice = "NAME serves cheap Italian food. It is Italian."
    assert not every(
        lambda rng: swap_value(parse_mr("name[Aromi], food[Italian], priceRange[cheap]"), twice, rng, "food")
    )
    assert not every(lambda rng: swap_value(parse_mr("name[Aromi]"), "NAME is cheap.", rng, "priceRange"))


def test_a_sentence_is_left_out_with_its_slots():
    meaning = parse_mr("name[Aromi], eatType[pub], area[riverside], familyFriendly[yes]")
    text = "NAME is a pub by the river. It is family friendly. NAME is nice."
    made = {("+".join(other), left) for other, left in every(lambda rng: drop_sentence(meaning, text, rng))}
    assert made == {
        ("name+familyFriendly", "It is family friendly. NAME is nice."),
        ("name+eatType+area", "NAME is a pub by the river. NAME is nice."),
        ("name+eatType+area+familyFriendly", "NAME is a pub by the river. It is family friendly."),
    }
    assert drop_sentence(meaning, "NAME is a family friendly pub by the river.", random.Random(0)) is None
    # a text keeps its name, and another slot
    named_last = "It is a pub by the river. It is NAME."
    for mr in ("name[Aromi], eatType[pub], area[riverside]", "name[Aromi], eatType[pub]"):
        assert not every(lambda rng, mr=mr: drop_sentence(parse_mr(mr), named_last, rng))


def test_prompts_have_one_word_for_each_value():
    mr = "name[A b], eatType[pub], eatType[restaurant], food[Fast food], customer rating[1 out of 5], near[C]"
    assert prompt_of(parse_mr(mr)) == "NAME eatTypePub eatTypeRestaurant foodFastFood rating1OutOf5 NEAR =>\n"
    assert prompt_of(parse_mr("priceRange[£20-25]")) == "priceRange£20-25 =>\n"
