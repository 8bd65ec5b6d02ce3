"""Corpus BLEU by sacrebleu, as an `evaluate` module that loads without the network."""

import evaluate
from sacrebleu.metrics import BLEU

from pipeline.metrics.text import reference_lists, text_info
from rewards.overlap import bleu_tokenizer

_DESCRIPTION = "Corpus BLEU, 0 to 100, computed by sacrebleu."
_CITATION = "Post 2018, A Call for Clarity in Reporting BLEU Scores, https://aclanthology.org/W18-6319"
_ARGUMENTS = """
predictions: texts.
references: for each prediction a text or a list of texts; the lists need not be equally long.
tokenize: sacrebleu's tokenizer; `auto` picks it by the script of the references (zh, ja-mecab, char, else 13a).
lowercase: ignore case (False).
smooth_method: exp, floor, add-k or none ("exp").
effective_order: leave out n-gram orders that a text is too short for; for single sentences (False).

Returns a dict: score (0 to 100), precisions (1- to 4-gram, 0 to 100), bp (brevity penalty), sys_len, ref_len (tokens).
"""


class Bleu(evaluate.Metric):
    def _info(self):
        return text_info(_DESCRIPTION, _CITATION, _ARGUMENTS)

    def _compute(
        self, predictions, references, tokenize="auto", lowercase=False, smooth_method="exp", effective_order=False
    ):
        rows = reference_lists(references, "BLEU")
        if tokenize == "auto":
            tokenize = bleu_tokenizer([ref for refs in rows for ref in refs])
        # sacrebleu wants one list for all first references, one for all second ones, ...; None where there is no more.
        most = max(map(len, rows))
        streams = [[refs[i] if i < len(refs) else None for refs in rows] for i in range(most)]
        metric = BLEU(
            tokenize=tokenize, lowercase=lowercase, smooth_method=smooth_method, effective_order=effective_order
        )
        result = metric.corpus_score(predictions, streams)
        return {
            "score": result.score,
            "precisions": result.precisions,
            "bp": result.bp,
            "sys_len": result.sys_len,
            "ref_len": result.ref_len,
        }
