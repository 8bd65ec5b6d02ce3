"""Slot errors and BLEU of an outputs file, one text a line, names in place, against the data set:
`python -m pipeline.worlds.e2e.score outputs.txt data.csv`.

`data.csv` has the columns mr and ref. A `prompts_heldout.jsonl` of `make base` does as well; its references get their
names back first. Lines answer the different meaning representations in the order of their first appearance, as
`recipes/eval.py` writes them.
"""

import csv
import json
import sys
from collections import Counter
from pathlib import Path

from pipeline.errors import UserError

from . import read_pairs
from .errors import slot_errors
from .slots import parse_mr, relexicalize


def references_of(path: str) -> dict[str, list[str]]:
    """mr -> references with names, in the order of the file. UserError for a file that cannot be read."""
    found: dict[str, list[str]] = {}
    if path.endswith(".csv"):
        read_pairs(path)  # says what is wrong with the file
        with open(path, encoding="utf-8-sig", newline="") as file:
            for row in csv.DictReader(file):
                if text := " ".join(row["ref"].split()):
                    found.setdefault(row["mr"], []).append(text)
        return found
    try:
        rows = [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]
        return {row["mr"]: [relexicalize(text, parse_mr(row["mr"])) for text in row["references"]] for row in rows}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} cannot be read as rows with mr and references: {error}") from None


def score(outputs: list[str], references: dict[str, list[str]]) -> dict:
    """Slot errors over slots asked for, in percent, which slots they are, and corpus BLEU (sacrebleu, all references).

    Raises:
        UserError: when there is not one output for each meaning representation.
    """
    import sacrebleu

    if len(outputs) != len(references):
        raise UserError(
            f"{len(outputs)} outputs for {len(references)} meaning representations: give one line for each"
        )
    kinds: Counter = Counter()
    slots = 0
    for text, mr in zip(outputs, references, strict=True):
        meaning = parse_mr(mr)
        slots += len(meaning)
        errors = slot_errors(text, meaning)
        kinds.update(f"{kind} {slot}" for kind in errors._fields for slot in getattr(errors, kind))
    most = max(map(len, references.values()))
    columns = [[texts[i] if i < len(texts) else None for texts in references.values()] for i in range(most)]
    bleu = sacrebleu.corpus_bleu(outputs, columns).score
    wrong = sum(kinds.values())
    return {"slot_errors": 100 * wrong / slots, "wrong": wrong, "slots": slots, "bleu": bleu, "kinds": dict(kinds)}


def main(outputs: str, data: str) -> None:
    try:
        lines = Path(outputs).read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{outputs} cannot be read: {error}") from None
    found = score(lines[:-1] if lines[-1] == "" else lines, references_of(data))
    print("slot errors {slot_errors:.2f}% ({wrong} of {slots} slots), BLEU {bleu:.2f} {kinds}".format(**found))


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit("usage: python -m pipeline.worlds.e2e.score outputs.txt data.csv")
    try:
        main(*sys.argv[1:])
    except UserError as error:
        raise SystemExit(f"error: {error}") from None
