"""Asking a server behind HTTP, JSON both ways: many requests at once, through faults, within a budget. It knows
nothing of what is asked.

Retry-After: RFC 9110, 10.2.3.
"""

import json
import queue
import random
import threading
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import partial
from typing import Any, Generic, NamedTuple, TypeVar
from urllib.parse import urlsplit

import httpx2

Body = dict[str, Any]  # of a request
Answer = TypeVar("Answer")
Sent = TypeVar("Sent")
# Worth another try: too many requests, a server that is overloaded, restarting or slow.
PASSING = (408, 409, 425, 429, 500, 502, 503, 504, 529)
# About one question, not about the server: too long for its context, say.
OF_ONE = (400, 413, 422)
LONGEST_PAUSE = 120.0  # seconds between two tries; a server that asks for more is not waited for
CONNECTING = 30.0  # seconds until somebody takes the connection
LARGEST = 1 << 20  # bytes of an answer
_LOCAL = ("localhost", "127.0.0.1", "::1")


class ServerError(ValueError):
    """The server cannot be used as it is asked to be; in words that go on after its name ("the judge").

    Args: status: of its answer; None: there was none.
    """

    def __init__(self, said: str, status: int | None = None):
        super().__init__(said)
        self.status = status


class BudgetSpent(ValueError):
    """No further request may be sent."""


class Failure(NamedTuple):
    """A question that got no answer."""

    reason: str
    status: int | None = None  # of the last answer; None: there was none, or one that could not be read


class Passing(Exception):
    """Worth another try, after `pause` seconds at least."""

    def __init__(self, failure: Failure, pause: float = 0.0):
        super().__init__(failure.reason)
        self.failure, self.pause = failure, pause


class Budget:
    """Counts requests and tokens, and says when there are no more. All threads share one.

    Args: max_requests, max_tokens: None is no limit.
    """

    def __init__(self, max_requests: int | None = None, max_tokens: int | None = None):
        self.max_requests, self.max_tokens = max_requests, max_tokens
        self.requests = self.tokens = 0
        self._lock = threading.Lock()

    def allows(self, requests: int, tokens: int = 0) -> bool:
        """Whether so much more may be spent."""
        within = self.max_requests is None or self.requests + requests <= self.max_requests
        return within and (self.max_tokens is None or self.tokens + tokens <= self.max_tokens)

    def take(self) -> None:
        """Counts a request that is about to be sent; raises `BudgetSpent` where none may be."""
        with self._lock:
            if not self.allows(1, 1):
                raise BudgetSpent
            self.requests += 1

    def add(self, tokens: int) -> None:
        """Counts the tokens of an answer."""
        with self._lock:
            self.tokens += tokens


