"""ROUGE by rouge_score, as an `evaluate` module that loads without the network."""

import evaluate

from pipeline.metrics.text import reference_lists, text_info
from rewards.overlap import Rouge as RougeReward

_DESCRIPTION = "ROUGE F-measures, 0 to 1, computed by rouge_score: the mean over all texts of the best reference."
_CITATION = "Lin 2004, ROUGE: A Package for Automatic Evaluation of Summaries, https://aclanthology.org/W04-1013"
_ARGUMENTS = """
predictions: texts.
references: for each prediction a text or a list of texts; of several the best one counts.
rouge_types: any of rouge1, rouge2, rougeL, rougeLsum (all four).
measure: f, precision or recall ("f").
tokenize: rouge (rouge_score, a-z and 0-9), words (any script), auto: words where the references need it ("auto").
use_stemmer: Porter stemmer for English (False).
use_aggregator: False gives the list of all scores in place of the mean (True). The mean is plain, without bootstrap.

Returns a dict: one number, or list, a type.
"""
_TYPES = ("rouge1", "rouge2", "rougeL", "rougeLsum")


class Rouge(evaluate.Metric):
    def _info(self):
        return text_info(_DESCRIPTION, _CITATION, _ARGUMENTS)

    def _compute(
        self,
        predictions,
        references,
        rouge_types=_TYPES,
        measure="f",
        tokenize="auto",
        use_stemmer=False,
        use_aggregator=True,
    ):
        rows = reference_lists(references, "ROUGE")
        result = {}
        for rouge_type in rouge_types:
            reward = RougeReward(type=rouge_type, measure=measure, tokenize=tokenize, stemmer=use_stemmer)
            scores = [reward.score(text, refs) for text, refs in zip(predictions, rows, strict=True)]
            result[rouge_type] = sum(scores) / len(scores) if use_aggregator else scores
        return result
