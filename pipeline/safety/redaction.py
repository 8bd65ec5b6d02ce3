"""Access tokens and passwords: known by their names, and struck out of whatever is written or printed."""

import os
import re
import sys
import traceback
from typing import Any

from huggingface_hub import get_token

# Settings that hold one; and keys within settings (`model_init_kwargs: {token: …}`, options of a reward of one's own).
SETTINGS = ("hub_token", "push_to_hub_token", "mp_parameters")
_KEY = re.compile(r"((hf|hub|auth|access|bearer)_?)?token|(\w+_)?(api_?key|secret|password|passwd|credentials?)", re.I)
_VARIABLE = re.compile(r"(^|_)(TOKEN|API_?KEY|SECRET|PASSWORD|CREDENTIALS)$")
_SHORTEST = 6  # characters of a secret; a shorter one would strike out ordinary words


def is_secret(key: Any) -> bool:
    """Whether a setting of this name holds a secret. `eos_token` and the like do not."""
    return key in SETTINGS or _KEY.fullmatch(str(key)) is not None


def redact(text: str, *secrets: str | None) -> str:
    """`text` with every secret struck out: those given, of the environment, of the login and of the command line."""
    for secret in (*secrets, get_token(), *_of_environment(), *_of_command_line()):
        if secret and len(secret) >= _SHORTEST:
            text = text.replace(secret, "***")
    text = re.sub(r"\bhf_[A-Za-z0-9]{8,}", "***", text)
    return re.sub(r"(?i)\b(bearer|basic)\s+[^\s\"',;]+", r"\1 ***", text)


def print_redacted(kind: type[BaseException], error: BaseException, trace: Any) -> None:
    """An exception that nobody has caught, as Python prints it but for the secrets in it; for `sys.excepthook`."""
    print(redact("".join(traceback.format_exception(kind, error, trace))), end="", file=sys.stderr)


def _of_environment() -> list[str]:
    return [value for name, value in os.environ.items() if _VARIABLE.search(name)]


def _of_command_line() -> list[str]:
    found = []
    for word, after in zip(sys.argv, [*sys.argv[1:], ""], strict=True):
        name, equals, value = word.partition("=")
        if name.startswith("--") and is_secret(name[2:].replace("-", "_")):
            found.append(value if equals else after)
    return found
