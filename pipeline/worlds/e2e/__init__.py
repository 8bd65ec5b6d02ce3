"""E2E: restaurant slots to a text written by a person (E2E NLG, cleaned by Dušek et al. 2019), read from the user's
own copy.

Prompt:     ``name: NAME | eatType: pub | food: Fast food | area: riverside | near: NEAR =>`` and a newline
Completion: ``NAME is a fast food pub near NEAR on the riverside.``

The names are taken out and put back afterwards (`relexicalize`), as the published systems do. Ten percent of the
meaning representations are held out; those that are equal but for the names stay on one side. `sft_rows`,
`preference_rows` and so on are upper limits here. Training texts in which the patterns of `errors` find a slip (about
a tenth) are left out of SFT.

**Preference pairs** (nobody was asked; the order is known by how they are made): `chosen` is a human text of the
meaning representation in which no slot error is found. `rejected` is one of
- 70%: a human text of another meaning representation that differs in one slot (another value, a slot more, a slot
  less);
- 15%: the chosen text, or another of the same meaning representation, without one of its sentences, or cut off
  half-way;
- 15%: a human text of the same meaning representation, made clumsy: words said twice, a phrase again at the end, words
  lost, or bare slot values in a row. Pairs whose `rejected` text shows no slot error are dropped from the first two
  kinds.
"""

import csv
import random
import re
from collections import defaultdict

from pipeline.errors import UserError

from ..base import Document, WorldData, WorldSettings, progress
from .errors import SlotErrors, slot_errors
from .keywords import unwanted, unwanted_names, wanted, wanted_names, wordings
from .slots import NAME, NEAR, SLOTS, VALUES, Meaning, delexicalize, parse_mr, relexicalize

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
Pair = tuple[str, Meaning, str]
"""mr, meaning, delexicalized text"""


def prompt_of(meaning: Meaning) -> str:
    """The prompt for `meaning`, names as placeholders."""
    said = {**meaning, **{slot: [word] for slot, word in (("name", NAME), ("near", NEAR)) if slot in meaning}}
    return " | ".join(f"{slot}: {' + '.join(values)}" for slot, values in said.items()) + " =>\n"


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
        meaning = {slot: [rng.choice(VALUES[slot])] if slot in VALUES else like[slot][:1] for slot in like}
        if prompt_of(meaning) not in taken:
            taken.add(prompt_of(meaning))
            found.append(meaning)
    return found


class _Rejected:
    """Makes the worse text of a pair (see the module)."""

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
        items = [(s, "" if s in ("name", "near") else "+".join(v)) for s, v in meaning.items()]
        return [tuple(items), *(tuple(items[:i] + items[i + 1 :]) for i in range(len(items)))]

    def __call__(self, meaning: Meaning, chosen: str) -> str | None:
        kind = self.rng.random()
        if kind < 0.85:
            text = self._other(meaning) if kind < 0.70 else self._shortened(chosen)
            return text if text and slot_errors(text, meaning).total else None
        return self._clumsy(meaning)

    def _other(self, meaning: Meaning) -> str | None:
        prompts = {p for key in self._keys(meaning) for p in self.near.get(key, ())} - {prompt_of(meaning)}
        return self.rng.choice(self.texts[self.rng.choice(sorted(prompts))])[1] if prompts else None

    def _shortened(self, text: str) -> str:
        sentences = re.findall(r"[^.!?]+[.!?]*\s*", text)
        if len(sentences) > 1 and self.rng.random() < 0.7:
            sentences.pop(self.rng.randrange(len(sentences)))
            return "".join(sentences).strip()
        words = text.split()
        return " ".join(words[: self.rng.randint(len(words) // 3, max(len(words) // 3, len(words) - 3))])

    def _clumsy(self, meaning: Meaning) -> str:
        words = self.rng.choice(self.texts[prompt_of(meaning)])[1].split()
        kind = self.rng.randrange(4)
        at = self.rng.randrange(max(1, len(words) - 4))
        if kind == 0:
            return " ".join(words[: at + 2] + words[at : at + 2] + words[at + 2 :])
        if kind == 1:
            return " ".join([*words, *words[at : at + 5]])
        if kind == 2:
            return " ".join(w for w in words if self.rng.random() > 0.2)
        return ", ".join(self.rng.choice(entry.split("|")) for entry in wordings(meaning))


def _preferences(pairs: list[Pair], count: int, rng: random.Random, what: str) -> list[dict]:
    good = [pair for pair in pairs if not slot_errors(pair[2], pair[1]).total]
    make, rows = _Rejected(pairs, rng), []
    for _, meaning, chosen in progress((rng.choice(good) for _ in range(3 * count)), what, total=3 * count):
        rejected = make(meaning, chosen)
        if rejected and rejected != chosen:
            rows.append({"prompt": prompt_of(meaning), "chosen": chosen, "rejected": rejected})
        if len(rows) == count:
            break
    return rows


def make_data(settings: WorldSettings) -> WorldData:
    """Rows of every data file (see `pipeline.worlds`). Beside the slots there is a column mr."""
    train, held = split(read_pairs(settings.data_path), settings.seed)
    rng = random.Random(f"e2e data {settings.seed}")
    prompts_train = rng.sample(rows := _prompt_rows(train, by_mr=False), len(rows))[: settings.prompt_rows]
    taken = {prompt_of(meaning) for _, meaning, _ in train + held}
    for meaning in synthetic_meanings(train, settings.synthetic_prompts, taken, rng):
        prompts_train.append(prompt_row(mr_of(meaning), meaning, []))
    clean = [(meaning, text) for _, meaning, text in train if not slot_errors(text, meaning).total]
    clean = rng.sample(clean, len(clean))[: settings.sft_rows]
    return {
        "prompts_heldout": _prompt_rows(held, by_mr=True)[: settings.heldout_rows],
        "prompts_train": prompts_train,
        "sft_train": [{"prompt": prompt_of(meaning), "completion": text} for meaning, text in clean],
        "preferences_heldout": _preferences(held, settings.preference_heldout_rows, rng, "held-out pairs"),
        "preferences_train": _preferences(train, settings.preference_rows, rng, "preference pairs"),
    }


def pretraining_texts(settings: WorldSettings, data: WorldData) -> list[Document]:
    """Messy documents from the training part: prompt and text (now and then with slots lost or in another order), text
    first, or text alone.
    """
    train, held = split(read_pairs(settings.data_path), settings.seed)
    held_out = {prompt_of(meaning) for _, meaning, _ in held}
    rng = random.Random(f"e2e pretraining {settings.seed}")
    texts: list[Document] = []
    while len(texts) < settings.pretraining_texts:
        for _, meaning, text in rng.sample(train, len(train)):
            slots = [slot for slot in meaning if rng.random() > 0.03]
            if not slots or prompt_of({slot: meaning[slot] for slot in slots}) in held_out:
                slots = list(meaning)
            if rng.random() < 0.2:
                rng.shuffle(slots)
            prompt = prompt_of({slot: meaning[slot] for slot in slots})
            kind = rng.random()
            if kind < 0.05:
                texts.append(("", text))
            else:
                texts.append(("", f"{text}\n= {prompt[:-4]}") if kind < 0.15 else (prompt, text))
    return texts[: settings.pretraining_texts]
