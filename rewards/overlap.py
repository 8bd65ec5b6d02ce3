"""BLEU, chrF and ROUGE of each completion against the references of its row."""

import functools
import importlib.util
from collections import Counter
from collections.abc import Sequence
from typing import Any

from sacrebleu.metrics import BLEU, CHRF

from .base import Reward, RewardError, choice, number
from .text import Texts, is_han, is_kana, is_unspaced, text_of, words

BLEU_TOKENIZERS = ("auto", "13a", "char", "intl", "ja-mecab", "none", "zh")
ROUGE_TYPES = ("rouge1", "rouge2", "rougeL", "rougeLsum")
ROUGE_TOKENIZERS = ("auto", "rouge", "words")
MEASURES = {"f": "fmeasure", "precision": "precision", "recall": "recall"}


class Bleu(Reward):
    """Sentence BLEU, from 0 to 1 (sacrebleu's figure divided by 100).

    With the default options it equals `sacrebleu.sentence_bleu(completion, references).score / 100`: smoothing "exp",
    effective order (a sentence of three words is not punished for having no 4-gram), tokenizer 13a.
    An empty completion scores 0; a row without references scores None.

        {name: bleu, column: references, weight: 0.5}

    Options:
        column ("references"): the column with each row's reference, or list of references.
        tokenize ("auto"): sacrebleu's tokenizer. `auto` looks at the references of the row: ja-mecab for text with
            kana where MeCab is installed, zh for Chinese, char for other scripts without spaces, else 13a.
        lowercase (false): ignore case.
        smoothing ("exp"): exp, floor, add-k or none.

    With `instant: true` each word is paid by what it adds to GLEU (see `potential`), the rest to BLEU at the end.

    Source: Papineni et al. 2002, "BLEU"; Post 2018, "A Call for Clarity in Reporting BLEU Scores".
    """

    def __init__(
        self,
        column: str = "references",
        tokenize: str = "auto",
        lowercase: bool = False,
        smoothing: str = "exp",
        log_name: str = "bleu",
    ):
        super().__init__(log_name)
        self.column_name = column
        self.tokenize = choice(tokenize, "tokenize", BLEU_TOKENIZERS, log_name)
        self.lowercase = lowercase
        self.smoothing = choice(smoothing, "smoothing", tuple(BLEU.SMOOTH_DEFAULTS), log_name)
        if tokenize == "ja-mecab" and not has_mecab():
            raise self.error("tokenize: ja-mecab needs MeCab; run `pip install mecab-python3 ipadic`.")

    def __call__(self, prompts: Texts, completions: Texts, **columns: Any) -> list[float | None]:
        rows = zip(completions, self.column(columns, self.column_name), strict=True)
        return [self.score(text_of(completion), references_of(refs, self.column_name)) for completion, refs in rows]

    def potential(self, prompts: Texts, completions: Texts, **columns: Any) -> list[float | None]:
        """GLEU of each unfinished completion, from 0 to 1, the best over the references: see `gleu`.

        BLEU itself is no measure of progress: its brevity penalty keeps a prefix near 0 until the last few words, and
        without it the first right word has precision 1 and no later one can add to that. GLEU, made for rewards of
        single sentences, grows evenly: up to the length of the reference each word adds the n-grams that it matches
        (up to four, ending in it), a wrong word adds nothing, and past that length it costs.
        """
        rows = zip(completions, self.column(columns, self.column_name), strict=True)
        return [self._gleu(text_of(completion), references_of(refs, self.column_name)) for completion, refs in rows]

    def _gleu(self, completion: str, references: list[str]) -> float | None:
        if not references:
            return None
        options = (bleu_tokenizer(references) if self.tokenize == "auto" else self.tokenize, self.lowercase)
        said = _ngrams(completion, *options)
        return max(gleu(said, _reference_ngrams(ref, *options)) for ref in references)

    def score(self, completion: str, references: list[str]) -> float | None:
        """BLEU of one completion in 0..1; None without references."""
        if not references:
            return None
        if not completion.strip():
            return 0.0
        tokenize = bleu_tokenizer(references) if self.tokenize == "auto" else self.tokenize
        return _bleu(tokenize, self.lowercase, self.smoothing).sentence_score(completion, references).score / 100


