"""Surface wordings of each slot value, for a keyword reward that looks for whole words or phrases.

They come from reading the training part; they are rougher than the patterns of `errors` (no "not" before
"family-friendly" is seen).
"""

from .slots import NAME, NEAR, Meaning

_CHILD = ("family", "families", "kid", "kids", "child", "children")
_FRIENDLY = tuple(f"{who}{gap}friendly" for who in _CHILD for gap in ("-", " "))
_NO = ("not ", "not a ", "non ", "non-", "isn't ", "aren't ")
_PRICES = ("price", "prices", "priced", "pricing")
_RATINGS = ("customer rating", "customer ratings", "rating", "ratings", "rated", "customer reviews", "reviews")


def _prices(*adjectives: str) -> tuple[str, ...]:
    forms = [f"{adjective}{gap}{noun}" for adjective in adjectives for noun in _PRICES for gap in (" ", "-")]
    return (*forms, *(f"{start} {adjectives[0]}" for start in ("prices are", "price is", "price range is", "priced")))


def _ratings(*adjectives: str) -> tuple[str, ...]:
    forms = [f"{adjective}{gap}{noun}" for adjective in adjectives for noun in _RATINGS for gap in (" ", "-")]
    ends = ("rating is", "ratings are", "rating of", "rated", "rated as")
    return (*forms, *(f"{start} {adjectives[0]}" for start in ends))


def _stars(number: str, word: str) -> tuple[str, ...]:
    forms = (" out of 5", " out of five", " star", " stars", "-star", " of 5")
    return tuple(f"{n}{form}" for n in (number, word) for form in forms)


def _pounds(words: str, amount: str) -> tuple[str, ...]:
    sums = (f"£{amount}", f"{amount} pounds", f"{amount} euros")
    return tuple(f"{word} {each}" for word in words.split("|") for each in sums)


KEYWORDS: dict[str, dict[str, tuple[str, ...]]] = {
    "eatType": {"coffee shop": ("coffee shop",), "pub": ("pub",), "restaurant": ("restaurant",)},
    "food": {
        "Chinese": ("Chinese",),
        "English": ("English", "British"),
        "French": ("French",),
        "Indian": ("Indian",),
        "Italian": ("Italian",),
        "Japanese": ("Japanese",),
        "Fast food": ("fast food", "fast-food"),
    },
    "priceRange": {
        "cheap": ("cheap", "cheaply", "inexpensive", "affordable", *_prices("low")),
        "moderate": _prices("moderate", "moderately", "average"),
        "high": ("expensive", *_prices("high", "higher")),
        "less than £20": _pounds("less than|under|below", "20"),
        "£20-25": ("£20-25", "£20-£25", "20-25 pounds", "£20 to £25", "20 to 25 pounds"),
        "more than £30": _pounds("more than|over|above", "30"),
    },
    "rating": {
        "low": _ratings("low", "poor", "poorly"),
        "average": _ratings("average"),
        "high": _ratings("high", "highly"),
        "1 out of 5": _stars("1", "one"),
        "3 out of 5": _stars("3", "three"),
        "5 out of 5": _stars("5", "five"),
    },
    "area": {
        "riverside": ("riverside", "river"),
        "city centre": ("city centre", "city center", "centre of the city", "center of the city"),
    },
    "familyFriendly": {
        "yes": _FRIENDLY,
        "no": (
            "adults only",
            "adult only",
            "no children",
            "no kids",
            *(f"{no}{friendly}" for no in _NO for friendly in _FRIENDLY),
        ),
    },
}  # fmt: skip


# Values that people take for one another: the one is no invention where the other is asked for.
_ALIKE = (
    {"cheap", "less than £20"},
    {"moderate", "£20-25"},
    {"high", "more than £30"},
    {"low", "1 out of 5"},
    {"average", "3 out of 5"},
    {"high", "5 out of 5"},
)


def wordings(meaning: Meaning) -> list[str]:
    """One entry for each value of `meaning`: its wordings joined by "|"; a placeholder for a name.

    A value that the data does not know is its own wording.
    """
    return [
        {"name": NAME, "near": NEAR}.get(slot) or "|".join(KEYWORDS[slot].get(value, (value,)))
        for slot, values in meaning.items()
        for value in values
    ]


def wanted(meaning: Meaning) -> list[str]:
    """The wordings without the placeholders."""
    return [entry for entry in wordings(meaning) if entry not in (NAME, NEAR)]


def unwanted(meaning: Meaning) -> list[str]:
    """One entry for each slot: the wordings of the values that it does not have, joined by "|".

    Left out, because they say nothing wrong: "restaurant", which people write of a pub as well, "family-friendly"
    where "not family-friendly" is asked for, and values that people take for one another.
    """
    found = []
    for slot, values in KEYWORDS.items():
        asked = set(meaning.get(slot, ()))
        harmless = asked.union(*(pair for pair in _ALIKE if pair & asked))
        harmless |= {"eatType": {"restaurant"}, "familyFriendly": {"yes"} if "no" in asked else set()}.get(slot, set())
        if wordings := [word for value, words in values.items() if value not in harmless for word in words]:
            found.append("|".join(wordings))
    return found


def wanted_names(meaning: Meaning) -> list[str]:
    """The placeholders that a text needs. They go by their capitals: "near" is another word."""
    return [entry for entry in wordings(meaning) if entry in (NAME, NEAR)]


def unwanted_names(meaning: Meaning) -> list[str]:
    """The placeholders that it must not have."""
    return [name for name in (NAME, NEAR) if name not in wordings(meaning)]
