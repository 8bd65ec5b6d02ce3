"""What stand-in servers on loopback share: answers as JSON, the faults that any may have, a thread to run in."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class FaultyHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def _fails(self, fault: Any, headers: dict, over: threading.Event, message: str = "as ordered") -> bool:
        """Whether `fault` is one of those that need no answer; then it has been done. `over` ends a slow one."""
        if isinstance(fault, int):
            self._send(fault, {"error": {"message": message}}, headers)
        elif fault == "nonsense":
            self._send(200, "<html>It works!</html>")
        elif fault in ("drop", "slow"):
            if fault == "slow":
                over.wait(30)
            self._hang_up()
        else:
            return False
        return True

    def _send(self, status: int, answer: Any, headers: dict | None = None) -> None:
        content = answer.encode() if isinstance(answer, str) else json.dumps(answer).encode()
        self._head(status, len(content), headers or {})
        self.wfile.write(content)

    def _send_half(self, status: int, answer: Any, headers: dict) -> None:
        content = json.dumps(answer).encode()
        self._head(status, len(content), headers)
        self.wfile.write(content[: len(content) // 2])
        self._hang_up()

    def _head(self, status: int, length: int, headers: dict) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(length), **headers}.items():
            self.send_header(name, value)
        self.end_headers()

    def _hang_up(self) -> None:
        self.close_connection = True

    def log_message(self, *args) -> None:
        pass


@contextmanager
def running(server: ThreadingHTTPServer, over: threading.Event) -> Iterator[None]:
    """Inside, `server` answers; at the end `over` is set, so that what is slow ends."""
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield
    finally:
        over.set()
        server.shutdown()
        server.server_close()
        thread.join()
