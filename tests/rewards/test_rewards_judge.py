"""The judge against a server over real sockets: what it is asked, what counts, keys, settings."""

import json
import threading

import pytest
from judge_server import TOKENS, block, by_length, logged, make, quick, serving

from rewards import Judge, RewardError, build_rewards

KEY = "sk-canary-0123456789"


@pytest.fixture
def server(monkeypatch, tmp_path):
    with quick(monkeypatch, tmp_path) as running:
        yield running


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
    ({"votes": 0}, "votes is 0; give a whole number from 1 to 1000"),
    ({"votes": 1e300}, "votes is 1e.300; give a whole number from 1 to 1000"),
    ({"url": "http://a..b/v1"}, "url is 'http://a..b/v1'; give an address"),
    ({"url": "http://\u2603.example/v1"}, "give an address"),
    ({"url": f"http://{'a' * 300}/v1"}, "give an address"),
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
