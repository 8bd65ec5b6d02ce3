"""E2E: restaurant slots to a text written by a person (E2E NLG, cleaned by Dušek et al. 2019), read from the user's
own copy.

Prompt:     ``NAME eatTypePub foodFastFood areaRiverside NEAR =>`` and a newline
Completion: ``NAME is a fast food pub near NEAR on the riverside.``

The names are taken out and put back afterwards (`relexicalize`), as the published systems do. Ten percent of the
meaning representations are held out; those that are equal but for the names stay on one side. `sft_rows`,
`preference_rows` and so on are upper limits here. Every training text is used; the patterns of `errors` pick none of
them (they only check what `swaps` makes).

**Preference pairs** (nobody was asked; the order is known by how they are made). One of the two texts is a human
text of the training part, and they differ in what they say of the prompt:
- 40%: a value is said otherwise (`swaps.swap_value`), 10%: a sentence is left out (`swaps.drop_sentence`). Half of
  these pairs have the human text as `chosen`, the other half the changed text, with the prompt that fits it;
- 40%: `rejected` is a human text of another meaning representation that differs in one slot (another value, a slot
  more, a slot less);
- 10%: `rejected` is clumsy: words said twice, a phrase again at the end, words lost, cut off, or bare slot values.
"""

import csv
import random
from collections import defaultdict

from pipeline.errors import UserError

from ..base import Document, WorldData, WorldSettings, progress
from .errors import EITHER, SlotErrors, slot_errors
from .keywords import unwanted, unwanted_names, wanted, wanted_names, wordings
from .slots import NAME, NEAR, SLOTS, VALUES, Meaning, delexicalize, parse_mr, relexicalize
from .swaps import drop_sentence, swap_value

__all__ = [
    "HIGHER_IS_BETTER",
    "SlotErrors",
    "delexicalize",
    "make_data",
    "parse_mr",
    "pretraining_texts",
    "prompt_of",
    "referee",
    "relexicalize",
    "slot_errors",
    "slot_reward",
]

HIGHER_IS_BETTER = {"slot_errors": False}
HELD_OUT = 0.10
WRITTEN = 0.45  # of the base's documents; the others are read
_PLACEHOLDERS = {"name": NAME, "near": NEAR}
Pair = tuple[str, Meaning, str]
"""mr, meaning, delexicalized text"""


def prompt_of(meaning: Meaning) -> str:
    """The prompt for `meaning`, names as placeholders."""
    words = [word for slot, values in meaning.items() for word in _prompt_words(slot, values)]
    return " ".join(words) + " =>\n"


def _prompt_words(slot: str, values: list[str]) -> list[str]:
    """A word of letters for each value, so that the base's tokenizer learns it as one token."""
    if slot in _PLACEHOLDERS:
        return [_PLACEHOLDERS[slot]]
    return [slot + "".join(word[0].upper() + word[1:] for word in value.split()) for value in values]


def referee(completion: str, row: dict) -> dict[str, float]:
    """``{"slot_errors": …}``: slots missing, wrong or invented over slots asked for, lower is better. `row` has
    ``mr``.
    """
    meaning = parse_mr(row["mr"])
    return {"slot_errors": slot_errors(completion, meaning).total / len(meaning)}


def slot_reward(prompts, completions, mr, **columns) -> list[float]:
    """1 - slot errors / slots of each completion, for recipes that train on the patterns (then they are no
    referee).
    """
    return [1.0 - referee(text, {"mr": one})["slot_errors"] for text, one in zip(completions, mr, strict=True)]


def read_pairs(path: str | None) -> list[Pair]:
    """Read the CSV (columns mr, ref).

    Raises:
        UserError: no path, no such file, another format, or a row that cannot be read (with its line).
    """
    if path is None:
        raise UserError("the e2e world reads a data set: give data_path, the train.csv with the columns mr and ref")
    pairs = []
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            if not {"mr", "ref"} <= set(reader.fieldnames or ()):
                raise UserError(
                    f"data_path {path}: expected the columns mr and ref, "
                    f"found {', '.join(reader.fieldnames or ['none'])}"
                )
            for row in reader:
                try:
                    meaning = parse_mr(row["mr"] or "")
                except UserError as error:
                    raise UserError(f"data_path {path}, line {reader.line_num}: {error}") from None
                text = " ".join((row["ref"] or "").split())
                if text:
                    pairs.append((row["mr"], meaning, delexicalize(text, meaning)))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"data_path {path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if not pairs:
        raise UserError(f"data_path {path} has no rows")
    return pairs


