"""Reading text as a person does: messages to text, scripts without spaces, words of any script."""

import unicodedata
from collections.abc import Sequence
from typing import Any

Message = dict[str, Any]  # role and content, and what else a chat template reads
Text = str | Sequence[Message]  # a prompt or a completion
Texts = Sequence[Text]

# Scripts that write no spaces between words, as (first, last) code points.
_HAN = ((0x2E80, 0x2FDF), (0x3005, 0x3007), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x3FFFF))
_KANA = ((0x3041, 0x30FF), (0x31F0, 0x31FF), (0xFF66, 0xFF9F), (0x1B000, 0x1B16F))
_SOUTH_EAST_ASIAN = ((0x0E00, 0x0EFF), (0x0F00, 0x109F), (0x1780, 0x17FF), (0x19E0, 0x19FF), (0xA9E0, 0xA9FF))
_UNSPACED = _HAN + _KANA + _SOUTH_EAST_ASIAN
_FIRST_UNSPACED = 0x0E00
_LINKS = "'\u2019-.,:"  # between two letters or digits they are part of the word
_JOINERS = "\u200c\u200d"  # inside words of Persian and Indic scripts, and emoji of several parts


def text_of(x: Text | None) -> str:
    """The text of a prompt or completion: a string as it is, messages as their contents, one a line.

    A message's content may be a string, a list of blocks (the text blocks count) or None (a bare tool call).
    """
    if x is None:
        return ""
    if isinstance(x, str):
        return x
    return "\n".join(_content(message) for message in x)


def _content(message: Message) -> str:
    content = message.get("content")
    if content is None or isinstance(content, str):
        return content or ""
    return "".join(block.get("text") or "" for block in content if isinstance(block, dict))


def is_kana(char: str) -> bool:
    """Whether `char` is Japanese hiragana or katakana."""
    return _within(char, _KANA)


def is_han(char: str) -> bool:
    """Whether `char` is a Chinese character (also used in Japanese)."""
    return _within(char, _HAN)


def is_unspaced(char: str) -> bool:
    """Whether `char` belongs to a script without spaces: Chinese, Japanese, Thai, Lao, Khmer, Burmese, Tibetan."""
    return ord(char) >= _FIRST_UNSPACED and _within(char, _UNSPACED)


def is_word_char(char: str) -> bool:
    """Whether `char` is part of a word: a letter, a digit, or a mark on one (`str.isalnum` leaves the marks out)."""
    return char.isalnum() or _is_mark(char)


def words(text: str) -> list[str]:
    """The words of `text`, lower-cased: runs of letters, digits and marks; in scripts without spaces, each character.

    >>> words("Où est Tōkyō？ 東京は首都")
    ['où', 'est', 'tōkyō', '東', '京', 'は', '首', '都']
    """
    return [word for word, _ in located_words(text)]


def located_words(text: str) -> list[tuple[str, int]]:
    """The `words` of `text`, each with the number of characters of `text` up to its end.

    >>> located_words("The cat.")
    [('the', 3), ('cat', 7)]
    """
    found: list[tuple[str, int]] = []
    run, run_end = "", 0
    ends = [end for end, char in enumerate(text, 1) for _ in char.lower()]  # one letter may become two in lower case
    for char, end in zip(text.lower(), ends, strict=True):
        spaced = is_word_char(char) and not is_unspaced(char)
        if spaced:
            run, run_end = run + char, end
            continue
        if run:
            found.append((run, run_end))
            run = ""
        if is_unspaced(char) and is_word_char(char):
            # A vowel sign or tone mark belongs to the letter before it.
            if found and _is_mark(char) and is_unspaced(found[-1][0][0]):
                found[-1] = (found[-1][0] + char, end)
            else:
                found.append((char, end))
    return [*found, (run, run_end)] if run else found


def word_ends(text: str) -> list[int]:
    """Where words end, as numbers of characters: where the next character is not of the same word.

    Letters and digits of one word go together, with an apostrophe, hyphen, point, comma or colon between two of them
    (don't, 3.5); in scripts without spaces each character is a word, with its marks. Other signs next to each other
    (?!, an emoji of several parts) are a word too. Spaces belong to none.

    >>> word_ends("The cat's off!")
    [3, 9, 13, 14]
    """
    padded = f" {text}  "
    return [i for i in range(1, len(text) + 1) if not padded[i].isspace() and not _goes_on(padded[i - 1 : i + 3])]


def _goes_on(around: str) -> bool:
    """Whether around[1] and around[2] are of one word."""
    before, left, right, after = tuple(around)
    if right.isspace():
        return False
    if _is_mark(right) or left in _JOINERS or right in _JOINERS:
        return True
    if is_unspaced(left) or is_unspaced(right):
        return False
    if is_word_char(left) == is_word_char(right):
        return True
    if is_word_char(left):
        return right in _LINKS and is_word_char(after) and not is_unspaced(after)
    return left in _LINKS and is_word_char(before) and not is_unspaced(before)


def _is_mark(char: str) -> bool:
    return unicodedata.category(char)[0] == "M"


def _within(char: str, ranges: tuple[tuple[int, int], ...]) -> bool:
    point = ord(char)
    return any(first <= point <= last for first, last in ranges)
