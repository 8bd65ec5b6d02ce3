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


def wanted(meaning: Meaning) -> list[str]:
    """One entry for each value of `meaning`: its wordings joined by "|"."""
    found = []
    for slot, values in meaning.items():
        if slot in ("name", "near"):
            found.append(NAME if slot == "name" else NEAR)
        else:
            found += ["|".join(KEYWORDS[slot][value]) for value in values]
    return found
