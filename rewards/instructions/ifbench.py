"""Kinds of IFBench, with the ids and parameters of its data: those that a few words define.

Left out are the kinds that need a model or lists of words (verbs, syllables, stop words, names, emoji), those for one
prompt alone (`custom:...`) and those whose reference check does not do what the instruction says.

Source: Pyatkin et al. 2025, "Generalizing Verifiable Instruction Following", arXiv 2507.02833, and its reference
code, https://github.com/allenai/IFBench. Sentences and tokens are those of `reading`.
"""

import re
import string
from collections import Counter
from itertools import pairwise

from .kinds import COUNT, PLACE, TEXT, Kinds
from .reading import bare, sentences, tokens, trimmed, words

kind = Kinds()
_PRONOUNS = frozenset(
    "i me my mine myself we us our ours ourselves you your yours yourself yourselves he him his himself she her hers "
    "herself it its itself they them their theirs themselves".split()
)
_CONSONANTS = re.compile("[bcdfghjklmnpqrstvwxyz]{2}")
_BRACKETS = {")": "(", "]": "[", "}": "{"}
_TEMPLATE = ("My Answer:", "My Conclusion:", "Future Outlook:")
_TIMES = (1, 2, 3, 5, 7)


# --- counts ---------------------------------------------------------------------------------------------------------
@kind("count:word_count_range", "from so many to so many words", min_words=COUNT, max_words=COUNT)
def word_count_range(text: str, min_words: int, max_words: int) -> bool:
    return min_words <= len(words(text)) <= max_words


@kind("count:unique_word_count", "at least so many different words, capitals and marks around them aside", N=COUNT)
def unique_word_count(text: str, N: int) -> bool:
    return len({trimmed(word) for word in text.lower().split()}) >= N


@kind("count:numbers", "exactly so many numbers in digits", N=COUNT)
def numbers(text: str, N: int) -> bool:
    return len(re.findall(r"\d+", bare(text))) == N


@kind("count:punctuation", "each of `. , ! ? ; :` and besides them an interrobang: `?!`, `!?` or `\N{INTERROBANG}`")
def punctuation(text: str) -> bool:
    interrobang = next((mark for mark in ("?!", "!?", "\N{INTERROBANG}") if mark in text), None)
    return interrobang is not None and set(".,!?;:") <= set(text.replace(interrobang, "", 1))


@kind("count:pronouns", "at least so many personal pronouns", N=COUNT)
def pronouns(text: str, N: int) -> bool:
    return sum(word in _PRONOUNS for word in bare(text.replace("/", " ").lower()).split()) >= N


@kind(
    "count:keywords_multiple",
    "the five keywords exactly 1, 2, 3, 5 and 7 times, be it in longer words",
    keyword1=TEXT,
    keyword2=TEXT,
    keyword3=TEXT,
    keyword4=TEXT,
    keyword5=TEXT,
)
def keywords_multiple(text: str, **keywords: str) -> bool:
    text = text.lower()
    return all(text.count(keywords[f"keyword{i}"].lower()) == times for i, times in enumerate(_TIMES, 1))


@kind(
    "ratio:overlap",
    "so many percent (2 more or fewer) of the text's runs of three characters are in the reference",
    reference_text=TEXT,
    percentage=COUNT,
)
def overlap(text: str, reference_text: str, percentage: int) -> bool:
    runs, reference = _runs(text), _runs(reference_text)
    return bool(runs) and abs(100 * len(runs & reference) / len(runs) - percentage) <= 2


def _runs(text: str) -> set[str]:
    return {text[i : i + 3] for i in range(len(text) - 2)}


# --- words ----------------------------------------------------------------------------------------------------------
@kind("words:alphabet", "each word begins with the next letter of the alphabet, after Z with A")
def alphabet(text: str) -> bool:
    firsts = [word[0].lower() for word in bare(text).split()]
    letters = string.ascii_lowercase
    start = letters.find(firsts[0]) if firsts else -1
    return start >= 0 and all(first == letters[(start + i) % 26] for i, first in enumerate(firsts))


@kind("words:vowel", "one paragraph with three different vowels at most")
def vowel(text: str) -> bool:
    return "\n" not in text.strip() and len(set("aeiou") & set(text.lower())) <= 3


@kind("words:consonants", "two consonants or more side by side in each word")
def consonants(text: str) -> bool:
    return all(_CONSONANTS.search(word) for word in text.lower().split())


@kind("words:palindrome", "at least ten palindromes of five letters or more")
def palindrome(text: str) -> bool:
    return sum(len(word) >= 5 and word == word[::-1] for word in bare(text).lower().split()) >= 10


@kind("words:prime_lengths", "the length of each word is a prime number")
def prime_lengths(text: str) -> bool:
    return all(_is_prime(len(word)) for word in bare(text).split())


def _is_prime(n: int) -> bool:
    return n > 1 and all(n % d for d in range(2, int(n**0.5) + 1))


