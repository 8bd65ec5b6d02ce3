"""Random instructions with texts near the border of meeting them, for each kind of IFEval and IFBench.

`CASES[id](rng)` draws parameters and a text. No sentence has abbreviations or a lone letter before its point, begins
with a list's number, or ends in several marks: there `sentences` parts from the reference by intention.
"""

import random
import re
from collections.abc import Callable
from typing import Any

WORDS = (
    "apple banana cat cats catalogue dog I you they radar level civic noon kayak data the and of river moon sun over "
    "under quick brown fox jumps NASA USA HELLO don't it's CAN'T well-known cannot x-ray Berlin Paris 7 42 3.5 1,000"
).split()
PALINDROMES = "radar level civic kayak refer rotor madam stats tenet solos".split()
MARKS = ("", "", "", "", ",", ";", ":", " -")
ENDS = (".", ".", "!", "?", '."', '!"', ".)")
Case = tuple[dict[str, Any], str]
Draw = Callable[[random.Random], Case]


def some(rng: random.Random, words: list[str] = WORDS, most: int = 6) -> list[str]:
    return rng.choices(words, k=rng.randint(1, most))


def sentence(rng: random.Random) -> str:
    words = [word + rng.choice(MARKS) for word in some(rng)]
    return " ".join([*words, rng.choice(WORDS[14:30])]) + rng.choice(ENDS)


def prose(rng: random.Random, most: int = 5) -> str:
    breaks = (" ", " ", "\n", "\n\n", "  ")
    return "".join(sentence(rng) + rng.choice(breaks) for _ in range(rng.randint(1, most)))


def near(rng: random.Random, count: int, lowest: int = 0) -> int:
    return max(lowest, count + rng.choice((-1, 0, 0, 1, 1)))


def relation(rng: random.Random) -> str:
    return rng.choice(("at least", "less than"))


def mixed(rng: random.Random, pieces: tuple[str, ...], most: int = 6) -> str:
    """Pieces and words in disorder."""
    drawn = [rng.choice(pieces) if rng.random() < 0.6 else rng.choice(WORDS) for _ in range(rng.randint(1, most))]
    return "".join(piece + rng.choice(("", " ", "\n")) for piece in drawn)


def counted(name: str, pieces: tuple[str, ...], most: int = 6) -> Draw:
    """Cases of a kind that takes one number, the texts mixed of `pieces`."""
    return lambda rng: ({name: rng.randint(0, 3)}, mixed(rng, pieces, most) + rng.choice(("", prose(rng, 1))))


def bare(pieces: tuple[str, ...], most: int = 4) -> Draw:
    """Cases of a kind without parameters, the texts mixed of `pieces`."""
    return lambda rng: ({}, mixed(rng, pieces, most))


def keywords(rng: random.Random) -> Case:
    return {"keywords": rng.sample(("cat", "dog", "apple", "Moon", "nasa"), rng.randint(1, 2))}, prose(rng, 6)


def frequency(rng: random.Random) -> Case:
    word, text = rng.choice(("cat", "dog", "Apple", "o")), prose(rng)
    count = near(rng, len(re.findall(word, text, re.I)))
    return {"keyword": word, "frequency": count, "relation": relation(rng)}, text


def forbidden(rng: random.Random) -> Case:
    return {"forbidden_words": rng.sample(("cat", "dog", "Moon", "can", "don", "x"), 2)}, prose(rng, 3)


def letters(rng: random.Random) -> Case:
    letter, text = rng.choice("aeCOxz"), prose(rng, 2)
    count = near(rng, text.lower().count(letter.lower()))
    return {"letter": letter, "let_frequency": count, "let_relation": relation(rng)}, text


LANGUAGES = {
    "en": "the quick brown fox jumps over the lazy dog and they went home again",
    "de": "der schnelle braune Fuchs springt gern über den faulen Hund und geht nach Hause",
    "fr": "le renard brun saute par-dessus le chien paresseux et rentre à la maison",
    "ru": "быстрая лиса прыгает через ленивую собаку и бежит домой",
    "ja": "素早い茶色の狐はのろまな犬を飛び越えて家に帰ります",
}


def language(rng: random.Random) -> Case:
    of = rng.choice(list(LANGUAGES))
    words = LANGUAGES[of].split()
    text = " ".join(rng.sample(words, max(1, len(words) - rng.randint(0, 3))))
    return {"language": of if rng.random() < 0.6 else rng.choice(list(LANGUAGES))}, text


