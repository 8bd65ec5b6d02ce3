"""Text from models, data and folders as a terminal may print it: it can neither format nor drive the terminal."""

import unicodedata

_JOINERS = "\u200c\u200d"  # of Persian and Indic scripts, and emoji of several parts


def visible(text: str) -> str:
    r"""`text` with control characters and invisible marks spelt out, newlines and ordinary text as they are.

    >>> visible("\x1b[31mred\ttea\r\n")
    '\\x1b[31mred    tea\\r\n'
    """
    return text if text.isascii() and text.isprintable() else "".join(map(_spelt, text))


def _spelt(char: str) -> str:
    if char == "\t":
        return "    "
    # control, format (writing direction, zero width), lone surrogate, line and paragraph separator
    hidden = unicodedata.category(char) in ("Cc", "Cf", "Cs", "Zl", "Zp") and char not in "\n" + _JOINERS
    return char.encode("unicode_escape").decode() if hidden else char