@kind("words:repeats", "no word more than so many times, capitals and marks aside", small_n=COUNT)
def repeats(text: str, small_n: int) -> bool:
    return max(Counter(bare(text.lower()).split()).values(), default=0) <= small_n


@kind("words:no_consecutive", "no two words after each other begin with the same letter")
def no_consecutive(text: str) -> bool:
    return all(one[0] != other[0] for one, other in pairwise(bare(text.lower()).split()))


@kind("words:last_first", "each sentence begins with the last word of the one before")
def last_first(text: str) -> bool:
    split = [trimmed(sentence).lower().split() for sentence in sentences(text)]
    return all(bool(one and other) and one[-1] == other[0] for one, other in pairwise(split))


@kind("words:paragraph_last_first", "each line ends with the word that it begins with")
def paragraph_last_first(text: str) -> bool:
    lines = [trimmed(line.strip().lower()).split() for line in text.split("\n")]
    return all(line[0] == line[-1] for line in lines if line)


@kind(
    "words:keywords_specific_position",
    "the mth token of the nth sentence is the keyword",
    keyword=TEXT,
    n=PLACE,
    m=PLACE,
)
def keywords_specific_position(text: str, keyword: str, n: int, m: int) -> bool:
    found = sentences(text)
    return len(found) >= n and tokens(found[n - 1])[m - 1 : m] == [keyword]


@kind("words:words_position", "the second token and the last but one are the keyword", keyword=TEXT)
def words_position(text: str, keyword: str) -> bool:
    found = tokens(text)
    return len(found) > 1 and found[1] == found[-2] == keyword


# --- sentences ------------------------------------------------------------------------------------------------------
@kind(
    "sentence:keyword",
    "the word stands in the Nth sentence, capitals aside, be it in a longer word",
    word=TEXT,
    N=PLACE,
)
def keyword(text: str, word: str, N: int) -> bool:
    return word.lower() in "".join(sentences(text)[N - 1 : N]).lower()


@kind("sentence:increment", "each sentence has so many words more than the one before", small_n=COUNT)
def increment(text: str, small_n: int) -> bool:
    lengths = [len(bare(sentence).split()) for sentence in sentences(text)]
    return all(other - one == small_n for one, other in pairwise(lengths))


# --- form -----------------------------------------------------------------------------------------------------------
@kind("format:parentheses", "brackets in brackets, five deep, and the fifth closes: `(`, `[` or `{`")
def parentheses(text: str) -> bool:
    opened: list[str] = []
    deepest = 0
    for char in text:
        if char in "([{":
            opened.append(char)
            deepest = max(deepest, len(opened))
        elif char in _BRACKETS:
            if not opened or opened.pop() != _BRACKETS[char]:
                opened, deepest = [], 0
            elif deepest >= 5:
                return True
    return False


@kind("format:options", "the whole text is one of the options, `a/b/c`, `a or b` or `a, b, c`", options=TEXT)
def options(text: str, options: str) -> bool:
    separator = next((sign for sign in ("/", "or") if sign in options), ",")
    listed = [option.strip() for option in options.split(separator)]
    if re.match(r"\W*[aA]\W*[bB]\W*[cC]\W*", options):  # a), b), c): with the marks as they are
        return text in listed
    return trimmed(text).lower() in [trimmed(option).lower() for option in listed]


@kind("format:newline", "each word on a line of its own")
def newline(text: str) -> bool:
    text = bare(text).strip()
    return sum(line != "" for line in text.split("\n")) == len(text.split())


@kind("format:list", "the sign of the list's points occurs twice or more", sep=TEXT)
def list_of(text: str, sep: str) -> bool:
    return text.count(sep) >= 2


@kind("format:title_case", "each word begins with a capital and goes on in small letters")
def title_case(text: str) -> bool:
    return not any(token[0].islower() and (token[1:].islower() or token[1:].isupper()) for token in tokens(text))


@kind("format:output_template", "holds `My Answer:`, `My Conclusion:` and `Future Outlook:`")
def output_template(text: str) -> bool:
    return all(part in text for part in _TEMPLATE)


@kind("format:no_whitespace", "no white space")
def no_whitespace(text: str) -> bool:
    return not any(char.isspace() for char in text)


# --- the request repeated -------------------------------------------------------------------------------------------
@kind(
    "repeat:repeat_change",
    "the request with another first word",
    of_prompt="prompt_to_repeat",
    prompt_to_repeat=TEXT,
)
def repeat_change(text: str, prompt_to_repeat: str) -> bool:
    return text != prompt_to_repeat and text.split()[1:] == prompt_to_repeat.split()[1:]


@kind(
    "repeat:repeat_span",
    "the words of the request from n_start up to before n_end, counted from 0, capitals aside",
    of_prompt="prompt_to_repeat",
    prompt_to_repeat=TEXT,
    n_start=COUNT,
    n_end=PLACE,
)
def repeat_span(text: str, prompt_to_repeat: str, n_start: int, n_end: int) -> bool:
    return text.lower().split() == prompt_to_repeat.lower().split()[n_start:n_end]
