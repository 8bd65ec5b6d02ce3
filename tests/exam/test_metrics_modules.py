"""The shipped `evaluate` modules: loaded without the network, equal to the libraries and to the rewards."""

import os
import subprocess
import sys
from pathlib import Path

import evaluate
import pytest
import sacrebleu
from rouge_score.rouge_scorer import RougeScorer

from pipeline.errors import UserError
from pipeline.metrics import HERE, load_metric, metric_names
from rewards import Bleu, Rouge

PREDICTIONS = ["the cat sat on the mat", "hello there my good friend", "a short one"]
REFERENCES = [
    ["the cat sat on a mat", "on the mat sat the cat"],
    ["hello there good old friend of mine"],
    ["a short one"],
]


def test_names():
    assert metric_names() == ["bleu", "rouge"]
    with pytest.raises(UserError, match="'bleurt'.*bleu, rouge"):
        load_metric("bleurt")


def test_each_loads_without_the_network_and_an_empty_cache(tmp_path):
    code = (
        f"import evaluate\nfor name in {metric_names()}:\n    metric = evaluate.load(f'{HERE}/{{name}}')\n"
        "    print(name, sorted(metric.compute(predictions=['a'], references=['a'])))"
    )
    env = os.environ | {"HF_HUB_OFFLINE": "1", "HF_EVALUATE_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    env["PYTHONPATH"] = str(Path(__file__).resolve().parents[2])
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    bleu, rouge = done.stdout.splitlines()
    assert bleu.startswith("bleu ") and "score" in bleu and rouge.startswith("rouge ") and "rougeL" in rouge


def test_corpus_bleu_is_sacrebleus_with_uneven_references():
    result = load_metric("bleu").compute(predictions=PREDICTIONS, references=REFERENCES)
    streams = [[refs[0] for refs in REFERENCES], [REFERENCES[0][1], None, None]]
    expected = sacrebleu.corpus_bleu(PREDICTIONS, streams)
    assert result["score"] == pytest.approx(expected.score, abs=1e-6)
    assert result["precisions"] == pytest.approx(expected.precisions)
    assert (result["bp"], result["sys_len"], result["ref_len"]) == (expected.bp, expected.sys_len, expected.ref_len)


def test_corpus_bleu_by_pencil():
    # as in test_rewards_overlap: one sentence, n-gram matches 5/6, 3/5, 2/4, 1/3
    result = load_metric("bleu").compute(predictions=PREDICTIONS[:1], references=[REFERENCES[0][0]])
    assert result["score"] == pytest.approx(100 * (5 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** 0.25)


def test_sentence_by_sentence_the_bleu_metric_is_the_bleu_reward():
    metric, scores = load_metric("bleu"), Bleu()(PREDICTIONS, PREDICTIONS, references=REFERENCES)
    for text, refs, score in zip(PREDICTIONS, REFERENCES, scores, strict=True):
        result = metric.compute(predictions=[text], references=[refs], effective_order=True)
        assert result["score"] / 100 == pytest.approx(score, abs=1e-6)


def test_chinese_bleu():
    result = load_metric("bleu").compute(predictions=["猫坐在床上"], references=[["猫坐在垫子上"]])
    assert result["score"] == pytest.approx(
        sacrebleu.corpus_bleu(["猫坐在床上"], [["猫坐在垫子上"]], tokenize="zh").score
    )


def test_rouge_is_rouge_scores_and_the_reward():
    types = ["rouge1", "rouge2", "rougeL", "rougeLsum"]
    metric, scorer = load_metric("rouge"), RougeScorer(types)
    listed = metric.compute(predictions=PREDICTIONS, references=REFERENCES, use_aggregator=False)
    means = metric.compute(predictions=PREDICTIONS, references=REFERENCES)
    for type in types:
        best = [
            max(scorer.score(ref, text)[type].fmeasure for ref in refs)
            for text, refs in zip(PREDICTIONS, REFERENCES, strict=True)
        ]
        assert listed[type] == pytest.approx(best, abs=1e-6)
        assert means[type] == pytest.approx(sum(best) / 3, abs=1e-6)
        assert Rouge(type)(PREDICTIONS, PREDICTIONS, references=REFERENCES) == pytest.approx(listed[type], abs=1e-6)


@pytest.mark.parametrize("name", ["bleu", "rouge"])
def test_a_row_without_reference_is_named(name):
    with pytest.raises(ValueError, match="row 1 "):
        load_metric(name).compute(predictions=["a", "b"], references=[["a"], []])


def test_it_is_an_ordinary_evaluate_module():
    metric = load_metric("rouge")
    assert isinstance(metric, evaluate.EvaluationModule)
    for text, refs in zip(PREDICTIONS, REFERENCES, strict=True):
        metric.add(prediction=text, reference=refs)
    assert metric.compute()["rouge1"] == pytest.approx(
        load_metric("rouge").compute(predictions=PREDICTIONS, references=REFERENCES)["rouge1"]
    )