class Chrf(Reward):
    """chrF: how many character n-grams a completion shares with a reference, from 0 to 1 (sacrebleu's figure / 100).

        chrF = (1 + β²) P R / (β² P + R)

    P and R are the precision and the recall of character n-grams, the mean over n = 1 to 6 (spaces do not count), and
    β is 2: recall weighs double. The best over the row's references. It equals `sacrebleu.sentence_chrf(completion,
    references).score / 100`, and sees a word with a wrong ending as nearly right where BLEU sees a wrong word.
    An empty completion scores 0; a row without references scores None.

        {name: chrf, column: references, weight: 0.5}

    Options:
        column ("references"): the column with each row's reference, or list of references.
        word_order (0): 2 counts words and pairs of words as well (chrF++).
        lowercase (false): ignore case.

    Source: Popović 2015, "chrF: character n-gram F-score for automatic MT evaluation", equation 1; Popović 2017,
    "chrF++: words helping character n-grams".
    """

    def __init__(
        self, column: str = "references", word_order: int = 0, lowercase: bool = False, log_name: str = "chrf"
    ):
        super().__init__(log_name)
        self.column_name = column
        self.word_order = int(number(word_order, "word_order", log_name))
        if not 0 <= self.word_order <= 6:
            raise self.error(f"word_order is {word_order}; give 0 (chrF), 2 (chrF++), or another number up to 6.")
        self.lowercase = lowercase

    def __call__(self, prompts: Texts, completions: Texts, **columns: Any) -> list[float | None]:
        rows = zip(completions, self.column(columns, self.column_name), strict=True)
        return [self.score(text_of(completion), references_of(refs, self.column_name)) for completion, refs in rows]

    def score(self, completion: str, references: list[str]) -> float | None:
        """chrF of one completion in 0..1; None without references."""
        if not references:
            return None
        return float(_chrf(self.word_order, self.lowercase).sentence_score(completion, references).score) / 100


class Rouge(Reward):
    """ROUGE-1, -2, -L or -Lsum of each completion, from 0 to 1, the best over the row's references.

    With the default options it equals `rouge_score.RougeScorer([type]).score(reference, completion)[type].fmeasure`.
    An empty completion scores 0; a row without references scores None.

        {name: rougeL}    {name: rouge, type: rouge2, measure: recall}

    Options:
        type ("rougeL"): rouge1, rouge2, rougeL or rougeLsum (longest common subsequence line by line).
            The names rouge1, rouge2 and rougeL are this reward with the type set.
        measure ("f"): f, precision or recall.
        column ("references"): the column with each row's reference, or list of references.
        tokenize ("auto"): `rouge` is rouge_score's own (a-z and 0-9 only), `words` reads every script and takes each
            character of scripts without spaces as a word. `auto` looks at the references of the row and takes `words`
            where they have letters beyond the Latin ones.
        stemmer (false): Porter stemmer for English, with tokenize `rouge` only.

    Source: Lin 2004, "ROUGE: A Package for Automatic Evaluation of Summaries".
    """

    def __init__(
        self,
        type: str = "rougeL",
        measure: str = "f",
        column: str = "references",
        tokenize: str = "auto",
        stemmer: bool = False,
        log_name: str | None = None,
    ):
        super().__init__(log_name or str(type))
        self.type = choice(type, "type", ROUGE_TYPES, self.__name__)
        self.measure = MEASURES[choice(measure, "measure", tuple(MEASURES), self.__name__)]
        self.column_name = column
        self.tokenize = choice(tokenize, "tokenize", ROUGE_TOKENIZERS, self.__name__)
        self.stemmer = stemmer

    def __call__(self, prompts: Texts, completions: Texts, **columns: Any) -> list[float | None]:
        rows = zip(completions, self.column(columns, self.column_name), strict=True)
        return [self.score(text_of(completion), references_of(refs, self.column_name)) for completion, refs in rows]

    def potential(self, prompts: Texts, completions: Texts, **columns: Any) -> list[float | None]:
        """The score of each unfinished completion. ROUGE-L by a faster way: rouge_score takes 2 ms for 130 words."""
        if self.type != "rougeL":
            return self(prompts, completions, **columns)
        rows = zip(completions, self.column(columns, self.column_name), strict=True)
        return [self._rouge_l(text_of(completion), references_of(refs, self.column_name)) for completion, refs in rows]

    def _rouge_l(self, completion: str, references: list[str]) -> float | None:
        if not references:
            return None
        tokenize = rouge_tokenizer(references) if self.tokenize == "auto" else self.tokenize
        said = _rouge_words(completion, tokenize, self.stemmer)
        best = 0.0
        for reference in (_rouge_words(ref, tokenize, self.stemmer) for ref in references):
            common = lcs_length(said, reference)
            over = {"precision": len(said), "recall": len(reference), "fmeasure": (len(said) + len(reference)) / 2}
            best = max(best, common / max(over[self.measure], 1))
        return best

    def score(self, completion: str, references: list[str]) -> float | None:
        """ROUGE of one completion in 0..1, the best over `references`; None without references."""
        if not references:
            return None
        if not completion.strip():
            return 0.0
        tokenize = rouge_tokenizer(references) if self.tokenize == "auto" else self.tokenize
        scorer = _rouge(self.type, tokenize, self.stemmer)
        return max(float(getattr(scorer.score(ref, completion)[self.type], self.measure)) for ref in references)


