"""A chat server on loopback, in this process, over real sockets: it answers as it is told and fails as it is told.

with serving(reply) as server:            # reply(body) -> what the model says
    server.fail(429, {"Retry-After": "1"}) # the next request; further ones wait behind it
    server.fail("cut")                     # half an answer, then it hangs up
    server.fail("drop")                    # hangs up without an answer
    server.fail("nonsense") / "slow" / "drops"
    server.bodies, server.headers, server.most_at_once
"""

import json
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import ThreadingHTTPServer
from typing import Any

from faulty_http import FaultyHandler, running

from rewards import Judge
from rewards.chat_server import ChatServer

TOKENS = 10  # of each answer, as it says


class JudgeServer:
    def __init__(self, reply: Callable[[dict], str]):
        self.reply, self.url = reply, ""
        self.faults: deque[tuple[Any, dict]] = deque()
        self.bodies: list[dict] = []
        self.headers: list[dict] = []
        self.times: list[float] = []
        self.under_way = self.most_at_once = 0
        self.takes_schema = True
        self.together: threading.Barrier | None = None  # that many requests must be here at once
        self.lock, self.over = threading.Lock(), threading.Event()

    def fail(self, fault: int | str, headers: dict | None = None, times: int = 1) -> None:
        self.faults += [(fault, headers or {})] * times

    @property
    def asked(self) -> list[dict]:
        """The bodies of what was asked about, without the question of `prepare`."""
        return [body for body in self.bodies if "Say 2." not in body["messages"][1]["content"]]


class _Handler(FaultyHandler):
    server_: JudgeServer

    def do_POST(self) -> None:
        server = self.server_
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with server.lock:
            server.bodies.append(body)
            server.headers.append(dict(self.headers))
            server.times.append(time.monotonic())
            server.under_way += 1
            server.most_at_once = max(server.most_at_once, server.under_way)
            fault, headers = server.faults.popleft() if server.faults else (None, {})
        try:
            if server.together is not None:
                server.together.wait(30)
            self._answer(body, fault, headers)
        finally:
            with server.lock:
                server.under_way -= 1

    def _answer(self, body: dict, fault: Any, headers: dict) -> None:
        server = self.server_
        if self.path != "/v1/chat/completions":
            return self._send(404, {"error": {"message": "no such page"}})
        if fault is None and "response_format" in body and not server.takes_schema:
            return self._send(422, {"detail": "Unexpected fields in the request: {'response_format'}"})
        secret = self.headers.get("Authorization", "")
        if self._fails(fault, headers, server.over, f"as ordered; you sent {secret}"):
            return
        if fault == "shape":
            return self._send(200, {"choices": [{"message": {"content": [1]}}]})
        answer = {
            "choices": [{"message": {"role": "assistant", "content": server.reply(body)}, "finish_reason": "stop"}],
            "usage": {"total_tokens": TOKENS},
        }
        if fault == "uncounted":
            del answer["usage"]
        if fault == "cut":
            return self._send_half(200, answer, headers)
        if fault == "drops":  # a byte at a time, each in time and all together not
            content = json.dumps(answer).encode()
            self._head(200, len(content), headers)
            for i in range(len(content)):
                if server.over.wait(0.05):
                    break
                self.wfile.write(content[i : i + 1])
            return self._hang_up()
        self._send(200, answer, headers)


@contextmanager
def serving(reply: Callable[[dict], str]) -> Iterator[JudgeServer]:
    state = JudgeServer(reply)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"server_": state}))
    server.handle_error = lambda *args: None  # who hangs up on us has done so on purpose
    server.daemon_threads = True
    state.url = f"http://127.0.0.1:{server.server_port}/v1"
    with running(server, state.over):
        yield state


def block(body: dict, name: str = "ANSWER") -> str:
    """What stands in the last fence of that name, as the judge was shown it."""
    text = body["messages"][1]["content"]
    start = text.rindex(f"BEGIN {name} ") + len(f"BEGIN {name} ") + 12 + 1
    return text[start : text.rindex(f"\nEND {name} ")]


def by_length(body: dict) -> str:
    """A judge that gives a mark for each character, and prefers the longer answer."""
    if "BEGIN ANSWER A " not in body["messages"][1]["content"]:
        return json.dumps({"reason": "its length", "score": min(10, max(1, len(block(body))))})
    first, second = block(body, "ANSWER A"), block(body, "ANSWER B")
    winner = "tie" if len(first) == len(second) else "A" if len(first) > len(second) else "B"
    return json.dumps({"reason": "its length", "winner": winner})


@contextmanager
def quick(monkeypatch, tmp_path) -> Iterator[JudgeServer]:
    """A server that judges by length; tries follow each other at once, and the cache lies in `tmp_path`."""
    monkeypatch.setattr(ChatServer, "first_pause", 0.001)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("JUDGE_API_KEY", raising=False)
    with serving(by_length) as server:
        yield server


def make(server: JudgeServer, **options) -> Judge:
    return Judge(server.url, "a-model", **{"cache": False, "timeout": 20} | options)


def logged(judge: Judge, *texts, **columns) -> tuple[list, dict]:
    """The scores, and what the reward logs."""
    figures = {}
    scores = judge(*texts, log_metric=figures.__setitem__, **columns)
    return scores, {name.removeprefix("judge/"): value for name, value in figures.items()}
