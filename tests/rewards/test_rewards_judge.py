"""The judge against a server over real sockets: what it is asked, what counts, faults, cache, budget, keys."""

import json
import logging
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from email.utils import formatdate
from pathlib import Path

import pytest
from judge_server import TOKENS, block, by_length, serving

from rewards import Judge, RewardError, build_rewards
from rewards.chat_server import ChatServer

ROOT = Path(__file__).resolve().parents[2]
KEY = "sk-canary-0123456789"


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch, tmp_path):
    monkeypatch.setattr(ChatServer, "first_pause", 0.001)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("JUDGE_API_KEY", raising=False)


@pytest.fixture
def server():
    with serving(by_length) as running:
        yield running


def make(server, **options) -> Judge:
    return Judge(server.url, "a-model", **{"cache": False, "timeout": 20} | options)


def logged(judge: Judge, *texts, **columns) -> tuple[list, dict]:
    figures = {}
    scores = judge(*texts, log_metric=figures.__setitem__, **columns)
    return scores, {name.removeprefix("judge/"): value for name, value in figures.items()}


# ------------------------------------------------------------ scores
def test_marks_are_linear_from_the_lowest_to_the_highest(server):
    judge = make(server, scale=[1, 10])
    assert judge(["p"] * 3, ["x", "xxxx", "x" * 30]) == [0, pytest.approx(3 / 9), 1]
    asked = server.asked[0]
    assert (asked["model"], asked["temperature"], asked["max_tokens"]) == ("a-model", 0, 256)


def test_criteria_have_weights():
    marks = {"reason": "", "right": 5, "short": 1}
    with serving(lambda body: json.dumps(marks)) as server:
        rubric = [
            {"name": "right", "description": "The facts are right", "weight": 3},
            {"name": "short", "description": "Few words"},
        ]
        judge = make(server, rubric=rubric, scale=[1, 5])
        assert judge(["p"], ["a"]) == [pytest.approx((3 * 1 + 1 * 0) / 4)]
        system = server.asked[0]["messages"][0]["content"]
        assert "- right: The facts are right" in system and '"right": <mark>, "short": <mark>}' in system
        assert "a number from 1 (worst) to 5 (best)" in system
        schema = server.asked[0]["response_format"]["json_schema"]["schema"]
        assert schema["required"] == ["reason", "right", "short"] and schema["properties"]["short"]["maximum"] == 5


def test_pairs_are_asked_in_both_orders_and_a_judge_of_places_gives_ties(server):
    judge = make(server, against="sft")
    columns = {"sft": ["xx", "xx", "xx", None, ["xx", "not this"]]}
    scores, figures = logged(judge, ["p"] * 5, ["xxxx", "x", "xx ", "x", "xxx"], **columns)
    assert scores == [1, 0, 0.5, None, 1]  # equal texts are a tie without a question; no other answer: nothing to say
    assert len(server.asked) == 6 and figures["first"] == 0.5
    with serving(lambda body: '{"reason": "", "winner": "A"}') as biased:
        scores, figures = logged(make(biased, against="sft"), ["p"], ["xxxx"], sft=["x"])
        assert scores == [0.5] and figures["first"] == 1


def test_one_order_without_a_verdict_leaves_the_pair_out():
    with serving(lambda body: by_length(body) if block(body, "ANSWER A") == "mine" else "hm") as server:
        assert make(server, against="sft")(["p"], ["mine"], sft=["x"]) == [None]


def test_the_reference_is_shown(server):
    make(server, reference="references")(["p"], ["a"], references=[["good", "other"]])
    assert block(server.asked[0], "REFERENCE") == "good" and "as good in other words" in str(server.asked[0])


def test_without_reasons_none_is_asked_for(server):
    assert make(server, reasons=False)(["p"], ["x" * 10]) == [1]
    asked = server.asked[0]
    assert "reason" not in json.dumps(asked) and asked["response_format"]["json_schema"]["schema"]["required"] == [
        "score"
    ]


def test_several_votes_are_averaged_each_with_its_seed():
    with serving(lambda body: json.dumps({"reason": "", "score": 1 + 9 * body.get("seed", 0)})) as server:
        assert make(server, votes=2)(["p"], ["a"]) == [0.5]
        assert sorted(body["seed"] for body in server.asked) == [0, 1] and server.asked[0]["temperature"] == 0.7


def test_messages_are_shown_with_their_roles(server):
    prompt = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"}]
    make(server)([prompt + prompt[:1]], [[{"role": "assistant", "content": "abc"}]])
    assert block(server.asked[0], "TASK") == "USER: Hi\n\nASSISTANT: Yes?\n\nUSER: Hi"
    assert block(server.asked[0]) == "abc"


def test_what_cannot_be_read_is_left_out_and_counted():
    replies = {"a": '{"score": 10}', "b": "Ten points!", "c": '{"score": 11}', "d": '{"score": 1} or {"score": 10}'}
    with serving(lambda body: replies.get(block(body), "{}")) as server:
        scores, figures = logged(make(server), ["p"] * 4, list(replies))
        assert scores == [1, None, None, None] and figures["unreadable"] == 3 / 4 and figures["failed"] == 0
        assert figures["requests"] == 4 and figures["tokens"] == 4 * TOKENS


