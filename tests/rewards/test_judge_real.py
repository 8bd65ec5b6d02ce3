"""The judge with a real model behind a real server: SmolLM2-135M-Instruct and `transformers serve`.

A model of this size is no judge of anything; what is measured here is that the way to it holds, and what the fence
does to it.
"""

import importlib.util
import os
import socket
import subprocess
import sys

import pytest
import smollm2

from rewards import Judge

pytestmark = pytest.mark.slow
COLOURS = "Name a colour."


@pytest.fixture(scope="module")
def model():
    return smollm2.folder()


@pytest.fixture(scope="module")
def url(model, tmp_path_factory):
    """`transformers serve` with the model; who asks waits until it is up."""
    missing = [name for name in ("fastapi", "uvicorn", "openai") if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"transformers serve needs {', '.join(missing)}: pip install 'transformers[serving]'")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", str(model), "--host", "127.0.0.1"]
    command += ["--port", str(port), "--device", "cpu", "--dtype", "float32"]
    log = tmp_path_factory.mktemp("serve") / "log"
    with log.open("w") as file:
        server = subprocess.Popen(command, stdout=file, stderr=file, env=os.environ | {"HF_HUB_OFFLINE": "1"})
        try:
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            server.terminate()
            server.wait(60)


def make(url, model, **options) -> Judge:
    return Judge(url, str(model), **{"cache": False, "retries": 8, "answer_tokens": 60, "at_once": 2} | options)


def test_it_marks_through_the_whole_way(url, model, tmp_path):
    judge = make(url, model, cache=str(tmp_path / "c.sqlite"), rubric="Is the answer a colour?")
    figures = {}
    texts = [COLOURS] * 4, ["Blue.", "A chair.", "Green.", "I do not know."]
    scores = judge(*texts, log_metric=figures.__setitem__)
    assert figures["judge/failed"] == 0 and figures["judge/requests"] == 4 and figures["judge/tokens"] > 4 * 100
    assert sum(score is None for score in scores) == 4 * figures["judge/unreadable"]
    assert all(score is None or 0 <= score <= 1 for score in scores)
    print(scores, figures)
    requests = judge.server.budget.requests
    assert judge(*texts) == scores and judge.server.budget.requests == requests
