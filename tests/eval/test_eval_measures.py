"""What is measured of texts, by pencil and against sacrebleu; who wins, and what a judge may answer."""

import math

import numpy as np
import pytest
from eval_world import first
from sacrebleu.metrics import BLEU
from sacrebleu.significance import PairedTest

from pipeline.errors import UserError
from pipeline.eval.comparing import figures, outcomes
from pipeline.eval.judges import both_orders, means, read_judges
from pipeline.eval.measures import Answers, bleu_counts, corpus_bleu, distinct, measures_of, overlap
from pipeline.exam.evaluation import ScoredAnswers, corpus_metrics
from pipeline.exam.statistics import Measure, difference
from rewards import RewardError

WORDS = "the a cat dog sat ran on under mat log big old".split()


def sentences(count: int, seed: int) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, rng.integers(3, 12))) for _ in range(count)]


def spoiled(texts: list[str], seed: int, share: float) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS) if rng.random() < share else word for word in text.split()) for text in texts]


def bleu_of(text: str, reference: str) -> float:
    return float(corpus_bleu(bleu_counts([text], [[reference]]).sum(axis=0)))


def test_bleu_by_pencil():
    assert bleu_of("a b c d e", "a b c d f") == pytest.approx(100 * 0.2**0.25)  # 4/5 · 3/4 · 2/3 · 1/2
    assert bleu_of("a b c d", "a b c d e") == pytest.approx(100 * math.exp(1 - 5 / 4))  # all right, too short
    # 3/4, 1/3, and smoothed: 1/2 of one of the two 3-grams, 1/4 of the one 4-gram
    assert bleu_of("a b x d", "a b c d") == pytest.approx(100 * (3 / 4 * 1 / 3 * 1 / 4 * 1 / 4) ** 0.25)
    assert bleu_of("x y z q", "a b c d") == 0.0 and bleu_of("a b c", "a b c") == 0.0 and bleu_of("", "a") == 0.0


def test_bleu_of_any_resample_is_sacrebleus():
    references = [[a, b] if a < b else [a] for a, b in zip(sentences(30, 1), sentences(30, 2), strict=True)]
    texts = spoiled([refs[0] for refs in references], 3, 0.4)
    counts, rng = bleu_counts(texts, references), np.random.default_rng(4)
    drawn = np.concatenate([rng.integers(0, 30, (20, 30)), np.full((1, 30), 3)])
    found = corpus_bleu(counts[drawn].sum(axis=1))
    for row, score in zip(drawn, found, strict=True):
        streams = [[references[i][0] for i in row], [references[i][-1] for i in row]]
        wanted = BLEU(tokenize="13a").corpus_score([texts[i] for i in row], streams).score
        assert score == pytest.approx(wanted, abs=1e-9)


def test_overlap_is_that_of_the_metric_modules():
    texts, references = sentences(12, 5), [[text] for text in sentences(12, 6)]
    references[3] = references[7] = None
    found, wanted = overlap(texts, references), corpus_metrics(texts, references)
    assert found["corpus_bleu"].value() == pytest.approx(wanted["corpus_bleu"], abs=1e-9)
    assert found["corpus_rougeL"].value() == pytest.approx(wanted["corpus_rougeL"], abs=1e-12)
    for name in ("corpus_bleu", "corpus_rouge1"):
        assert found[name].known.tolist() == [i not in (3, 7) for i in range(12)]
    # "the cat sat" against "the cat ran": 2 of 3 words, 1 of 2 pairs, both in order
    pencil = overlap(["the cat sat"], [["the cat ran"]])
    assert [pencil[f"corpus_rouge{n}"].value() for n in "12L"] == pytest.approx([2 / 3, 1 / 2, 2 / 3])
    assert overlap(texts, [None] * 12) == {}


def test_the_paired_bleu_test_agrees_with_sacrebleus():
    wanted = sentences(60, 7)
    good, bad = spoiled(wanted, 8, 0.30), spoiled(wanted, 9, 0.38)
    measures = [Measure(bleu_counts(side, [[text] for text in wanted]), corpus_bleu) for side in (good, bad)]
    found = difference(*measures)
    theirs = PairedTest(
        [("bad", bad), ("good", good)], {"BLEU": BLEU(references=[wanted])}, None, test_type="ar", n_samples=4000
    )()[1]["BLEU"]
    (base, _), (other, other_result) = [(result.score, result) for result in theirs]
    assert found.value == pytest.approx(other - base, abs=1e-9)
    assert found.p == pytest.approx(other_result.p_value, abs=0.03) and 0 < found.p < 0.5


def test_distinct_by_pencil():
    texts = ["A b, a!", "b c"]  # five words: a b a b c; pairs within a text: ab ba bc
    assert distinct(texts, 1) == pytest.approx(3 / 5) and distinct(texts, 2) == pytest.approx(3 / 5)
    assert distinct(["a a a a"], 1) == 1 / 4 and distinct(["a a a a"], 2) == 1 / 4
    assert math.isnan(distinct(["", "!"], 1))