def number_sentences(rng: random.Random) -> Case:
    count = rng.randint(1, 6)
    text = " ".join(sentence(rng) for _ in range(count))
    return {"num_sentences": near(rng, count), "relation": relation(rng)}, text


def number_words(rng: random.Random) -> Case:
    text = prose(rng)
    return {"num_words": near(rng, len(re.findall(r"\w+", text))), "relation": relation(rng)}, text


def first_word(rng: random.Random) -> Case:
    count = rng.randint(1, 3)
    quote = rng.choice(("", "", '"', "'", "'\""))
    text = rng.choice(("\n\n", "\n\n", "\n\n", "\n\n\n", "\n")).join(
        quote + rng.choice(("Cat", "cat,", "dog", "cats")) + " " + sentence(rng) for _ in range(count)
    )
    wanted = near(rng, count, 1)
    return {"num_paragraphs": wanted, "nth_paragraph": rng.randint(1, wanted), "first_word": "cat"}, text


def postscript(rng: random.Random) -> Case:
    pieces = ("P.S. so", "P. S. so", "p.s", "P.P.S. so", "P.P.S so", "p. p. s", "PS so")
    return {"postscript_marker": rng.choice(("P.S.", "P.P.S"))}, mixed(rng, pieces, 2)


def sections(rng: random.Random) -> Case:
    name = rng.choice(("Section", "SECTION", "Day"))
    text = mixed(rng, (f"{name} 1", f"{name}2", f"\n{name} 3\n", f"{name} X", f"{name}  4"))
    return {"section_spliter": name, "num_sections": rng.randint(0, 3)}, text


def repeated(rng: random.Random) -> Case:
    asked = sentence(rng)
    text = rng.choice((asked, asked.upper(), " " + asked, asked[:-2], "So: " + asked)) + rng.choice(("", " Yes."))
    return {"prompt_to_repeat": asked}, text


def ending(rng: random.Random) -> Case:
    phrase = rng.choice(("That is all.", "Any other questions?", "bye"))
    text = prose(rng, 1) + phrase + rng.choice(("", '"', " ", ".", '""\n'))
    return {"end_phrase": phrase}, rng.choice((text, text.upper(), f'"{text}'))


def capitals(rng: random.Random) -> Case:
    text = prose(rng, 3)
    count = near(rng, sum(word.isupper() for word in re.findall(r"[\w'-]+", text)))
    return {"capital_frequency": count, "capital_relation": relation(rng)}, text


def word_range(rng: random.Random) -> Case:
    text = prose(rng)
    low = near(rng, len(re.findall(r"\w+", text)) - 1)
    return {"min_words": low, "max_words": low + rng.randint(0, 3)}, text


def unique_words(rng: random.Random) -> Case:
    text = prose(rng)
    return {"N": near(rng, len({word.strip(".,;:!?\"')-") for word in text.lower().split()}))}, text


def numbers(rng: random.Random) -> Case:
    return {"N": rng.randint(0, 4)}, mixed(rng, ("7", "12", "3.5", "1,000", "a1", "x-2", "-"), 8)


def multiple(rng: random.Random) -> Case:
    names = ["apple", "Banana", "cat", "dog", "fox"]
    times = [rng.choice((count,) * 12 + (count + 1,)) for count in (1, 2, 3, 5, 7)]
    text = [word for word, count in zip(names, times, strict=True) for _ in range(count)]
    rng.shuffle(text)
    return {f"keyword{i}": word for i, word in enumerate(names, 1)}, " ".join(text)


def overlap(rng: random.Random) -> Case:
    reference = " ".join(rng.choices(WORDS, k=6))
    text = reference[: rng.randint(0, len(reference))] + rng.choice(("", " ".join(rng.choices(WORDS, k=2))))
    parts = {text[i : i + 3] for i in range(len(text) - 2)}
    share = sum(part in reference for part in parts) * 100 // max(len(parts), 1)
    return {"reference_text": reference, "percentage": max(0, share + rng.randint(-3, 3))}, text


def alphabet(rng: random.Random) -> Case:
    start, letters = rng.randint(0, 25), "abcdefghijklmnopqrstuvwxyz" * 2
    words = [letter + rng.choice(("", "x,", "o", "ab.")) for letter in letters[start : start + rng.randint(1, 8)]]
    if rng.random() < 0.3:
        words.insert(rng.randint(0, len(words)), rng.choice(("-", "Zoo", "7", "é")))
    return {}, " ".join(word.upper() if rng.random() < 0.3 else word for word in words)