def gleu(said: Counter[tuple[str, ...]], reference: Counter[tuple[str, ...]]) -> float:
    """Matched n-grams over the n-grams of the longer text: the smaller of precision and recall, n = 1 to 4 together.

    Source: Wu et al. 2016, "Google's Neural Machine Translation System", section 5, where it is the reward.
    """
    return (said & reference).total() / max(said.total(), reference.total(), 1)


def lcs_length(a: Sequence[str], b: Sequence[str]) -> int:
    """Length of the longest common subsequence, a word of `a` at a time against all of `b` in one integer.

    Source: Hyyrö 2004, "Bit-parallel LCS-length computation revisited".
    """
    places: dict[str, int] = {}
    for i, word in enumerate(b):
        places[word] = places.get(word, 0) | 1 << i
    everything = (1 << len(b)) - 1
    unmatched = everything
    for word in a:
        here = unmatched & places.get(word, 0)
        unmatched = (unmatched + here | unmatched - here) & everything
    return len(b) - unmatched.bit_count()


def references_of(value: str | Sequence[str] | None, column: str) -> list[str]:
    """The references of one row as a list; blank and missing ones are left out."""
    if value is None:
        return []
    listed = [value] if isinstance(value, str) else value
    if not isinstance(listed, Sequence) or not all(isinstance(ref, str | None) for ref in listed):
        raise RewardError(
            f"The column '{column}' must hold a text or a list of texts in each row, not {value!r:.100}."
        )
    return [ref for ref in listed if ref and ref.strip()]


def bleu_tokenizer(references: Sequence[str]) -> str:
    """sacrebleu's tokenizer for the script of `references`."""
    text = "".join(references)
    if text.isascii() or not any(map(is_unspaced, text)):  # the first is quick: asked for each prefix
        return "13a"
    if any(map(is_kana, text)):
        return "ja-mecab" if has_mecab() else "char"
    return "zh" if any(map(is_han, text)) else "char"


def rouge_tokenizer(references: Sequence[str]) -> str:
    """`rouge` where rouge_score's a-z0-9 tokenizer can read the letters of `references`, else `words`."""
    # Latin letters, with or without accents, end at U+024F; U+1E00..U+1EFF has the rest of them.
    beyond = (c for ref in references for c in ref if ord(c) > 0x24F and not 0x1E00 <= ord(c) <= 0x1EFF)
    return "words" if any(map(str.isalpha, beyond)) else "rouge"


@functools.cache
def has_mecab() -> bool:
    """Whether sacrebleu's Japanese tokenizer can work: MeCab and the IPA dictionary are installed."""
    return all(importlib.util.find_spec(name) for name in ("MeCab", "ipadic"))


class WordTokenizer:
    """`words` in the form that rouge_score takes."""

    tokenize = staticmethod(words)


def _ngrams(text: str, tokenize: str, lowercase: bool) -> Counter[tuple[str, ...]]:
    """How often each n-gram, n = 1 to 4, occurs in `text`."""
    words = _bleu(tokenize, lowercase, "exp").tokenizer(text.lower() if lowercase else text).split()
    return Counter(tuple(words[i : i + n]) for n in range(1, 5) for i in range(len(words) - n + 1))


_reference_ngrams = functools.lru_cache(maxsize=1024)(_ngrams)  # asked again for each prefix


@functools.cache
def _bleu(tokenize: str, lowercase: bool, smoothing: str) -> BLEU:
    return BLEU(tokenize=tokenize, lowercase=lowercase, smooth_method=smoothing, effective_order=True)


@functools.cache
def _chrf(word_order: int, lowercase: bool) -> CHRF:
    return CHRF(word_order=word_order, lowercase=lowercase)


@functools.lru_cache(maxsize=1024)
def _rouge_words(text: str, tokenize: str, stemmer: bool) -> tuple[str, ...]:
    return tuple(_rouge("rougeL", tokenize, stemmer)._tokenizer.tokenize(text))


@functools.cache
def _rouge(type: str, tokenize: str, stemmer: bool) -> Any:
    # Here, because every command imports the rewards, and this imports nltk and takes two seconds
    from rouge_score.rouge_scorer import RougeScorer
    from rouge_score.tokenizers import DefaultTokenizer

    tokenizer = WordTokenizer() if tokenize == "words" else DefaultTokenizer(stemmer)
    return RougeScorer([type], tokenizer=tokenizer)
