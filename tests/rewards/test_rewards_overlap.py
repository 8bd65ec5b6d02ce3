"""BLEU, chrF and ROUGE against the libraries that define them."""

import math
import os
from pathlib import Path

import pytest
import sacrebleu
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from rewards import Bleu, Chrf, RewardError, Rouge, build_rewards
from rewards.overlap import bleu_tokenizer, has_mecab, lcs_length
from rewards.text import words

SHARED = Path(os.environ.get("PLUMBLINE_SHARED", Path(__file__).resolve().parents[2] / ".." / "shared"))
WORDS = st.lists(st.sampled_from("the cat sat on a mat , The CAT's mat. don't café 3.5 %".split()), max_size=14)
TEXTS = WORDS.map(" ".join)
REFERENCES = st.lists(TEXTS.filter(str.strip), min_size=1, max_size=4)


@settings(max_examples=150, deadline=None)
@given(completion=TEXTS, references=REFERENCES)
def test_bleu_is_sacrebleus_sentence_bleu(completion, references):
    expected = sacrebleu.sentence_bleu(completion, references).score / 100
    assert Bleu()(["p"], [completion], references=[references]) == [pytest.approx(expected, abs=1e-6)]


@pytest.mark.parametrize("smoothing", ["exp", "floor", "add-k", "none"])
@pytest.mark.parametrize("lowercase", [True, False])
def test_bleu_options_are_sacrebleus(smoothing, lowercase):
    completion, refs = "The cat is on a Mat today", ["the cat sat on the mat", "a cat is on a mat"]
    expected = sacrebleu.sentence_bleu(completion, refs, smooth_method=smoothing, lowercase=lowercase).score / 100
    score = Bleu(smoothing=smoothing, lowercase=lowercase).score(completion, refs)
    assert score == pytest.approx(expected, abs=1e-6)