def repeats(rng: random.Random) -> Case:
    return {"small_n": rng.randint(1, 4)}, prose(rng, 3)


def chained(rng: random.Random) -> Case:
    text, last = [], "moon"
    for _ in range(rng.randint(1, 4)):
        first = last if rng.random() < 0.85 else "other"
        last = rng.choice(("sun", "river", "cat"))
        text.append(f"{first.title()} {' '.join(some(rng, ['is', 'a', 'of'], 3))} {last}{rng.choice('.!?')}")
    return {}, " ".join(text)


def bookends(rng: random.Random) -> Case:
    lines = []
    for _ in range(rng.randint(1, 3)):
        word = rng.choice(("cat", "Dog"))
        other = word.upper() if rng.random() < 0.8 else "fox"
        lines.append(
            rng.choice((f"{word} and {other}.", f"{word}", f" ({word} x, {other})!", "", "-", f"{word}, {other}"))
        )
    return {}, "\n".join(lines)


def placed(rng: random.Random) -> Case:
    text = " ".join(" ".join(some(rng, ["cat", "a", "b,", "don't"], 5)) + rng.choice(".!?") for _ in range(3))
    return {"keyword": "cat", "n": rng.randint(1, 3), "m": rng.randint(1, 4)}, text


def second(rng: random.Random) -> Case:
    words = some(rng, ["cat", "cat", "cat", "a", "cat,"], 4)
    return {"keyword": "cat"}, " ".join(["The", *words]) + rng.choice((".", ".", "", "!", '."'))


def in_sentence(rng: random.Random) -> Case:
    return {"word": rng.choice(("cat", "dog", "Sun", "o")), "N": rng.randint(1, 3)}, number_sentences(rng)[1]


def growing(rng: random.Random) -> Case:
    step, count = rng.randint(1, 3), rng.randint(1, 3)
    lengths = [count + step * i + (rng.random() < 0.15) for i in range(rng.randint(2, 4))]
    text = " ".join(" ".join(rng.choices(("cat", "and", "do,", "-", "don't"), k=n)) + " so." for n in lengths)
    return {"small_n": step}, text


def options(rng: random.Random) -> Case:
    listed = rng.choice(("yes/no/maybe", "I know or I don't know", "a), b), c), d)", "red, green, blue"))
    text = rng.choice(("yes", "No.", "maybe!", "I know", "i don't know.", "a)", "b", "B)", "Red", "green,", "a) yes"))
    return {"options": listed}, text


def lined(rng: random.Random) -> Case:
    return {}, rng.choice(("\n", "\n", "\n\n", "\n ")).join(
        [*some(rng, ["cat", "a-b", "-", "dog,"], 4), rng.choice(("x", "x y"))]
    )


def titled(rng: random.Random) -> Case:
    words = some(rng, ["The", "Cat", "And", "A", "I", "7", "Well-Known", "NASA", "McDonald", "Cat's", "of"], 5)
    return {}, " ".join(words) + rng.choice(("", ".", "!", ", Then."))


def bracketed(rng: random.Random) -> Case:
    signs = rng.choices("([{", k=rng.randint(3, 7))
    text = " a ".join(signs) + "".join({"(": ")", "[": "]", "{": "}"}[sign] for sign in reversed(signs))
    cut = rng.randint(0, len(text)) if rng.random() < 0.4 else len(text)
    return {}, rng.choice(("", "a) ", "(b) ")) + text[:cut] + rng.choice(("", "}", " (x)"))


def changed(rng: random.Random) -> Case:
    asked = " ".join(some(rng, most=5))
    words = [rng.choice(("So", asked.split()[0])), *asked.split()[1:]]
    return {"prompt_to_repeat": asked}, " ".join(words) + rng.choice(("", "", " x", " "))


def span(rng: random.Random) -> Case:
    asked = " ".join(rng.choices(WORDS, k=6))
    start = rng.randint(1, 3)
    end = rng.randint(start + 1, 6)
    words = asked.split()[start : max(start + 1, near(rng, end))]
    return {"prompt_to_repeat": asked, "n_start": start, "n_end": end}, " ".join(words).upper()


def text_of(words: list[str], most: int) -> Draw:
    return lambda rng: ({}, " ".join(some(rng, words, most)) + rng.choice(("", ".", "!", "\nx")))


