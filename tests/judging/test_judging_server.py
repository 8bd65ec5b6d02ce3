"""The page of a judge over real HTTP: what it takes, what it refuses, what it shows."""

import http.client
import json
from urllib.parse import urlsplit

import pytest
from judges import no_more_than, opened, serving

from pipeline.errors import UserError
from pipeline.judging import server


class Client:
    """One judge's requests, over real HTTP."""

    def __init__(self, url: str):
        self.parts = urlsplit(url)

    def __call__(self, method: str, path: str = "", body=None, host=None, token=None, kind="application/json"):
        connection = http.client.HTTPConnection(self.parts.hostname, self.parts.port, timeout=30)
        base = self.parts.path if token is None else f"/{token}/"
        headers = {"Host": host or self.parts.netloc} | ({"Content-Type": kind} if body is not None else {})
        body = json.dumps(body) if body is not None and not isinstance(body, str) else body
        connection.request(method, base + path, body, headers)
        answer = connection.getresponse()
        text = answer.read().decode()
        connection.close()
        return answer.status, json.loads(text) if answer.headers.get_content_type() == "application/json" else text


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "judged"


@pytest.fixture
def page(folder):
    with opened(folder) as verdicts, serving(verdicts) as (url, _):
        yield Client(url), verdicts


def test_only_loopback_and_a_new_token_each_time(folder):
    with opened(folder) as verdicts:
        tokens = set()
        for _ in range(2):
            running, url = server.start(server.Session(verdicts))
            assert running.socket.getsockname()[0] == "127.0.0.1" and urlsplit(url).hostname == "127.0.0.1"
            assert running.socket.getsockname()[1] == urlsplit(url).port
            tokens.add(urlsplit(url).path)
            running.server_close()
    assert len(tokens) == 2 and all(len(token) > 20 for token in tokens)


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example:80", "10.0.0.1"])
def test_a_request_by_another_name_is_refused(page, host):
    client, verdicts = page
    for method, path, body in (("GET", "", None), ("POST", "verdict", {"pair": 1, "verdict": "left"})):
        status, answer = client(method, path, body, host=host)
        assert status == 400 and "p0" not in str(answer)
    assert verdicts.rows == []
    assert client("GET", host="localhost:1234")[0] == 200  # through a tunnel the port is another


def test_without_the_token_nothing_is_shown_or_taken(page):
    client, verdicts = page
    for token in ("wrong", "%C3%A9", client.parts.path.strip("/")[:-1]):
        for method, path, body in (
            ("GET", "", None), ("POST", "verdict", {"pair": 1, "verdict": "left"}), ("POST", "undo", {"pair": 1}),
            ("POST", "finish", {"pair": 1}),
        ):  # fmt: skip
            status, answer = client(method, path, body, token=token)
            assert status == 403 and "open the one that the terminal shows" in answer
    assert verdicts.rows == []
    connection = http.client.HTTPConnection(client.parts.hostname, client.parts.port, timeout=30)
    connection.request("GET", "/")
    assert connection.getresponse().status == 404


def test_what_another_page_could_send_is_refused(page):
    """A form or a simple request of another page has no JSON content type; any other is preflighted, and fails."""
    client, verdicts = page
    for kind in ("text/plain", "application/x-www-form-urlencoded"):
        assert client("POST", "verdict", {"pair": 1, "verdict": "left"}, kind=kind)[0] == 415
    for body in ("{", [], {"pair": 1}, {"pair": "1", "verdict": "left"}, {"pair": True, "verdict": "left"},
                 {"pair": 1, "verdict": "after"}, {"pair": 1, "verdict": None}):  # fmt: skip
        assert client("POST", "verdict", body)[0] == 400, body
    assert client("POST", "verdict", {"pair": 1, "verdict": "left", "x": "x" * 20_000})[0] == 413
    assert client("GET", "verdict")[0] == 405
    assert verdicts.rows == []


