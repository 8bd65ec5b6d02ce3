"""The language of a text, by langdetect, which is imported when a row asks for it."""

from typing import Any

from ..base import RewardError
from .kinds import one_of

LANGUAGES = tuple(
    "af ar bg bn ca cs cy da de el en es et fa fi fr gu he hi hr hu id it ja kn ko lt lv mk ml mr ne nl no pa pl pt "
    "ro ru sk sl so sq sv sw ta te th tl tr uk ur vi zh-cn zh-tw".split()
)
LANGUAGE = one_of(LANGUAGES, f"one of {', '.join(LANGUAGES)}")


def detect(text: str) -> str | None:
    """The code of the language of `text`, the same each time; None for a text without letters.

    Raises:
        RewardError: langdetect is not installed.
    """
    langdetect = _library()
    try:
        return str(langdetect.detect(text))
    except langdetect.LangDetectException:
        return None


def _library() -> Any:
    try:
        import langdetect
    except ImportError:
        raise RewardError(
            'language:response_language needs langdetect; install it with: pip install -e ".[instructions]"'
        ) from None
    langdetect.DetectorFactory.seed = 0  # it draws samples of the text: without a seed, others each time
    return langdetect
