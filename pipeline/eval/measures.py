"""What is measured of a candidate's answers, as `Measure`s, which can be resampled."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from sacrebleu.metrics import BLEU

from pipeline.exam.evaluation import ScoredAnswers
from pipeline.exam.statistics import Measure, mean, quotient, ratio, share
from pipeline.metrics import load_metric
from rewards import Repetition
from rewards.overlap import bleu_tokenizer
from rewards.text import words

ROUGES = ("rouge1", "rouge2", "rougeL")
BLEU_COLUMNS = 10  # tokens said, tokens of the nearest reference, n-grams that match, n-grams; n = 1 to 4


class Answers(NamedTuple):
    """A candidate's answers under one decoding, and what models say of them. One entry a prompt."""

    scored: ScoredAnswers
    nats: list[float]  # -log p of the completion under the base, summed over its tokens
    tokens: list[int]  # of that sum, in the base's tokens
    kl: list[float] | None = None  # Σ_t log π - log π_reference, in nats; None: greedy, or another vocabulary


def measures_of(answers: Answers, references: Sequence[list[str] | None]) -> dict[str, Measure | float]:
    """Every figure of a candidate's answers by its name; a bare number has no interval.

    Scores come first; when a reward has the name of a figure of the text, the latter gets `text_` in front.
    """
    scored = answers.scored
    texts = scored.completions
    found: dict[str, Measure | float] = {
        name: (share if set(column) <= {0, 1, None} else mean)(column) for name, column in scored.scores.items()
    }
    repetition = Repetition()
    own: dict[str, Measure | float] = overlap(texts, references)
    own |= {
        "distinct_1": distinct(texts, 1),
        "distinct_2": distinct(texts, 2),
        "repetition": mean([-repetition.score(text) for text in texts]),
        "perplexity": Measure(ratio(answers.nats, answers.tokens).rows, perplexity),
        "length": mean([float(len(ids)) for ids in scored.completion_ids]),
        "finished": share([float(end) for end in scored.finished]),
    }
    if answers.kl is not None:
        own["kl"] = mean(answers.kl)
    return found | {f"text_{name}" if name in found else name: measure for name, measure in own.items()}


def perplexity(sums: np.ndarray) -> np.ndarray:
    """exp(Σ -log p / Σ tokens)."""
    return np.exp(quotient(sums))


def distinct(texts: Sequence[str], n: int) -> float:
    """Different n-grams of all texts together over their words.

    It has no interval: a resample says some texts twice, so its n-grams are always fewer. (Li et al. 2016, "A
    Diversity-Promoting Objective Function for Neural Conversation Models", section 5: distinct-1 and distinct-2 are
    both scaled by the number of generated tokens.)
    """
    spoken = [words(text) for text in texts]
    different = {tuple(said[i : i + n]) for said in spoken for i in range(len(said) - n + 1)}
    total = sum(map(len, spoken))
    return len(different) / total if total else math.nan


def overlap(texts: Sequence[str], references: Sequence[list[str] | None]) -> dict[str, Measure]:
    """Corpus BLEU (0 to 100) and mean ROUGE-1, -2, -L (0 to 1) of the rows that have references."""
    rows = [i for i, wanted in enumerate(references) if wanted]
    if not rows:
        return {}
    said, wanted = [texts[i] for i in rows], [references[i] for i in rows]
    counts = np.full((len(texts), BLEU_COLUMNS), math.nan)
    counts[rows] = bleu_counts(said, wanted)
    found = {"corpus_bleu": Measure(counts, corpus_bleu)}
    scores = load_metric("rouge").compute(
        predictions=said, references=wanted, rouge_types=list(ROUGES), use_aggregator=False
    )
    for name in ROUGES:
        column: list[float | None] = [None] * len(texts)
        for i, score in zip(rows, scores[name], strict=True):
            column[i] = score
        found[f"corpus_{name}"] = mean(column)
    return found


def bleu_counts(texts: Sequence[str], references: Sequence[list[str]]) -> np.ndarray:
    """What each text adds to corpus BLEU, (N, 10), counted by sacrebleu as `pipeline/metrics/bleu` has it count."""
    bleu = BLEU(tokenize=bleu_tokenizer([ref for refs in references for ref in refs]))
    each = [bleu.corpus_score([text], [[ref] for ref in refs]) for text, refs in zip(texts, references, strict=True)]
    return np.array([[one.sys_len, one.ref_len, *one.counts, *one.totals] for one in each], dtype=float)


def corpus_bleu(sums: np.ndarray) -> np.ndarray:
    """BLEU, 0 to 100, of summed `bleu_counts` (..., 10) -> (...).

        BLEU = 100 min(1, exp(1 - r/c)) exp(1/4 Σ_n log p_n)

    p_n is the share of the n-grams that match (Papineni et al. 2002, section 2.3). Where none of some n matches,
    p_n = 1 / (2^i n-grams) for the i-th such n, sacrebleu's smoothing `exp`; it is 0 when no word matches at all, or
    there are no 4-grams.
    """
    said, wanted, counts, totals = sums[..., 0], sums[..., 1], sums[..., 2:6], sums[..., 6:10]
    with np.errstate(divide="ignore", invalid="ignore"):
        missed = counts == 0
        smooth = np.where(missed, 0.5 ** np.cumsum(missed, axis=-1), counts)
        score = 100 * np.exp(np.minimum(0, 1 - wanted / said)) * np.exp(np.log(smooth / totals).mean(axis=-1))
    return np.where((counts.sum(axis=-1) == 0) | (totals[..., 3] == 0), 0.0, score)