def test_the_form_is_asked_for_where_the_server_takes_it(server):
    server.takes_schema = False
    assert make(server)(["p"], ["x"]) == [0]
    assert ["response_format" in body for body in server.bodies] == [True, False, False]
    with pytest.raises(RewardError, match="status 422: Unexpected fields"):
        make(server, json_schema=True).prepare()


def test_no_more_requests_at_once_than_asked_for(server):
    judge = make(server, at_once=3)
    judge.prepare()
    server.together = threading.Barrier(3)  # three must be here together, or all of them fail
    assert judge(["p"] * 9, ["x" * i for i in range(1, 10)])[0] == 0
    assert server.most_at_once == 3


def test_it_stands_where_rewards_stand(server):
    spec = {"name": "judge", "url": server.url, "model": "m", "cache": False, "clip": [0, 0.5], "log_name": "polite"}
    [(reward, weight)] = build_rewards([spec | {"weight": 2}])
    figures = {}
    assert reward(["p"], ["x" * 10], log_metric=figures.__setitem__) == [0.5] and weight == 2
    assert reward.__name__ == "polite"


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


# ------------------------------------------------------------ keys
def test_the_key_comes_from_the_environment_and_is_struck_out(server, monkeypatch, tmp_path, caplog):
    monkeypatch.setenv("MY_API_KEY", KEY)
    judge = make(server, key_variable="MY_API_KEY", cache=str(tmp_path / "cache.sqlite"), retries=0)
    judge(["p"], ["x"])
    assert server.headers[0]["Authorization"] == f"Bearer {KEY}"
    server.fail(500)  # it repeats what was sent to it
    with pytest.raises(RewardError) as caught:
        judge(["p"], ["xx"])
    assert "you sent Bearer ***" in str(caught.value) and KEY not in str(caught.value) + caplog.text
    assert KEY not in repr(vars(judge)) and KEY.encode() not in (tmp_path / "cache.sqlite").read_bytes()


def test_names_of_keys_are_those_that_the_pipeline_strikes_out(monkeypatch):
    from pipeline.safety.redaction import redact

    for name in ("JUDGE_API_KEY", "OPENAI_API_KEY", "HF_TOKEN", "X_SECRET", "MY_APIKEY"):
        monkeypatch.setenv(name, KEY)
        assert Judge("http://localhost/v1", "m", key_variable=name).server._key == KEY
        assert redact(f"said {KEY}") == "said ***"
        monkeypatch.delenv(name)
        with pytest.raises(RewardError, match=f"key_variable is {name}, which is not set"):
            Judge("http://localhost/v1", "m", key_variable=name)
    with pytest.raises(RewardError) as caught:
        Judge("http://localhost/v1", "m", key_variable=KEY)
    assert KEY not in str(caught.value)
    with pytest.raises(RewardError) as caught:
        Judge(f"http://me:{KEY}@localhost/v1", "m")
    assert KEY not in str(caught.value) and "environment" in str(caught.value)


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


# ------------------------------------------------------------ settings
BAD = [
    ({"url": "localhost:8000"}, "url is 'localhost:8000'; give an address"),
    ({"url": "ftp://x/v1"}, "give an address"),
    ({"url": 3}, "url is 3"),
    ({"url": "http://x/v1?key=1"}, "password or a query"),
    ({"model": ""}, "model is ''"),
    ({"rubric": ""}, "give words, or a list of criteria"),
    ({"rubric": [{"name": "a b", "description": "x"}]}, "name 'a b' is not valid"),
    ({"rubric": [{"name": "a"}]}, "the criterion .* is not valid"),
    ({"rubric": [{"name": "a", "description": "x", "weight": 0}]}, "weight of a is 0"),
    ({"rubric": [{"name": "a", "description": "x"}] * 2}, "two criteria"),
    ({"rubric": [{"name": "reason", "description": "x"}]}, "not 'reason'"),
    ({"scale": [5, 1]}, "smaller number first"),
    ({"scale": [1, 10**400]}, "within a million"),
    ({"max_tokens": 10**400}, "max_tokens is 1000"),
    ({"body": {"stream": True}}, "without messages, stream, n"),
    ({"body": {"stop": {1, 2}}}, "give settings of a request"),
    ({"scale": 10}, "scale is 10"),
    ({"reference": "a", "against": "b"}, "give one of them"),
    ({"votes": 0}, "votes is 0; give a whole number from 1 up"),
    ({"votes": 3, "temperature": 0}, "for several votes more than 0"),
    ({"temperature": 3}, "give 0 to 2"),
    ({"timeout": 0}, "timeout is 0"),
    ({"retries": -1}, "retries is -1"),
    ({"at_once": 1.5}, "at_once is 1.5"),
    ({"max_requests": 0}, "max_requests is 0"),
    ({"cache": 3}, "cache is 3"),
    ({"json_schema": "maybe"}, "json_schema is 'maybe'; give auto or true or false"),
    ({"body": [1]}, "body is"),
    ({"against": 3}, "against is 3"),
]


@pytest.mark.parametrize(("options", "says"), BAD)
def test_bad_settings(options, says):
    with pytest.raises(RewardError, match=f"Reward 'judge': .*{says}"):
        Judge(**{"url": "http://localhost/v1", "model": "m"} | options)


def test_a_column_that_is_not_there(server):
    with pytest.raises(RewardError, match="no column 'sft'; it has sfts .did you mean 'sfts'"):
        make(server, against="sft")(["p"], ["x"], sfts=["a"])
