"""Pushing to the Hub when something fails: tried again where that helps, else one sentence without the token."""

import os
import re
import shutil
import signal
import subprocess
import threading
import traceback
from pathlib import Path

import hub_server
import pytest
from hub_runs import PUSHED, ROOT, launch, make_runs, push, recipe
from hub_server import READER, TOKEN
from huggingface_hub import constants

from pipeline.errors import UserError
from pipeline.hub.errors import redact

pytest_plugins = ["hub_server"]  # the fixtures server and waits


@pytest.fixture(scope="session")
def made(tmp_path_factory) -> Path:
    return make_runs(tmp_path_factory.mktemp("made"))


@pytest.fixture
def runs(made, tmp_path, monkeypatch) -> Path:
    """A copy, in the working directory, that may be changed."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return Path("runs/t")


STEPS = {
    "look": ("GET", "/api/models/me/a"),
    "create": ("POST", "/repos/create"),
    "preupload": ("POST", "/preupload/"),
    "batch": ("POST", "/objects/batch"),
    "upload": ("PUT", "/lfs/"),
    "verify": ("POST", "/lfs/verify"),
    "card": ("POST", "/validate-yaml"),
    "commit": ("POST", "/commit/"),
}


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("status", [429, 500])
def test_a_push_survives_two_failures_at_each_step(server, runs, waits, step, status):
    server.fail(*STEPS[step], status, times=2)
    push("me/a")
    assert set(server.files("me/a")) == PUSHED and len(server.repos["me/a"].commits) == 2
    assert len(waits) == 2


@pytest.mark.parametrize("step", STEPS)
def test_retry_after_is_obeyed(server, runs, waits, step):
    server.fail(*STEPS[step], 429, headers={"Retry-After": "30"})
    push("me/a")
    assert len(waits) == 1 and 30 <= waits[0] <= 31  # the client adds a second of its own


@pytest.mark.parametrize("step", STEPS)
def test_a_push_survives_a_lost_connection(server, runs, waits, step):
    server.cut(*STEPS[step])
    push("me/a")
    assert server.files("me/a")["adapter_model.safetensors"] == (runs / "ppo/adapter_model.safetensors").read_bytes()


@pytest.mark.parametrize("step", ["create", "upload", "commit"])
def test_a_lost_answer_does_nothing_twice(server, runs, waits, step):
    server.lose(*STEPS[step])
    push("me/a")
    assert set(server.files("me/a")) == PUSHED and len(server.repos["me/a"].commits) == 2
    push("me/a")  # and the files are known as ours
    assert len(server.repos["me/a"].commits) == 2


def test_after_a_push_that_broke_off_nothing_is_sent_twice(server, runs):
    server.fail("POST", "/commit/", 403)
    with pytest.raises(UserError, match="403"):
        push("me/a")
    sent = server.asked("PUT", "/lfs/")
    push("me/a")
    assert server.asked("PUT", "/lfs/") == sent and len(sent) == 1
    assert set(server.files("me/a")) == PUSHED


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_push_that_is_stopped_goes_on_where_it_was(server, runs, how):
    arrived, gone = threading.Event(), threading.Event()

    def hold():
        arrived.set()
        gone.wait(120)
        raise ConnectionAbortedError  # the commit is never made

    server.before("POST", "/commit/", hold)
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    flags = recipe("--run", "runs/t/ppo", "--repo", "me/a", "--what", "policy", "--yes")
    running = subprocess.Popen(flags, env=env, stderr=subprocess.PIPE, text=True)
    assert arrived.wait(120)
    running.send_signal(how)
    said = running.communicate(timeout=120)[1]
    gone.set()
    if how == signal.SIGINT:
        assert running.returncode == 2 and "error: the push to me/a was stopped; run it again" in said.splitlines()[-1]
    assert server.files("me/a") == {}
    sent = server.asked("PUT", "/lfs/")
    push("me/a")
    assert server.asked("PUT", "/lfs/") == sent and set(server.files("me/a")) == PUSHED


@pytest.mark.parametrize(
    "step, status, message",
    [
        ("look", 401, "the Hub does not accept the token (401): log in again with `hf auth login`"),
        ("create", 403, "this token may not write to me/a (403)"),
        ("preupload", 404, "me/a is not on the Hub, or this token may not see it (404)"),
        ("commit", 409, "somebody else changed me/a during the push (409), so nothing was overwritten"),
        ("upload", 500, "the Hub is in trouble (500); run the same command again later"),
        ("commit", 429, "the Hub asks to slow down (429); run the same command again later"),
        ("commit", 413, "the Hub refuses the push to me/a (413)"),
        ("batch", 403, "this token may not write to me/a (403)"),
    ],
)
def test_failures_that_stay_are_one_sentence_without_the_token(server, runs, waits, step, status, message, caplog):
    server.fail(*STEPS[step], status, times=99, echo=True)
    with pytest.raises(UserError) as caught:
        push("me/a")
    said = str(caught.value)
    assert said.startswith(message) and "\n" not in said
    everything = "".join(traceback.format_exception(caught.value)) + caplog.text
    assert TOKEN not in everything and "W" * 6 not in everything


def test_a_token_without_the_usual_beginning_is_struck_out_too(server, runs, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", READER)
    server.fail(*STEPS["look"], 403, echo=True)
    with pytest.raises(UserError) as caught:
        push("me/a")
    assert "odd: Bearer ***" in str(caught.value) and READER not in str(caught.value)


def test_redact():
    assert redact("a hf_abcdefgh b") == "a *** b"
    assert redact("Authorization: Bearer xyz, more") == "Authorization: Bearer ***, more"
    assert redact("say secret", "secret", None) == "say ***"
    assert redact("hf_hub and half_finished") == "hf_hub and half_finished"


@pytest.mark.parametrize(
    "token, repo, message",
    [
        ("hf_unknown", "me/a", "the Hub does not accept the token (401)"),
        (READER, "me/a", "this token may not write to me/a (403)"),
        (TOKEN, "other/a", "this token may not write to other/a (403)"),
        ("", "me/a", "me/a cannot be pushed without a token: log in with `hf auth login`, or set HF_TOKEN"),
    ],
)
def test_tokens_that_will_not_do(server, runs, monkeypatch, token, repo, message):
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(UserError, match=re.escape(message)):
        push(repo)
    assert server.repos == {}


def test_no_network(server, runs, monkeypatch, waits):
    with hub_server.serving() as gone:
        pass
    monkeypatch.setattr(constants, "ENDPOINT", gone.url)
    with pytest.raises(UserError, match=rf"{gone.url} cannot be reached \(ConnectError\): check the network"):
        push("me/a")
    assert waits == [1, 2, 4, 8]


def test_a_wait_of_an_hour_is_left_to_the_person(server, runs, waits):
    server.fail(*STEPS["commit"], 429, headers={"Retry-After": "3600"})
    with pytest.raises(UserError, match="asks to slow down"):
        push("me/a")
    assert waits == []


def test_an_answer_that_is_no_json(server, runs, waits):
    server.fail(*STEPS["card"], 200, times=99, body="")
    server.faults[-1].body = b"<html>"
    with pytest.raises(UserError, match="gave an answer that cannot be read"):
        push("me/a")


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags, env, message",
    [
        ([], {"HF_HUB_OFFLINE": "1"}, "error: nothing can be pushed in offline mode: unset HF_HUB_OFFLINE"),
        (["--debug"], {"HF_TOKEN": READER}, "UserError: this token may not write to me/a (403)"),
    ],
)
def test_the_recipe_fails_with_one_line_and_a_code(server, runs, flags, env, message):
    server.fail("POST", "/repos/create", 403, times=99, echo=True)
    done = launch("--run", "runs/t/ppo", "--repo", "me/a", "--yes", *flags, **env)
    assert done.returncode != 0 and message in done.stderr
    assert flags or len(done.stderr.strip().splitlines()) == 1
    assert READER not in done.stdout + done.stderr and TOKEN not in done.stdout + done.stderr
