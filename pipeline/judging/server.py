"""The page on which a judge judges: Flask, on the loopback address, for this person and this start alone.

- It listens on 127.0.0.1 only, and answers only to requests for 127.0.0.1 or localhost, so that no page of another
  site can reach it under a name of its own (DNS rebinding).
- Its address holds a token that is drawn at each start. Without it nothing is shown or taken, neither from another
  user of the machine nor from another page in the same browser (cross-site request forgery).
- The page is sent no names of sides, asks for nothing from elsewhere, and gets its texts as text.
"""

import errno
import hmac
import os
import secrets
import signal
import socket
import threading
import time
import webbrowser
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flask
import jinja2
from werkzeug.exceptions import HTTPException
from werkzeug.serving import BaseWSGIServer, WSGIRequestHandler, make_server

from pipeline.errors import UserError
from pipeline.judging.pairs import Text
from pipeline.judging.verdicts import VERDICTS, Verdicts

HOST = "127.0.0.1"
TEMPLATES = Path(__file__).parents[1] / "templates"


class Session:
    """What the page shows and does. One request at a time; a verdict on another pair than the shown one is refused."""

    def __init__(self, verdicts: Verdicts):
        self.verdicts, self.lock = verdicts, threading.Lock()
        self.shown, self.ended = time.monotonic(), False

    def show(self) -> dict[str, Any]:
        """The pair to judge: its number, and blind texts; these are None when all pairs are judged."""
        with self.lock:
            number, pairs = len(self.verdicts.rows), self.verdicts.pairs.pairs
            texts = dict.fromkeys(("prompt", "left", "right"))
            if number < len(pairs):
                prompt, left, right = pairs[number]
                if self.verdicts.second_left[number]:
                    left, right = right, left
                texts = {"prompt": _messages(prompt), "left": _messages(left), "right": _messages(right)}
            self.shown = time.monotonic()
            return {"pair": number + 1, "of": len(pairs)} | texts

    def act(self, pair: int, verdict: str | None) -> bool:
        """Takes a verdict on `pair`, or (None) takes the one before it back. False when `pair` is not the shown one.

        Raises:
            OSError: it could not be written, or judging has ended; nothing has changed then.
        """
        with self.lock:
            if self.ended:
                raise OSError(errno.ECANCELED, "judging has ended")
            if pair != len(self.verdicts.rows) + 1 or (self.verdicts.done and verdict):
                return False
            if verdict:
                self.verdicts.add(verdict, time.monotonic() - self.shown)
            else:
                self.verdicts.undo()
            return True

    def end(self) -> None:
        """What is being written is written; whatever comes later is refused."""
        with self.lock:
            self.ended = True


def _messages(text: Text) -> list[dict[str, str]]:
    """Who said what; a plain text is said by nobody."""
    if isinstance(text, str):
        return [{"role": "", "text": text.strip()}]
    return [{"role": message["role"], "text": message["content"].strip()} for message in text]


def make_app(session: Session, token: str, stop: Callable[[], None]) -> flask.Flask:
    """The page and its three actions; `stop` is called when the judge has finished and has been told so."""
    app = flask.Flask("plumbline", static_folder=None, template_folder=str(TEMPLATES))
    # Flask alone would not escape in a file that ends in .j2.
    app.jinja_options = {"autoescape": True, "undefined": jinja2.StrictUndefined}
    app.config |= {"TRUSTED_HOSTS": [HOST, "localhost"], "MAX_CONTENT_LENGTH": 10_000}
    page = "/<token>/"

    @app.url_value_preprocessor
    def check_token(endpoint, values):
        given = (values or {}).pop("token", "")
        if endpoint and not hmac.compare_digest(given.encode(), token.encode()):
            flask.abort(403, "This address is not, or no longer, valid: open the one that the terminal shows.")

    @app.get(page)
    def show():
        nonce = secrets.token_urlsafe(16)
        response = flask.make_response(flask.render_template("judge.html.j2", state=session.show(), nonce=nonce))
        response.headers["Content-Security-Policy"] = (
            f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; img-src data:; "
            "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )
        return response

    @app.post(page + "verdict")
    def take_verdict():
        asked = _asked()
        if asked.get("verdict") not in VERDICTS:
            flask.abort(400, f"verdict wants one of {', '.join(VERDICTS)}.")
        return _answer(asked["pair"], asked["verdict"])

    @app.post(page + "undo")
    def undo():
        return _answer(_asked()["pair"], None)

    @app.post(page + "finish")
    def finish():
        _asked()
        response = flask.jsonify(finished=True)
        response.call_on_close(stop)  # by then the answer has been sent
        return response

    def _asked() -> dict[str, Any]:
        asked = flask.request.get_json()
        if not isinstance(asked, dict) or type(asked.get("pair")) is not int:
            flask.abort(400, "wants an object with the number of the pair.")
        return asked

    def _answer(pair: int, verdict: str | None):
        try:
            taken = session.act(pair, verdict)
        except OSError as error:
            flask.abort(500, f"The verdict could not be written ({error.strerror}).")
        return session.show(), 200 if taken else 409

    @app.errorhandler(HTTPException)
    def say_why(error: HTTPException):
        return error.description or error.name, error.code or 500, {"Content-Type": "text/plain; charset=utf-8"}

    @app.after_request
    def keep_to_itself(response: flask.Response):
        response.headers |= {
            "Cache-Control": "no-store",
            "Cross-Origin-Resource-Policy": "same-origin",
            "Referrer-Policy": "no-referrer",  # the address holds the token
            "X-Content-Type-Options": "nosniff",
        }
        return response

    return app


class _Silent(WSGIRequestHandler):
    """Without a line in the terminal for each request; errors are still shown."""

    def log_request(self, code="-", size="-") -> None:
        pass


def start(session: Session, port: int = 0) -> tuple[BaseWSGIServer, str]:
    """A server that is ready, and the address of its page; `serve_forever` runs it, `shutdown` stops it.

    A thread for each connection, because browsers open some that they do not use; `Session` lets one in at a time.

    Raises:
        UserError: the port is taken.
    """
    try:
        listener = socket.create_server((HOST, port))
    except OSError as error:
        raise UserError(
            f"port {port} cannot be used ({os.strerror(error.errno or 0)}): give another --port, or 0 for a free one"
        ) from None
    token = secrets.token_urlsafe(16)
    app = make_app(session, token, lambda: server.shutdown())
    with listener:
        port = listener.getsockname()[1]
        server = make_server(HOST, port, app, threaded=True, request_handler=_Silent, fd=listener.fileno())
    return server, f"http://{HOST}:{port}/{token}/"


def serve(verdicts: Verdicts, port: int, open_browser: bool, log: Callable[[str], Any]) -> None:
    """Shows the page until the judge finishes, or Ctrl-C, a closed terminal or `kill` stops it. Main thread only."""
    session = Session(verdicts)
    server, url = start(session, port)
    before = {number: signal.signal(number, _interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        log(f"Judge here: {url}\nStop with Ctrl-C; every verdict is saved at once.")
        if open_browser:
            webbrowser.open(url)
        server.serve_forever()
    except KeyboardInterrupt:  # before serve_forever could take it
        server.server_close()
    finally:
        session.end()
        for number, handler in before.items():
            signal.signal(number, handler)


def _interrupt(*_) -> None:
    raise KeyboardInterrupt