def test_bleu_by_pencil():
    # 6 words; matches 5/6, 3/5, 2/4, 1/3; no brevity penalty: the fourth root of the product
    expected = (5 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** 0.25
    assert Bleu().score("the cat sat on the mat", ["the cat sat on a mat"]) == pytest.approx(expected, abs=1e-9)
    # two of four words said, all right: 1-gram 2/2, 2-gram 1/1, brevity penalty exp(1 - 4/2)
    assert Bleu().score("the cat", ["the cat sat down"]) == pytest.approx(math.exp(-1), abs=1e-9)


@pytest.mark.parametrize("word_order", [0, 2])
@pytest.mark.parametrize("lowercase", [True, False])
@settings(max_examples=60, deadline=None)
@given(completion=TEXTS, references=REFERENCES)
def test_chrf_is_sacrebleus_sentence_chrf(word_order, lowercase, completion, references):
    case = str.lower if lowercase else str
    expected = (
        sacrebleu.sentence_chrf(case(completion), list(map(case, references)), word_order=word_order).score / 100
    )
    reward = Chrf(word_order=word_order, lowercase=lowercase)
    assert reward(["p"], [completion], references=[references]) == [pytest.approx(expected, abs=1e-6)]


def test_chrf_by_pencil():
    # a, b of 3; ab of 2; none of 1; no longer n-grams on either side: precision = recall = (2/3 + 1/2 + 0) / 3
    assert Chrf().score("abc", ["abd"]) == pytest.approx(7 / 18, abs=1e-9)
    # precision 1; recall (2/4 + 1/3) / 2 = 5/12, which weighs four times as much: 5 P R / (4 P + R)
    assert Chrf().score("ab", ["abcd"]) == pytest.approx(25 / 53, abs=1e-9)
    # spaces do not count; of several references the best does
    assert Chrf().score("a b c", ["xyz", "ab c"]) == pytest.approx(1.0)
    # with words: a b and a c share one word of two, and no pair; characters 1/2 and 0
    assert Chrf(word_order=2).score("a b", ["a c"]) == pytest.approx((1 / 2 + 0 + 1 / 2 + 0) / 4, abs=1e-9)


def test_chrf_options():
    reward, weight = build_rewards([{"name": "chrf", "column": "target", "word_order": 2, "weight": 0.5}])[0]
    assert reward(["p"], ["ein Hund"], target=["ein Hund"]) == [pytest.approx(1.0)] and weight == 0.5
    for wrong in (-1, 7):
        with pytest.raises(RewardError, match=f"word_order is {wrong}"):
            Chrf(word_order=wrong)


@pytest.mark.parametrize("type", ["rouge1", "rouge2", "rougeL", "rougeLsum"])
@pytest.mark.parametrize("stemmer", [True, False])
@settings(max_examples=40, deadline=None)
@given(completion=TEXTS, references=REFERENCES)
def test_rouge_is_rouge_scores(type, stemmer, completion, references):
    scorer = RougeScorer([type], use_stemmer=stemmer)
    for measure, field in {"f": "fmeasure", "precision": "precision", "recall": "recall"}.items():
        expected = max(getattr(scorer.score(ref, completion)[type], field) for ref in references)
        reward = Rouge(type=type, measure=measure, stemmer=stemmer)
        assert reward(["p"], [completion], references=[references]) == [pytest.approx(expected, abs=1e-6)]


@pytest.mark.parametrize("measure", ["f", "precision", "recall"])
@settings(max_examples=40, deadline=None)
@given(completion=TEXTS, references=REFERENCES)
def test_rouge_l_of_a_prefix_is_rouge_scores_too(measure, completion, references):
    field = {"f": "fmeasure", "precision": "precision", "recall": "recall"}[measure]
    scorer = RougeScorer(["rougeL"])
    expected = max(getattr(scorer.score(ref, completion)["rougeL"], field) for ref in references)
    potential = Rouge(type="rougeL", measure=measure).potential(["p"], [completion], references=[references])
    assert potential == [pytest.approx(expected, abs=1e-9)]


def test_longest_common_subsequence_by_pencil():
    # b, d, a, b of the textbook's abcbdab and bdcaba (Cormen et al., section 15.4): 4
    assert lcs_length("abcbdab", "bdcaba") == lcs_length("bdcaba", "abcbdab") == 4
    assert [lcs_length(a, b) for a, b in [("", "ab"), ("ab", ""), ("ab", "ab"), ("ab", "ba"), ("aa", "a")]] == [
        0,
        0,
        2,
        1,
        1,
    ]


def test_rouge_by_pencil():
    # 5 of 6 words on either side; bigrams the-cat, cat-sat, sat-on: 3 of 5
    text, ref = "the cat sat on the mat", ["the cat sat on a mat"]
    assert Rouge(type="rouge1").score(text, ref) == pytest.approx(5 / 6)
    assert Rouge(type="rouge2").score(text, ref) == pytest.approx(3 / 5)
    assert Rouge(type="rougeL").score(text, ref) == pytest.approx(5 / 6)
    # 2 of 2 words right, 2 of 4 said
    assert Rouge(type="rouge1", measure="precision").score("the cat", ["the cat sat down"]) == 1.0
    assert Rouge(type="rouge1", measure="recall").score("the cat", ["the cat sat down"]) == 0.5


@pytest.mark.parametrize("reward", [Bleu(), Chrf(), Rouge("rouge1"), Rouge("rougeLsum")])
def test_empty_completions_and_missing_references(reward):
    completions = ["", "  \n", "a cat", "a cat", "a cat", "a cat", ""]
    references = [["a cat"], "a cat", None, [], "", [None, " "], None]
    assert reward(completions, completions, references=references) == [0.0, 0.0, None, None, None, None, None]


@pytest.mark.parametrize("reward", [Bleu(), Chrf(), Rouge("rouge1"), Rouge("rougeL")])
def test_one_reference_may_be_a_plain_text_and_blank_ones_do_not_count(reward):
    same = "the small cat sat"
    assert reward(["p"] * 3, [same] * 3, references=[same, [same], ["", same, None]]) == pytest.approx([1.0] * 3)


@pytest.mark.parametrize("cls", [Bleu, Chrf, Rouge])
def test_another_column_and_one_of_the_wrong_kind(cls):
    assert cls(column="gold")(["p"], ["the small cat sat"], gold=["the small cat sat"]) == [pytest.approx(1.0)]
    with pytest.raises(RewardError, match="'gold'.*7"):
        cls(column="gold")(["p"], ["x"], gold=[7])


@pytest.mark.parametrize(
    "text, tokenizer",
    [
        ("The cat, 3.5 £ — naïve 👍", "13a"),
        ("кошка сидит", "13a"),
        ("서울에서 만나요", "13a"),
        ("猫坐在垫子上。", "zh"),
        ("東京タワーへ行く", "ja-mecab" if has_mecab() else "char"),
        ("ฉันรักแมว", "char"),
        ("I love 北京", "zh"),
    ],
)
def test_bleus_tokenizer_follows_the_script_of_the_references(text, tokenizer):
    assert bleu_tokenizer([text]) == tokenizer
    expected = sacrebleu.sentence_bleu(text[:-1], [text], tokenize=tokenizer).score / 100
    assert Bleu().score(text[:-1], [text]) == pytest.approx(expected, abs=1e-6)
    assert Bleu().score(text, [text]) == pytest.approx(1.0)


def test_bleu_reads_chinese_by_characters_not_as_one_word():
    close, far = "猫坐在床上", "狗跑到门外"
    assert Bleu().score(close, ["猫坐在垫子上"]) > 5 * Bleu().score(far, ["猫坐在垫子上"])
    # with the tokenizer for spaced text all that differs is one wrong word
    assert Bleu(tokenize="13a").score(close, ["猫坐在垫子上"]) == 0.0


def test_rouge_reads_other_scripts():
    # 猫 坐 在 上 are 4 of the 5 and of the 6 characters: 2 * 4 / 11, also in this order
    for type in ("rouge1", "rougeL"):
        assert Rouge(type).score("猫坐在床上", ["猫坐在垫子上"]) == pytest.approx(8 / 11)
    assert Rouge("rouge1").score("кошка спит", ["кошка сидит"]) == 0.5
    # rouge_score itself sees nothing there
    assert Rouge("rouge1", tokenize="rouge").score("кошка", ["кошка"]) == 0.0
    # and text with Latin letters keeps rouge_score's reading
    assert Rouge("rouge1").score("un cafe", ["un café"]) == pytest.approx(
        RougeScorer(["rouge1"]).score("un café", "un cafe")["rouge1"].fmeasure
    )


def test_words_of_any_script():
    assert words("Don't — 3 CATS, naïve?") == ["don", "t", "3", "cats", "naïve"]
    assert words("हिन्दी भाषा") == ["हिन्दी", "भाषा"]
    assert words("我的iPhone很好。") == ["我", "的", "iphone", "很", "好"]
    assert words("ที่นี่") == ["ที่", "นี่"]
    assert words(" 👍 ... ") == words("") == []


def test_messages_are_read():
    completion = [{"role": "assistant", "content": "the small cat sat"}]
    assert Bleu()([[]], [completion], references=["the small cat sat"]) == [pytest.approx(1.0)]


@pytest.mark.skipif(not (SHARED / "data/e2e/train.csv").exists(), reason="the shared E2E data is not here")
def test_agreement_on_human_texts():
    import csv

    with open(SHARED / "data/e2e/train.csv", encoding="utf-8", newline="") as file:
        texts = [row[-1] for row in list(csv.reader(file))[1:41]]
    scorer = RougeScorer(["rougeL"])
    bleu, rouge = Bleu(), Rouge()
    for i, text in enumerate(texts):
        refs = [texts[(i + 1) % 40], texts[(i + 7) % 40]]
        assert bleu.score(text, refs) == pytest.approx(sacrebleu.sentence_bleu(text, refs).score / 100, abs=1e-6)
        expected = max(scorer.score(ref, text)["rougeL"].fmeasure for ref in refs)
        assert rouge.score(text, refs) == pytest.approx(expected, abs=1e-6)
