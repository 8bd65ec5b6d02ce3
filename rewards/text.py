"""Reading text as a person does: messages to text, scripts without spaces, words of any script."""

import unicodedata
from collections.abc import Sequence

# Scripts that write no spaces between words, as (first, last) code points.
_HAN = ((0x2E80, 0x2FDF), (0x3005, 0x3007), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x3FFFF))
_KANA = ((0x3041, 0x30FF), (0x31F0, 0x31FF), (0xFF66, 0xFF9F), (0x1B000, 0x1B16F))
_SOUTH_EAST_ASIAN = ((0x0E00, 0x0EFF), (0x0F00, 0x109F), (0x1780, 0x17FF), (0x19E0, 0x19FF), (0xA9E0, 0xA9FF))
_UNSPACED = _HAN + _KANA + _SOUTH_EAST_ASIAN
_FIRST_UNSPACED = 0x0E00


def text_of(x: str | Sequence[dict] | None) -> str:
    """The text of a prompt or completion: a string as it is, messages as their contents, one a line.

    A message's content may be a string, a list of blocks (the text blocks count) or None (a bare tool call).
    """
    if x is None:
        return ""
    if isinstance(x, str):
        return x
    return "\n".join(_content(message) for message in x)


def _content(message: dict) -> str:
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
    return char.isalnum() or unicodedata.category(char)[0] == "M"


def words(text: str) -> list[str]:
    """The words of `text`, lower-cased: runs of letters, digits and marks; in scripts without spaces, each character.

    >>> words("Où est Tōkyō？ 東京は首都")
    ['où', 'est', 'tōkyō', '東', '京', 'は', '首', '都']
    """
    found: list[str] = []
    run = ""
    for char in text.lower():
        spaced = is_word_char(char) and not is_unspaced(char)
        if spaced:
            run += char
            continue
        if run:
            found.append(run)
            run = ""
        if is_unspaced(char) and is_word_char(char):
            # A vowel sign or tone mark belongs to the letter before it.
            if found and unicodedata.category(char)[0] == "M" and is_unspaced(found[-1][0]):
                found[-1] += char
            else:
                found.append(char)
    return found + [run] if run else found


def _within(char: str, ranges: tuple[tuple[int, int], ...]) -> bool:
    point = ord(char)
    return any(first <= point <= last for first, last in ranges)
