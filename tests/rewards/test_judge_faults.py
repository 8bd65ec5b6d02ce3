"""The judge and a server that fails, a kill, a cache that two share, a budget that ends."""

import json
import logging
import os
import signal
import sqlite3
import subprocess
import sys
import time
from email.utils import formatdate
from pathlib import Path

import pytest
from judge_server import TOKENS, by_length, logged, make, quick

from rewards import Judge, RewardError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def server(monkeypatch, tmp_path):
    with quick(monkeypatch, tmp_path) as running:
        yield running


# ------------------------------------------------------------ faults
@pytest.mark.parametrize("fault", [429, 500, 503, "drop", "cut", "nonsense", "shape"])
def test_what_passes_is_tried_again(server, fault):
    judge = make(server, retries=2)
    judge.prepare()
    server.fail(fault, times=2)
    assert judge(["p"], ["x" * 10]) == [1] and len(server.asked) == 3


@pytest.mark.parametrize("fault", ["slow", "drops"])
def test_an_answer_that_takes_too_long_is_given_up(server, fault):
    judge = make(server, timeout=1, retries=0)
    judge.prepare()
    server.fail(fault)
    with pytest.raises(RewardError, match="did not answer within 1 seconds"):
        judge(["p"], ["x"])


def test_retry_after_is_waited_for_in_seconds_and_as_a_date(server):
    judge = make(server)
    judge.prepare()
    server.fail(429, {"Retry-After": "1"})
    judge(["p"], ["x"])
    assert server.times[-1] - server.times[-2] >= 1
    server.fail(503, {"Retry-After": formatdate(time.time() + 2, usegmt=True)})
    judge(["p"], ["xx"])
    assert server.times[-1] - server.times[-2] >= 0.9  # whole seconds: the date is 1 to 2 away
    server.fail(429, {"Retry-After": "9999"})  # nobody waits that long
    with pytest.raises(RewardError, match="status 429"):
        judge(["p"], ["xxx"])


def test_rows_without_an_answer_go_without_and_are_told(server, caplog):
    judge = make(server, retries=0, at_once=1)
    judge.prepare()
    server.fail(500)
    with caplog.at_level(logging.WARNING):
        scores, figures = logged(judge, ["p"] * 2, ["x", "x" * 10])
    assert sorted(scores, key=str) == [1, None] and figures["failed"] == 0.5 and figures["unreadable"] == 0
    assert "1 of 2 questions got no answer" in caplog.text


def test_a_question_that_the_server_refuses_costs_its_row_alone(server):
    judge = make(server, at_once=1)
    judge.prepare()
    server.fail(400)
    assert None in judge(["p"] * 2, ["x", "xx"]) and len(server.asked) == 2  # not tried again


@pytest.mark.parametrize("status", [401, 404, 302])
def test_a_server_that_refuses_us_ends_it_at_once(server, status):
    server.fail(status, {"Location": "http://127.0.0.1:1/"})
    with pytest.raises(RewardError) as caught:
        make(server)(["p"] * 5, list("abcde"))
    assert f"Reward 'judge': the judge a-model at {server.url} answers with status {status}" in str(caught.value)
    assert ("JUDGE_API_KEY is not set" in str(caught.value)) == (status == 401) and len(server.bodies) == 1


def test_nobody_there():
    with pytest.raises(RewardError, match="the judge m at http://127.0.0.1:9/v1 cannot be reached"):
        Judge("http://127.0.0.1:9/v1", "m", retries=1, cache=False).prepare()


# ------------------------------------------------------------ cache
def test_nothing_is_asked_twice_by_a_second_run(server):
    texts = ["p"] * 4, ["x", "xx", "x", "xxx"]
    first = make(server, cache=True)
    scores = first(*texts)
    assert scores[0] == scores[2] and len(server.asked) == 3  # equal ones once
    again = make(server, cache=True)
    assert again(*texts) == scores and len(server.asked) == 3
    make(server, cache=True, rubric="Something else")(*texts)
    assert len(server.asked) == 6
    path = Path(os.environ["XDG_CACHE_HOME"], "plumbline", "judge.sqlite")
    assert path.stat().st_mode & 0o077 == 0  # for its owner alone
    assert b"Say 2" not in path.read_bytes()


ASKS = """
import sys
sys.path.insert(0, {root!r})
from rewards import Judge
judge = Judge({url!r}, "m", cache={cache!r}, at_once=2)
print(judge(["p"] * {count}, ["x" * (i + 1) for i in range({count})]))
"""


def process(server, cache, count) -> subprocess.Popen:
    code = ASKS.format(root=str(ROOT), url=server.url, cache=str(cache), count=count)
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)


def test_a_kill_loses_what_was_under_way_alone(server, tmp_path):
    kept, killed = tmp_path / "c.sqlite", []

    def reply(body):
        if len(server.asked) > 20 and not killed:
            killed.append(running.send_signal(signal.SIGKILL))
        return by_length(body)

    server.reply = reply
    running = process(server, kept, 40)
    assert running.wait(60) == -signal.SIGKILL
    there = sqlite3.connect(kept).execute("SELECT COUNT(*) FROM replies").fetchone()[0]
    asked = len(server.asked)
    assert asked - 2 * 2 <= there <= asked  # two under way, and two more whose answers were perhaps not written yet
    again = process(server, kept, 40)
    assert len(json.loads(again.communicate(timeout=60)[0])) == 40
    assert len(server.asked) == asked + 40 - there