CASES: dict[str, Draw] = {
    "keywords:existence": keywords,
    "keywords:frequency": frequency,
    "keywords:forbidden_words": forbidden,
    "keywords:letter_frequency": letters,
    "language:response_language": language,
    "length_constraints:number_sentences": number_sentences,
    "length_constraints:number_paragraphs": counted("num_paragraphs", ("***", " ***\n", "****", "* * *"), 5),
    "length_constraints:number_words": number_words,
    "length_constraints:nth_paragraph_first_word": first_word,
    "detectable_content:number_placeholders": counted("num_placeholders", ("[a]", "[]", "[", "]", "[a\nb]", "[[a]")),
    "detectable_content:postscript": postscript,
    "detectable_format:number_bullet_lists": counted(
        "num_bullets", ("\n* a", "\n- b", "\n\n  * c", "\n** d", "\n*", "\n---", "*\n", " - ", "\n\t-e"), 5
    ),
    "detectable_format:constrained_response": bare(
        ("My answer is yes.", "My answer is no.", "my answer is yes.", "My answer is maybe.", "My answer is yes"), 2
    ),
    "detectable_format:number_highlighted_sections": counted(
        "num_highlights", ("*a b*", "**c**", "* *", "****", "*a\nb*", "***d***", "*", "**")
    ),
    "detectable_format:multiple_sections": sections,
    "detectable_format:json_format": bare(('{"a": 1}', "[1, 2]", "```json\n", "```", "```JSON", "{", "NaN", '"x"'), 3),
    "detectable_format:title": bare(("<<a b>>", "<<>>", "<<", ">>", "<< >>", "<<<c>>>", "<<a\nb>>", "<<<>"), 3),
    "combination:two_responses": bare(("******", "******", "*****", "*******", "a", "b"), 6),
    "combination:repeat_prompt": repeated,
    "startend:end_checker": ending,
    "startend:quotation": bare(('"', '"a', 'b"', "'c'", '""'), 3),
    "change_case:capital_word_frequency": capitals,
    "punctuation:no_comma": lambda rng: ({}, prose(rng, 1)),
    "count:word_count_range": word_range,
    "count:unique_word_count": unique_words,
    "count:numbers": numbers,
    "count:punctuation": bare((".", ",", "!", "?", ";", ":", "?!", "!?", "\N{INTERROBANG}", ".,;:"), 14),
    "count:pronouns": lambda rng: (
        {"N": rng.randint(0, 4)},
        mixed(rng, ("I", "you,", "her/his", "It's", "their", "me."), 6),
    ),
    "count:keywords_multiple": multiple,
    "ratio:overlap": overlap,
    "words:alphabet": alphabet,
    "words:vowel": lambda rng: (
        {},
        rng.choice(("", "\n")) + " ".join(some(rng, WORDS[:30], 4)) + rng.choice(("", "\n", "\nx")),
    ),
    "words:consonants": text_of(["apple", "black", "Who", "and", "x-ray", "strong", "a-bc", "I"], 4),
    "words:palindrome": lambda rng: (
        {},
        ", ".join(rng.choices([*PALINDROMES, "Level", "noon"], k=rng.randint(8, 14))),
    ),
    "words:prime_lengths": text_of(["to", "the", "hello", "seventh", "don't", "a", "moon"], 3),
    "words:repeats": repeats,
    "words:no_consecutive": lambda rng: ({}, sentence(rng)),
    "words:last_first": chained,
    "words:paragraph_last_first": bookends,
    "words:keywords_specific_position": placed,
    "words:words_position": second,
    "sentence:keyword": in_sentence,
    "sentence:increment": growing,
    "format:parentheses": bracketed,
    "format:options": options,
    "format:newline": lined,
    "format:list": lambda rng: ({"sep": rng.choice(("...", "!?!?", "-"))}, mixed(rng, ("...", "!?!?", "-", "!?"), 9)),
    "format:title_case": titled,
    "format:output_template": lambda rng: (
        {},
        "\n".join(x for x in ("My Answer: a", "My Conclusion: b", "Future Outlook: c") if rng.random() < 0.8) or "x",
    ),
    "format:no_whitespace": lambda rng: ({}, rng.choice(("", "", " ", "\n", "\u3000")).join(some(rng, most=3))),
    "repeat:repeat_change": changed,
    "repeat:repeat_span": span,
}