def test_judging_over_http(page, folder):
    client, verdicts = page
    for number in range(1, 7):
        status, state = client("POST", "verdict", {"pair": number, "verdict": ["left", "right", "tie"][number % 3]})
        assert status == 200 and state["pair"] == number + 1
    assert state["prompt"] is None and verdicts.done
    assert client("POST", "verdict", {"pair": 7, "verdict": "left"})[0] == 409
    status, state = client("POST", "undo", {"pair": 7})
    assert status == 200 and state["pair"] == 6 and len(verdicts.rows) == 5
    shown = verdicts.pairs.pairs[5]
    sides = (shown.second, shown.first) if verdicts.second_left[5] else (shown.first, shown.second)
    assert [state[key][0]["text"] for key in ("prompt", "left", "right")] == [shown.prompt, *sides]
    assert len((folder / "verdicts/anna.jsonl").read_text().splitlines()) == 5


def test_a_second_click_or_window_judges_nothing_twice(page):
    client, verdicts = page
    assert client("POST", "verdict", {"pair": 1, "verdict": "left"})[0] == 200
    status, state = client("POST", "verdict", {"pair": 1, "verdict": "right"})
    assert status == 409 and state["pair"] == 2
    assert client("POST", "undo", {"pair": 1})[0] == 409
    assert [row["verdict"] for row in verdicts.rows] == ["left"]


def test_a_verdict_that_cannot_be_written_is_not_taken(page):
    client, verdicts = page
    with no_more_than(10):
        status, why = client("POST", "verdict", {"pair": 1, "verdict": "left"})
    assert status == 500 and "could not be written" in why and verdicts.rows == []
    assert client("POST", "verdict", {"pair": 1, "verdict": "left"})[0] == 200


def test_the_page_is_blind_and_escaped(folder):
    nasty = "</script><script>alert(1)</script><img src=x onerror=alert(1)> & {{ 7*7 }}"
    rows = [{"prompt": nasty, "before": nasty + "1", "after": nasty + "2"}]
    with opened(folder, rows) as verdicts, serving(verdicts) as (url, _):
        connection = http.client.HTTPConnection(urlsplit(url).hostname, urlsplit(url).port, timeout=30)
        connection.request("GET", urlsplit(url).path)
        answer = connection.getresponse()
        text = answer.read().decode()
        assert "<img" not in text and "alert(1)</script>" not in text and "{{ 7*7 }}" in text
        assert "before" not in text.split('id="state"')[1].split("</script>")[0] and "after" not in text
        policy = answer.headers["Content-Security-Policy"]
        nonce = policy.split("script-src 'nonce-")[1].split("'")[0]
        assert "default-src 'none'" in policy and "unsafe" not in policy and f'<script nonce="{nonce}">' in text
        assert answer.headers["Referrer-Policy"] == "no-referrer" and answer.headers["Cache-Control"] == "no-store"
        connection.request("GET", urlsplit(url).path)
        again = connection.getresponse()
        assert nonce not in again.read().decode()


def test_after_the_end_nothing_is_taken(folder):
    with opened(folder) as verdicts:
        session = server.Session(verdicts)
        assert session.act(1, "left")
        session.end()
        with pytest.raises(OSError, match="judging has ended"):
            session.act(2, "left")
        assert len(verdicts.rows) == 1


def test_finish_is_answered_and_then_the_server_stops(folder):
    with opened(folder) as verdicts, serving(verdicts) as (url, thread):
        assert Client(url)("POST", "finish", {"pair": 1}) == (200, {"finished": True})
        thread.join(timeout=30)
        assert not thread.is_alive()


def test_a_port_that_is_taken_is_named(folder):
    with opened(folder) as verdicts:
        first, url = server.start(server.Session(verdicts))
        with pytest.raises(UserError, match="port .* cannot be used .*: give another --port"):
            server.start(server.Session(verdicts), urlsplit(url).port)
        first.server_close()
