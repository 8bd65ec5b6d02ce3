"""What goes wrong with the Hub, each in one sentence, and never with a token in it."""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager

import httpx2
from huggingface_hub import constants
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled

from pipeline.errors import UserError
from pipeline.safety.redaction import redact

NO_ANSWER = (httpx2.TimeoutException, httpx2.NetworkError, httpx2.RemoteProtocolError)
BUSY = (408, 429, 500, 502, 503, 504)
MOVED = (409, 412)  # the branch is no longer where it was when we looked
LATER = "run the same command again later: what has arrived is not sent again"


class _Redacting(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = redact(record.getMessage()), ()
        return True


@contextmanager
def plain_errors(repo: str, *secrets: str | None) -> Iterator[None]:
    """Inside the block every failure of the Hub becomes a `UserError`, and the client's log is free of tokens."""
    handlers = logging.getLogger("huggingface_hub").handlers
    redacting = _Redacting()
    for handler in handlers:
        handler.addFilter(redacting)
    try:
        yield
    except UserError:
        raise
    except KeyboardInterrupt:
        raise UserError(f"the push to {repo} was stopped; run it again: what has arrived is not sent again") from None
    except Exception as error:
        sentence = explain(error, repo)
        if sentence is None:
            raise
        raise UserError(redact(sentence, *secrets)) from None
    finally:
        for handler in handlers:
            handler.removeFilter(redacting)


def cause_of(error: BaseException) -> BaseException:
    """The Hub's own error: the client wraps what happens to one of several uploads in a RuntimeError."""
    return cause_of(error.__cause__) if isinstance(error, RuntimeError) and error.__cause__ else error


def status_of(error: BaseException) -> int | None:
    """The HTTP status that the Hub answered with, if it did."""
    error = cause_of(error)
    return error.response.status_code if isinstance(error, HfHubHTTPError) and error.response is not None else None


def is_passing(error: BaseException) -> bool:
    """Whether trying again may help."""
    error = cause_of(error)
    return status_of(error) in BUSY or isinstance(error, (*NO_ANSWER, json.JSONDecodeError))


def explain(error: BaseException, repo: str) -> str | None:
    """One sentence: what is wrong and what to do. None for an error that is not the Hub's."""
    error = cause_of(error)
    hub = constants.ENDPOINT
    if isinstance(error, OfflineModeIsEnabled):
        return f"{repo} cannot be pushed in offline mode: unset HF_HUB_OFFLINE and run it again"
    if isinstance(error, LocalTokenNotFoundError):
        return f"{repo} cannot be pushed without a token: log in with `hf auth login`, or set HF_TOKEN"
    if isinstance(error, json.JSONDecodeError):
        return f"{hub} gave an answer that cannot be read; {LATER}"
    if isinstance(error, NO_ANSWER) or isinstance(error, httpx2.HTTPError) and not isinstance(error, HfHubHTTPError):
        return f"{hub} cannot be reached ({type(error).__name__}): check the network; {LATER}"
    if isinstance(error, ValueError) and "metadata in README.md" in str(error):
        return f"the Hub refuses the card of {repo}: {_one_line(str(error).partition('README.md.')[2])}"
    status, said = status_of(error), ""
    if status is None:
        return None
    if message := _one_line(getattr(error, "server_message", None) or ""):
        said = f" (the Hub says: {message})"
    if status == 401:
        return f"the Hub does not accept the token (401): log in again with `hf auth login`, or set HF_TOKEN{said}"
    if status == 403:
        return (
            f"this token may not write to {repo} (403): take a token with write access, or an account of yours{said}"
        )
    if status == 404:
        return f"{repo} is not on the Hub, or this token may not see it (404){said}"
    if status in MOVED:
        return (
            f"somebody else changed {repo} during the push ({status}), so nothing was overwritten: "
            "run the same command again to see what is there now"
        )
    if status == 429:
        return f"the Hub asks to slow down (429); {LATER}{said}"
    if status in BUSY:
        return f"the Hub is in trouble ({status}); {LATER}{said}"
    return f"the Hub refuses the push to {repo} ({status}){said}"


def _one_line(text: str, longest: int = 200) -> str:
    text = " ".join(text.split())
    return text if len(text) <= longest else text[: longest - 1] + "…"