def split(pairs: list[Pair], seed: int) -> tuple[list[Pair], list[Pair]]:
    """(training, held out) by meaning representation; prompts that are equal without names stay together."""
    groups: dict[str, list[Pair]] = defaultdict(list)
    for pair in pairs:
        groups[prompt_of(pair[1])].append(pair)
    total, held, train = len({mr for mr, _, _ in pairs}), [], []
    order = sorted(groups)
    random.Random(f"e2e {seed}").shuffle(order)
    for prompt in order:
        room = len({mr for mr, _, _ in held}) < HELD_OUT * total
        (held if room else train).extend(groups[prompt])
    return train, held


def prompt_row(mr: str, meaning: Meaning, references: list[str]) -> dict:
    """A row of a prompts file; `references` are delexicalized like the prompt."""
    return {
        "prompt": prompt_of(meaning),
        "mr": mr,
        "references": list(dict.fromkeys(references)),
        "facts": wanted(meaning),
        "unwanted": unwanted(meaning),
        "names": wanted_names(meaning),
        "unwanted_names": unwanted_names(meaning),
        **{slot: " + ".join(meaning.get(slot, [])) for slot in SLOTS},
    }


def _prompt_rows(pairs: list[Pair], by_mr: bool) -> list[dict]:
    """One row for each meaning representation, or for each prompt, with all its references."""
    groups: dict[str, list[Pair]] = defaultdict(list)
    for pair in pairs:
        groups[pair[0] if by_mr else prompt_of(pair[1])].append(pair)
    return [prompt_row(group[0][0], group[0][1], [text for _, _, text in group]) for group in groups.values()]


def mr_of(meaning: Meaning) -> str:
    """The meaning representation as the data set writes it."""
    names = {"rating": "customer rating"}
    return ", ".join(f"{names.get(slot, slot)}[{value}]" for slot, values in meaning.items() for value in values)


def synthetic_meanings(pairs: list[Pair], count: int, taken: set[str], rng: random.Random) -> list[Meaning]:
    """`count` new slot combinations: which slots as in a random training pair, values drawn evenly. None has a prompt
    in `taken`.
    """
    found: list[Meaning] = []
    for _ in range(100 * count):
        if len(found) == count:
            break
        like = rng.choice(pairs)[1]
        meaning = {slot: _drawn(slot, like[slot], rng) if slot in VALUES else like[slot][:1] for slot in like}
        if prompt_of(meaning) not in taken:
            taken.add(prompt_of(meaning))
            found.append(meaning)
    return found


def _drawn(slot: str, like: list[str], rng: random.Random) -> list[str]:
    """Values of a slot; as many as in `like` where people say two of them."""
    return sorted(rng.sample(VALUES[slot], 1 if slot in EITHER else min(len(like), len(VALUES[slot]))))


