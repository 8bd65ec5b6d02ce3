"""What the shipped metrics share: predictions against one or several reference texts."""

import datasets
import evaluate

from rewards.overlap import references_of


def text_info(description: str, citation: str, arguments: str) -> evaluate.MetricInfo:
    """What `evaluate` asks of a metric whose references are a text, or a list of texts, for each prediction."""
    text = datasets.Value("string")
    several = datasets.Features({"predictions": text, "references": datasets.Sequence(text)})
    one = datasets.Features({"predictions": text, "references": text})
    return evaluate.MetricInfo(
        description=description, citation=citation, inputs_description=arguments, features=[several, one]
    )


def reference_lists(references, name: str) -> list[list[str]]:
    """The references of each prediction as a list. Raises `ValueError` when there is none for one of them."""
    rows = [references_of(refs, "references") for refs in references]
    if not all(rows):
        raise ValueError(f"{name} needs a reference for every prediction; row {rows.index([])} has none.")
    return rows