def test_two_processes_share_a_cache(server, tmp_path):
    both = [process(server, tmp_path / "c.sqlite", 60) for _ in range(2)]
    said = [running.communicate(timeout=60)[0] for running in both]
    assert said[0] == said[1] and [running.returncode for running in both] == [0, 0]
    asked = len(server.asked)
    assert process(server, tmp_path / "c.sqlite", 60).wait(60) == 0 and len(server.asked) == asked


@pytest.mark.parametrize("content", [b"no database, and longer than its head would be" * 40, b"SQLite format 3\x00"])
def test_a_file_that_is_no_cache_is_refused_and_left_alone(server, tmp_path, content):
    (tmp_path / "c").write_bytes(content)
    with pytest.raises(RewardError, match="the cache .*/c cannot be used .*; give another cache"):
        make(server, cache=str(tmp_path / "c"))(["p"], ["x"])
    assert (tmp_path / "c").read_bytes() == content


def test_another_programs_database_is_refused(server, tmp_path):
    other = sqlite3.connect(tmp_path / "c")
    other.execute("CREATE TABLE theirs (x)")
    other.close()
    with pytest.raises(RewardError, match="another program's"):
        make(server, cache=str(tmp_path / "c"))(["p"], ["x"])


# ------------------------------------------------------------ budget
def test_no_request_beyond_the_budget(server):
    judge = make(server, max_requests=4, at_once=2)
    assert judge(["p"] * 3, ["x", "xx", "xxx"])[0] == 0  # and one of prepare
    with pytest.raises(RewardError, match="max_requests 4; 4 requests and 40 tokens so far.* is spent; raise it"):
        judge(["p"], ["xxxx"])
    assert len(server.bodies) == 4 and judge(["p"], ["xx"])  # what was answered costs nothing
    judge = make(server, max_tokens=2 * TOKENS, at_once=1)
    with pytest.raises(RewardError, match="max_tokens 20"):
        judge(["p"] * 5, list("abcde"))
    assert len(server.bodies) == 6


def test_tries_are_requests(server):
    judge = make(server, max_requests=3, retries=5)
    judge.prepare()
    server.fail(500, times=9)
    with pytest.raises(RewardError, match="is spent"):
        judge(["p"], ["x"])
    assert len(server.bodies) == 3


def test_it_stops_before_a_step_that_may_not_be_paid_for(server):
    judge = make(server, max_requests=12)
    judge(["p"], ["x"])  # an exam: 2 with the question of prepare
    assert judge.reason_to_stop() is None
    judge(["p"] * 4, ["x" * i for i in range(2, 6)])
    assert judge.reason_to_stop() is None  # 6 are spent; a step of 4 and an exam of 1 have room
    judge(["p"] * 2, ["y", "yy"])
    assert "max_requests 12; 8 requests" in judge.reason_to_stop()  # the dearest step and the exam would make 13
    again = make(server, max_requests=12)
    again.load_state_dict(judge.state_dict())
    assert again.server.budget.requests == 8 and json.loads(json.dumps(judge.state_dict())) == judge.state_dict()


def test_several_processes_share_the_budget(server, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert make(server, max_requests=9).server.budget.max_requests == 4


def test_tokens_are_estimated_where_the_server_does_not_count(server):
    judge = make(server)
    judge.prepare()
    server.fail("uncounted")
    before = judge.server.budget.tokens
    judge(["p"], ["x"])
    characters = sum(len(message["content"]) for message in server.asked[0]["messages"])
    assert judge.server.budget.tokens - before == (characters + len('{"reason": "its length", "score": 1}')) // 4


@pytest.mark.parametrize("tokens", [10**30, -1, "many", True])
def test_what_a_server_says_of_tokens_cannot_break_the_cache(server, tmp_path, tokens):
    judge = make(server, cache=str(tmp_path / "cache.sqlite"))
    read = judge.server._read
    said = {"choices": [{"message": {"content": '{"reason": "r", "score": 10}'}}], "usage": {"total_tokens": tokens}}
    judge.server._read = lambda content, body: read(json.dumps(said).encode(), body)
    assert judge(["p"], ["x"]) == [1] and 0 < judge.server.budget.tokens < 10_000


@pytest.mark.parametrize(
    "column, value", [("tokens", "'many'"), ("tokens", "NULL"), ("reply", "NULL"), ("reply", "x'ff'")]
)
def test_a_damaged_row_of_the_cache_is_asked_again(server, tmp_path, column, value):
    cache = tmp_path / "cache.sqlite"
    assert make(server, cache=str(cache))(["p"], ["xxx"]) == [2 / 9]
    with sqlite3.connect(cache) as opened:
        opened.execute(f"UPDATE replies SET {column} = {value}")
    opened.close()
    before = len(server.asked)
    assert make(server, cache=str(cache))(["p"], ["xxx"]) == [2 / 9] and len(server.asked) == before + 1
    assert make(server, cache=str(cache))(["p"], ["xxx"]) == [2 / 9] and len(server.asked) == before + 1


def test_certificates_that_are_not_there_are_one_sentence(monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", "/nope.pem")
    with pytest.raises(
        RewardError, match="the judge m at https://judge.invalid/v1 cannot be asked .FileNotFoundError"
    ):
        Judge("https://judge.invalid/v1", "m", cache=False, retries=0)(["p"], ["a"])


def test_a_budget_is_enough_for_every_process(server, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(RewardError, match="max_requests is 3; give a whole number from 4 up"):
        make(server, max_requests=3)