class _Pairs:
    """Makes preference pairs (see the module)."""

    def __init__(self, pairs: list[Pair], rng: random.Random):
        self.rng = rng
        self.texts: dict[str, list[tuple[Meaning, str]]] = defaultdict(list)
        self.near: dict[tuple, list[str]] = defaultdict(list)
        for _, meaning, text in pairs:
            prompt = prompt_of(meaning)
            if prompt not in self.texts:
                for key in self._keys(meaning):
                    self.near[key].append(prompt)
            self.texts[prompt].append((meaning, text))

    def _keys(self, meaning: Meaning) -> list[tuple]:
        """`meaning` whole and without each of its slots, names ignored: near meanings share one of these."""
        items = [(s, "" if s in _PLACEHOLDERS else "+".join(v)) for s, v in meaning.items()]
        return [tuple(items), *(tuple(items[:i] + items[i + 1 :]) for i in range(len(items)))]

    def __call__(self, meaning: Meaning, text: str) -> tuple[Meaning, str, str] | None:
        """(meaning, chosen, rejected) made from a human `text` of `meaning`; None where it does not work out."""
        kind = self.rng.random()
        if kind < 0.50:
            made = swap_value(meaning, text, self.rng) if kind < 0.40 else drop_sentence(meaning, text, self.rng)
            if made is None or made[1] == text:
                return None
            other, changed = made
            # both ways round, so that it is the prompt that tells which text is right
            return (meaning, text, changed) if self.rng.random() < 0.5 else (other, changed, text)
        rejected = self._of_another(meaning) if kind < 0.90 else self._clumsy(meaning, text)
        return (meaning, text, rejected) if rejected and rejected != text else None

    def _of_another(self, meaning: Meaning) -> str | None:
        prompts = {p for key in self._keys(meaning) for p in self.near.get(key, ())} - {prompt_of(meaning)}
        return self.rng.choice(self.texts[self.rng.choice(sorted(prompts))])[1] if prompts else None

    def _clumsy(self, meaning: Meaning, text: str) -> str:
        words = text.split()
        at = self.rng.randrange(max(1, len(words) - 4))
        made = (
            words[: at + 2] + words[at : at + 2] + words[at + 2 :],
            [*words, *words[at : at + 5]],
            [word for word in words if self.rng.random() > 0.2],
            words[: self.rng.randint(len(words) // 3, max(len(words) // 3, len(words) - 3))],
            ", ".join(self.rng.choice(entry.split("|")) for entry in wordings(meaning)).split(),
        )
        return " ".join(self.rng.choice(made))


def _preferences(pairs: list[Pair], count: int, taken: set[str], rng: random.Random, what: str) -> list[dict]:
    """`count` pairs (fewer where the data is small); no prompt in `taken`."""
    make, rows = _Pairs(pairs, rng), []
    for _, meaning, text in progress((rng.choice(pairs) for _ in range(3 * count)), what, total=3 * count):
        made = make(meaning, text)
        if made and (prompt := prompt_of(made[0])) not in taken:
            rows.append({"prompt": prompt, "chosen": made[1], "rejected": made[2]})
        if len(rows) == count:
            break
    return rows


def make_data(settings: WorldSettings) -> WorldData:
    """Rows of every data file (see `pipeline.worlds`). Beside the slots there is a column mr."""
    train, held = split(read_pairs(settings.data_path), settings.seed)
    rng = random.Random(f"e2e data {settings.seed}")
    prompts_train = rng.sample(rows := _prompt_rows(train, by_mr=False), len(rows))[: settings.prompt_rows]
    parts = {"train": train, "held": held}
    prompts = {part: {prompt_of(meaning) for _, meaning, _ in pairs} for part, pairs in parts.items()}
    taken = prompts["train"] | prompts["held"]
    for meaning in synthetic_meanings(train, settings.synthetic_prompts, taken, rng):
        prompts_train.append(prompt_row(mr_of(meaning), meaning, []))
    told = [(meaning, text) for _, meaning, text in rng.sample(train, len(train))][: settings.sft_rows]
    return {
        "prompts_heldout": _prompt_rows(held, by_mr=True)[: settings.heldout_rows],
        "prompts_train": prompts_train,
        "sft_train": [{"prompt": prompt_of(meaning), "completion": text} for meaning, text in told],
        "preferences_heldout": _preferences(
            held, settings.preference_heldout_rows, prompts["train"], rng, "held-out pairs"
        ),
        "preferences_train": _preferences(train, settings.preference_rows, prompts["held"], rng, "preference pairs"),
    }


def varied(meaning: Meaning, text: str, rng: random.Random) -> tuple[Meaning, str]:
    """A training pair as it is (a third of the time), or with values swapped, or without a sentence."""
    kind = rng.random()
    if kind < 0.15 and (dropped := drop_sentence(meaning, text, rng)):
        meaning, text = dropped
    for _ in range(rng.choice((0, 0, 1, 1, 2, 3))):
        meaning, text = swap_value(meaning, text, rng) or (meaning, text)
    return meaning, text


def pretraining_texts(settings: WorldSettings, data: WorldData) -> list[Document]:
    """Documents from the training part, most of them `varied`; nothing has a held-out prompt.

    Half of them are written (the prompt is read only, the text learned), half are read (the other way round), so that
    the base can also tell what a text says: a `reconstruction` reward asks it for that.
    """
    train, held = split(read_pairs(settings.data_path), settings.seed)
    held_out = {prompt_of(meaning) for _, meaning, _ in held}
    rng = random.Random(f"e2e pretraining {settings.seed}")
    texts: list[Document] = []
    bar = progress(range(settings.pretraining_texts), "documents")
    while len(texts) < settings.pretraining_texts:
        for _, meaning, text in rng.sample(train, len(train)):
            other = varied(meaning, text, rng)
            meaning, text = (meaning, text) if prompt_of(other[0]) in held_out else other
            prompt = prompt_of(meaning)
            texts.append((prompt, text) if rng.random() < WRITTEN else (f"{text}\n", prompt))
            bar.update()
    return texts[: settings.pretraining_texts]
