"""What a server has answered, kept on disk by what it was asked, so that nobody asks twice.

One SQLite file: SQLite's transactions hold against a kill at any moment and against several processes that write at
once. Of a question its SHA-256 alone is kept, of an answer its text.
"""

import hashlib
import json
import os
import sqlite3
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from .chat_server import Body, ChatServer, Failure, Reply

_PATIENCE = 60.0  # seconds for another process to finish its writing
_KIND = 0x504C4A31  # application_id: a file of this kind, in this form
_AT_ONCE = 500  # keys of one query


class CacheError(ValueError):
    """The file cannot be used, in words that go on after its name."""


def key_of(*question: Any) -> str:
    """The name of a question: the SHA-256 of its JSON, the keys of mappings sorted."""
    text = json.dumps(question, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


class ReplyCache:
    """Replies by key, in a file that is made when the first reply is kept (None: in memory alone).

    Raises:
        CacheError: from every method, where the file is of another kind, damaged, or cannot be written.
    """

    def __init__(self, path: Path | None):
        self.path = path
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._process = 0

    def get(self, keys: Iterable[str]) -> dict[str, Reply]:
        """The replies that are there."""
        if self.path is not None and self._connection is None and not self.path.exists():
            return {}
        keys = list(keys)
        found: dict[str, Reply] = {}
        with self._lock:
            for start in range(0, len(keys), _AT_ONCE):
                some = keys[start : start + _AT_ONCE]
                marks = ",".join("?" * len(some))
                # what is not of these types is damaged, and asked again
                kinds = "typeof(reply) = 'text' AND typeof(tokens) = 'integer'"
                rows = self._do(f"SELECT key, reply, tokens FROM replies WHERE key IN ({marks}) AND {kinds}", some)
                found |= {key: Reply(text, tokens) for key, text, tokens in rows}
        return found

    def put(self, key: str, reply: Reply) -> None:
        """Keeps a reply. Whoever asked had found none: what is there by now is another process's, or damaged."""
        with self._lock:
            self._do("INSERT OR REPLACE INTO replies VALUES (?, ?, ?)", [key, reply.text, reply.tokens])

    def _do(self, statement: str, values: list[Any]) -> list[tuple[Any, ...]]:
        try:
            return self._open().execute(statement, values).fetchall()
        except (sqlite3.Error, OSError, ValueError, TypeError, OverflowError) as error:
            raise CacheError(f"cannot be used ({error})") from None

    def _open(self) -> sqlite3.Connection:
        # a connection must not be taken over a fork
        if self._connection is None or self._process != os.getpid():
            if self.path is not None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                os.close(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600))  # for its owner alone
            # isolation_level None: each statement is a transaction of its own, on the disk when it returns
            name = ":memory:" if self.path is None else self.path
            opened = sqlite3.connect(name, _PATIENCE, isolation_level=None, check_same_thread=False)
            try:
                opened.execute("BEGIN IMMEDIATE")
                [(kind,)] = opened.execute("PRAGMA application_id").fetchall()
                if kind != _KIND:
                    if opened.execute("SELECT 1 FROM sqlite_master").fetchall():
                        raise ValueError("it is another program's")
                    opened.execute("CREATE TABLE replies (key TEXT PRIMARY KEY, reply TEXT, tokens INTEGER)")
                    opened.execute(f"PRAGMA application_id = {_KIND}")
                opened.execute("COMMIT")
            except BaseException:
                opened.close()
                raise
            self._connection, self._process = opened, os.getpid()
        return self._connection


class Remembering:
    """A server that is not asked what it has answered before.

    It also counts what all answers would have cost without the cache, and so knows what a step of a training takes.
    """

    def __init__(self, server: ChatServer, cache: ReplyCache):
        self.server, self.cache = server, cache
        self._wanted = (0, 0)  # requests, tokens
        self._marked: tuple[int, int] | None = None  # `_wanted` at the last call of `go_on`
        self._reserve = self._dearest = (0, 0)

    def ask_all(self, bodies: Sequence[Body]) -> list[Reply | Failure]:
        """An answer for each body; equal ones are asked once. Raises as `ChatServer.ask_all` and `ReplyCache` do."""
        keys = [key_of(self.server.url, body) for body in bodies]
        found: dict[str, Reply | Failure] = dict(self.cache.get(dict.fromkeys(keys)))
        missing = {key: body for key, body in zip(keys, bodies, strict=True) if key not in found}
        places = list(missing)
        if missing:
            answers = self.server.ask_all(list(missing.values()), lambda i, reply: self.cache.put(places[i], reply))
            found |= dict(zip(places, answers, strict=True))
        tokens = sum(reply.tokens for reply in found.values() if isinstance(reply, Reply))
        self._wanted = (self._wanted[0] + len(found), self._wanted[1] + tokens)
        return [found[key] for key in keys]

    def go_on(self) -> bool:
        """Whether the budget has room for one more step like the dearest so far, and then for what came before the
        first step (an exam, which comes again at the end). To be called before the first step and after each."""
        if self._marked is None:
            self._reserve = self._wanted
        else:
            step = [now - then for now, then in zip(self._wanted, self._marked, strict=True)]
            self._dearest = (max(self._dearest[0], step[0]), max(self._dearest[1], step[1]))
        self._marked = self._wanted
        return self.server.budget.allows(*(a + b for a, b in zip(self._dearest, self._reserve, strict=True)))
