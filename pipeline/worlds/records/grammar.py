"""Words of the railway records: what a record says at length, and what a summary says of it."""

import random
from typing import NamedTuple

# Trains run from the west to the east, so a small model soon learns which station to copy where. Others are only named
# by the way.
WEST = "Alder Birch Corwen Dunham Elmstead Fairfold".split()
EAST = "Hexton Kirby Larch Marston Norwood Oakham".split()
OTHERS = "Gorse Pendle Quarn".split()
TIMES = [f"{hour}:{minute}" for hour in range(6, 22) for minute in ("05", "20", "35", "50")]
DELAYS = (10, 15, 20, 25, 30, 40, 45, 50, 60, 90)


class Wording(NamedTuple):
    """How a record says a thing, in whole sentences; how a summary says it; the word that every such summary has."""

    record: tuple[str, ...]
    summary: tuple[str, ...]
    word: str


CAUSES = {
    "tree": Wording(
        ("A big oak had come down across the rails.", "Branches lay all over the track."),
        ("a fallen tree", "a tree on the line"),
        "tree",
    ),
    "signal": Wording(
        ("A red light would not turn green.", "The lights along the track had gone dark."),
        ("a signal failure", "a faulty signal"),
        "signal",
    ),
    "flood": Wording(
        ("Water stood above the rails.", "The river had come over the track."),
        ("flooding", "flooding on the line"),
        "flooding",
    ),
    "snow": Wording(
        ("Drifts had covered the points.", "A plough had to clear the way."),
        ("heavy snow", "snow on the line"),
        "snow",
    ),
    "animals": Wording(
        ("Sheep had wandered onto the track.", "Some cows stood between the rails."),
        ("animals on the line", "straying animals"),
        "animals",
    ),
    "staff": Wording(
        ("The driver had been taken ill.", "No guard could be found."), ("a lack of staff", "missing staff"), "staff"
    ),
    "engine": Wording(
        ("The motor would not start.", "Smoke came out of the locomotive."),
        ("an engine fault", "a broken engine"),
        "engine",
    ),
    "power": Wording(
        ("The overhead wire was dead.", "The current had gone off."), ("a power cut", "a loss of power"), "power"
    ),
    "bag": Wording(
        ("Somebody had left a suitcase behind.", "A parcel without an owner was found."),
        ("a forgotten bag", "an unattended bag"),
        "bag",
    ),
}
OUTCOMES = {
    "bus": Wording(
        ("Coaches were ordered for everybody.", "All had to go on by road."),
        ("passengers went on by bus", "a bus took over"),
        "bus",
    ),
    "refund": Wording(
        ("Fares were given back at the counter.", "Everybody got the money back."),
        ("passengers got a refund", "a refund was paid"),
        "refund",
    ),
    "short": Wording(
        ("It went no further than the last junction.", "It was sent back before its end."),
        ("it ended early", "the journey ended early"),
        "early",
    ),
}

SERVICE = (
    "The {time} from {origin} to {destination} ran today.",
    "This is about the {time} train from {origin} to {destination}.",
    "The {time} to {destination} started from {origin}.",
)
DELAY = ("It got in {delay} minutes late.", "It lost {delay} minutes.", "The delay came to {delay} minutes.")

# What nobody needs to know. Stations, times and numbers in it are traps.
TRIVIA = (
    "The guard handed out tea.",
    "A choir on board sang.",
    "The buffet had no more soup.",
    "A dog slept in the aisle.",
    "Someone played the accordion.",
    "It had rained since {other_time}.",
    "The {other_time} at {other_station} was on time.",
    "A school class got in at {other_station}.",
    "The clock at {other_station} is {other_delay} minutes fast.",
    "There were {other_delay} people in the front coach.",
    "A new roof is being built at {other_station}.",
)


class Record(NamedTuple):
    """The key facts of one journey. `outcome` is "" where the record tells of none."""

    time: str
    origin: str
    destination: str
    delay: int
    cause: str
    outcome: str


def draw_record(rng: random.Random) -> Record:
    """A random record."""
    outcome = rng.choice(list(OUTCOMES)) if rng.random() < 0.5 else ""
    journey = rng.choice(TIMES), rng.choice(WEST), rng.choice(EAST)
    return Record(*journey, rng.choice(DELAYS), rng.choice(list(CAUSES)), outcome)


def source(record: Record, rng: random.Random) -> str:
    """The record at length: its key facts and two or three trifles; the journey mostly first, the rest anyhow."""
    facts = record._asdict() | {
        "other_station": rng.choice(OTHERS),
        "other_time": rng.choice([t for t in TIMES if t != record.time]),
        "other_delay": rng.choice([d for d in DELAYS if d != record.delay]),
    }
    rest = [rng.choice(CAUSES[record.cause].record), rng.choice(DELAY), *rng.sample(TRIVIA, rng.choice((2, 3)))]
    if record.outcome:
        rest.append(rng.choice(OUTCOMES[record.outcome].record))
    rng.shuffle(rest)
    service = rng.choice(SERVICE)
    rest.insert(0 if rng.random() < 0.7 else rng.randrange(len(rest)), service)
    return " ".join(rest).format(**facts)


def sentence(record: dict, rng: random.Random) -> str:
    """One sentence that says the facts in `record` (a part of Record's fields; a missing or empty one is not said).

    A train is told by its time, or its stations, so one of them must be there.
    """
    train = "the " + (record["time"] if record.get("time") else "train")
    for word in ("origin", "destination"):
        if record.get(word):
            train += f" {'from' if word == 'origin' else 'to'} {record[word]}"
    delay = f"{record['delay']} minutes" if record.get("delay") else ""
    cause = rng.choice(CAUSES[record["cause"]].summary) if record.get("cause") else ""
    outcome = rng.choice(OUTCOMES[record["outcome"]].summary) if record.get("outcome") else ""
    forms = [f"{train} was {delay + ' ' if delay else ''}late{' because of ' + cause if cause else ''}"]
    if delay:
        forms.append(f"{train} lost {delay}{' to ' + cause if cause else ''}")
    if cause:
        forms.append(f"{cause} delayed {train}{' by ' + delay if delay else ''}")
        forms.append(f"because of {cause}, {train} ran {delay + ' ' if delay else ''}late")
    text = rng.choice(forms) + (f", and {outcome}" if outcome else "") + "."
    return text[0].upper() + text[1:]