def test_measures_of_answers_by_pencil():
    judged = ScoredAnswers(
        ["x y z x y z", "x"], [[3, 4, 5, 6], [3, 2]], [False, True], {"mine": [1.0, None], "pass": [1.0, 0.0]}
    )
    found = measures_of(Answers(judged, [6.0, 2.0], [3, 1], [0.5, 0.25]), [None, None])
    values = {name: m.value() if isinstance(m, Measure) else m for name, m in found.items()}
    assert values == {
        "mine": 1.0,
        "pass": 0.5,
        "distinct_1": pytest.approx(3 / 7),
        "distinct_2": pytest.approx(3 / 7),
        "repetition": pytest.approx((1 / 4 + 0) / 2),  # xyz yzx zxy xyz: one of four was said before
        "perplexity": pytest.approx(math.exp(8 / 4)),
        "length": 3.0,
        "finished": 0.5,
        "kl": 0.375,
    }
    told = figures(found, seed=0)
    assert told["mine"] == {"value": 1.0, "low": None, "high": None, "prompts": 1}
    assert told["distinct_1"] == {"value": pytest.approx(3 / 7), "low": None, "high": None, "prompts": None}
    # one of two: (1 + 1.9207) / 5.8415 ± 1.96 sqrt(1 · 1 / 2 + 0.9604) / 5.8415
    assert (told["pass"]["low"], told["pass"]["high"]) == pytest.approx((0.0945, 0.9055), abs=1e-4)
    assert told["finished"]["low"] == told["pass"]["low"]


def test_a_reward_keeps_its_name():
    judged = ScoredAnswers(["x"], [[3, 2]], [True], {"length": [-7.0], "kl": [1.0]})
    found = measures_of(Answers(judged, [1.0], [1], [0.5]), [None])
    assert found["length"].value() == -7.0 and found["text_length"].value() == 2.0
    assert found["kl"].value() == 1.0 and found["text_kl"].value() == 0.5


def test_the_higher_score_wins_unless_lower_is_better():
    assert outcomes([2, 1, 1, None], [1, 1, 2, 1]) == [1.0, 0.5, 0.0, None]
    assert outcomes([2, 1, 1, None], [1, 1, 2, 1], higher_wins=False) == [0.0, 0.5, 1.0, None]


def longer(prompts, completions_a, completions_b, bonus=0, **columns):
    return [
        float(len(a) + bonus > len(b)) if len(a) != len(b) else 0.5
        for a, b in zip(completions_a, completions_b, strict=True)
    ]


ROWS = [{"prompt": "p"}, {"prompt": "q"}, {"prompt": "r"}]


def test_a_judge_is_asked_both_ways_round():
    assert means(both_orders(longer, "longer", ROWS, ["xx", "x", "x"], ["x", "xx", "y"])) == [1.0, 0.0, 0.5]
    assert means(both_orders(first, "first", ROWS, ["xx", "x", "x"], ["x", "xx", "y"])) == [0.5, 0.5, 0.5]
    seen = {}

    def judge(prompts, completions_a, completions_b, facts):
        seen.update(prompts=prompts, a=completions_a, facts=facts)
        return [None]

    chat = [{"prompt": [{"role": "user", "content": "p"}], "facts": ["f"]}]
    assert means(both_orders(judge, "judge", chat, ["x"], ["y"])) == [None]
    assert seen["facts"] == [["f"]] and seen["a"] == [[{"role": "assistant", "content": "y"}]]  # the second way round


@pytest.mark.parametrize("given", [[1, 0], 0.5, [1, 0, 2], [1, 0, "a"], [1, 0, math.nan], None])
def test_what_a_judge_must_not_answer(given):
    with pytest.raises(UserError, match="judge mine returned .*return a list with 1"):
        both_orders(lambda *sides, **columns: given, "mine", ROWS, ["a"] * 3, ["b"] * 3)


def test_a_judge_that_fails_is_named():
    def broken(prompts, completions_a, completions_b):
        return [1 / 0]

    with pytest.raises(UserError, match="judge mine failed: ZeroDivisionError"):
        both_orders(broken, "mine", ROWS, ["a"] * 3, ["b"] * 3)


def test_judges_are_imported_as_rewards_are():
    judges = read_judges(["eval_world:first", {"name": "test_eval_measures:longer", "bonus": 9}])
    assert list(judges) == ["first", "longer"]
    # with the bonus the first side wins either way round, unless they are equally long
    assert means(both_orders(judges["longer"], "longer", ROWS[:1], ["xx"], ["x"])) == [0.5]
    with pytest.raises(UserError, match="judges: 'bleu' is not valid: name a function of your own"):
        read_judges(["bleu"])
    with pytest.raises(RewardError, match="has no 'frist'.*did you mean 'first'"):
        read_judges(["eval_world:frist"])
    with pytest.raises(UserError, match="two are called first"):
        read_judges(["eval_world:first"] * 2)
