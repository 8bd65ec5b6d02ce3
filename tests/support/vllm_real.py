"""A real vLLM server on loopback: `vllm serve` of `.venv-vllm` (tests/tools/vllm_environment.py), on the CPU.

    with serving(base, log) as server:
        server.url
        server.kill(); server.start()   # at the same address, without any adapter

The environment is made where it is not there; a test that asks skips, with the reason, where it cannot be had.
"""

import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import vllm_environment

from pipeline.rollouts.vllm_server import VllmServer

PATIENCE = 600.0  # seconds until it is up; a minute on an idle core
# nobind: the thread stays on no core of its own, as others may use it
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
    "VLLM_SERVER_DEV_MODE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
}


def command() -> Path:
    """`vllm` of the environment; the test skips where it cannot be had."""
    try:
        return vllm_environment.command()
    except SystemExit as error:
        pytest.skip(str(error))


class Real:
    """`base`: its folder. `log`: file for what the server prints."""

    def __init__(self, base: Path, log: Path, *flags: str):
        self.base, self.log, self.flags = base, log, flags
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen | None = None

    def start(self) -> None:
        """Does not wait until it is up."""
        asked = ["--served-model-name", "base", "--dtype", "float32", "--enable-lora", "--max-lora-rank", "16"]
        asked += ["--max-loras", "2", "--logprobs-mode", "processed_logprobs", "--enforce-eager"]
        asked += ["--host", "127.0.0.1", "--port", str(self.port), *self.flags]
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | ENVIRONMENT
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                [command(), "serve", self.base, *asked],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                env=environment,
                start_new_session=True,
            )

    def kill(self) -> None:
        """At once, with the processes that it has started."""
        if self.process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None


@contextmanager
def serving(base: Path, log: Path, *flags: str) -> Iterator[Real]:
    server = Real(base, log, *flags)
    server.start()
    try:
        VllmServer(server.url, patience=PATIENCE).wait()
        yield server
    finally:
        server.kill()