class JsonServer(Generic[Answer]):
    """A server and how it is asked; a subclass says where (`path`) and reads the answers (`_read`).

    Args:
        url: up to and without `path`, such as http://localhost:8000/v1.
        key: sent as `Authorization: Bearer`; struck out of everything that is said here.
        at_once: requests under way at the same time.
        timeout: seconds for one request from its start to the end of its answer.
        retries: further tries of a request that fails in passing.
        budget: what may be spent; each try is a request.
    """

    path = ""  # where bodies are posted to, behind `url`
    largest = LARGEST
    first_pause = 0.5  # seconds before the second try; doubled before each further one

    def __init__(
        self, url: str, key: str | None, at_once: int, timeout: float, retries: int, budget: Budget | None = None
    ):
        self.url, self._key = url.rstrip("/"), key
        self.at_once, self.timeout, self.retries = at_once, timeout, retries
        self.budget = budget or Budget()
        self._client: httpx2.Client | None = None
        self._chance = random.Random()  # not the one that a training is seeded with

    def ask_all(self, bodies: Sequence[Body], keep: Callable[[int, Answer], None]) -> list[Answer | Failure]:
        """An answer, or what went wrong, for each body.

        Args: keep: called with place and answer as soon as it is there, from another thread.

        Raises:
            ServerError: the server refuses this client, whatever is asked. BudgetSpent: what was answered was kept.
        """
        if not self.budget.allows(len(bodies)):
            raise BudgetSpent
        found: list[Answer | Failure] = [Failure("not asked")] * len(bodies)
        todo: queue.SimpleQueue[int] = queue.SimpleQueue()
        for i in range(len(bodies)):
            todo.put(i)
        stop = threading.Event()
        problems: list[BaseException] = []

        def work() -> None:
            while not stop.is_set():
                try:
                    i = todo.get_nowait()
                    answer = found[i] = self.ask(bodies[i], stop)
                    if not isinstance(answer, Failure):
                        keep(i, answer)
                except queue.Empty:
                    return
                except BaseException as error:
                    problems.append(error)
                    stop.set()

        # daemons: a second Ctrl-C must not wait for answers
        threads = [threading.Thread(target=work, daemon=True) for _ in range(min(self.at_once, len(bodies)))]
        for thread in threads:
            thread.start()
        try:
            for thread in threads:
                thread.join()
        finally:
            stop.set()
        if problems:
            raise problems[0]
        return found

    def ask(self, body: Body, stop: threading.Event | None = None) -> Answer | Failure:
        """The answer to one body, after as many tries as it takes; `stop` ends the pauses between them."""
        return self._patiently(partial(self._send, body), stop)

    def _patiently(self, send: Callable[[], Sent | Failure], stop: threading.Event | None = None) -> Sent | Failure:
        stop = stop or threading.Event()
        for further in range(self.retries, -1, -1):
            self.budget.take()
            try:
                return send()
            except Passing as error:
                pause = self.first_pause * 2 ** (self.retries - further) * self._chance.uniform(0.5, 1.0)
                pause = max(min(pause, LONGEST_PAUSE), error.pause)
                if not further or pause > LONGEST_PAUSE or stop.wait(pause):
                    return error.failure
        raise AssertionError("not reached")

    def _send(self, body: Body) -> Answer | Failure:
        content = self._content("POST", self.path, body)
        return content if isinstance(content, Failure) else self._read(content, body)

    def _read(self, content: bytes, body: Body) -> Answer:
        """What an answer says; raises `Passing` for one that says nothing."""
        raise NotImplementedError

    def _content(self, method: str, path: str, body: Body | None = None) -> bytes | Failure:
        """What the server sends with status 200."""
        try:
            status, headers, content = self._request(method, path, body)
        except httpx2.TimeoutException:
            raise Passing(Failure(f"did not answer within {self.timeout:g} seconds")) from None
        except httpx2.RequestError as error:  # nobody there, hung up in the middle, not HTTP
            said = self.printable(str(error))
            raise Passing(Failure(f"cannot be reached ({said or type(error).__name__})")) from None
        except (OSError, ValueError, httpx2.InvalidURL) as error:  # of the environment: certificates, a proxy
            said = self.printable(str(error))
            raise ServerError(f"cannot be asked ({type(error).__name__}: {said})") from None
        if status == 200:
            return content
        said = f"answers with status {status}{self._words(content)}"
        if status in PASSING:
            raise Passing(Failure(said, status), _seconds(headers.get("retry-after")))
        if status in OF_ONE:
            return Failure(said, status)
        raise ServerError(said, status)

    def _request(self, method: str, path: str, body: Body | None) -> tuple[int, httpx2.Headers, bytes]:
        """Status, headers and content; the clock runs to the end of the content, which may come in drops."""
        deadline = time.monotonic() + self.timeout
        content = None if body is None else json.dumps(body, ensure_ascii=False).encode("utf-8", "replace")
        with self._open().stream(method, f"{self.url}{path}", content=content) as answer:
            parts, size = [], 0
            for part in answer.iter_bytes():
                parts.append(part)
                size += len(part)
                if size > self.largest:
                    raise httpx2.RemoteProtocolError(f"an answer of more than {self.largest} bytes")
                if time.monotonic() > deadline:
                    raise httpx2.ReadTimeout("")
            return answer.status_code, answer.headers, b"".join(parts)

    def _open(self) -> httpx2.Client:
        if self._client is None:
            headers = {"Content-Type": "application/json"}
            if self._key:
                headers["Authorization"] = f"Bearer {self._key}"
            self._client = httpx2.Client(
                headers=headers,
                timeout=httpx2.Timeout(self.timeout, connect=min(self.timeout, CONNECTING)),
                limits=httpx2.Limits(max_connections=self.at_once),
                follow_redirects=False,  # the key is for this address
                trust_env=urlsplit(self.url).hostname not in _LOCAL,  # a proxy cannot reach this machine's own
            )
        return self._client

    def _words(self, content: bytes) -> str:
        """What an answer says of an error, ready to stand behind the status."""
        text = content[:2000].decode("utf-8", "replace")
        try:
            found = json.loads(text)
            found = found.get("error", found.get("detail", found.get("message", found)))
            text = str(found.get("message", found) if isinstance(found, dict) else found)
        except (ValueError, AttributeError, RecursionError):
            pass
        said = self.printable(text)
        return f": {said}" if said else ""

    def printable(self, text: str) -> str:
        """A text of the server's on one short line, without the key."""
        if self._key:
            text = text.replace(self._key, "***")
        text = "".join(char if char.isprintable() else " " for char in text)
        text = " ".join(text.split())
        return text if len(text) <= 200 else f"{text[:200]} …"


def _seconds(retry_after: str | None) -> float:
    """What Retry-After asks for, seconds or a date; 0 where it is neither."""
    if not retry_after:
        return 0.0
    try:
        seconds = float(retry_after)
        return seconds if 0 <= seconds < float("inf") else 0.0
    except ValueError:
        pass
    try:
        when = parsedate_to_datetime(retry_after)
    except ValueError:
        return 0.0
    when = when if when.tzinfo else when.replace(tzinfo=UTC)
    return max(0.0, (when - datetime.now(UTC)).total_seconds())
