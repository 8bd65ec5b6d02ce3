"""The chat as a person drives it: a pipe, a terminal, Ctrl-C."""

import io
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest
from chats import make_run
from rich.cells import cell_len

from pipeline.chat import speakers
from pipeline.chat import terminal_chat as chat
from pipeline.chat.speakers import load_run

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_model_folder):
    """A PPO run on plain text. Do not write into it."""
    return make_run(tmp_path_factory.mktemp("chat"), tiny_model_folder)


@pytest.fixture(scope="module")
def loaded(folder):
    return load_run(str(folder))


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "FORCE_COLOR": "1", "PYTHONIOENCODING": ""}


@pytest.mark.slow
def test_a_pipe_is_a_prompt_a_line(folder):
    command = [sys.executable, "-m", "pipeline.chat", str(folder), "--temperature", "0"]
    text = b"say red\n\n/example 2\nbroken \xff bytes\n/foo\n"
    done = subprocess.run(command, input=text, capture_output=True, env=environment(), timeout=300)
    out = done.stdout.decode()
    assert (done.returncode, done.stderr.decode()) == (0, "")
    assert [line for line in out.splitlines() if line.startswith("you> ")] == [
        "you> say red",
        "you> /example 2",
        "you> broken \ufffd bytes",
        "you> /foo",
    ]
    assert "Greedy, at most 5 tokens" in out and "error: there is no command /foo" in out
    assert "\x1b" not in out and max(cell_len(line) for line in out.splitlines()[1:]) <= 80


class Terminal:
    """A program in a terminal of its own, 80 columns wide."""

    def __init__(self, *command: str):
        import fcntl
        import termios

        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.environ.update(environment() | {"TERM": "xterm"})
            os.execv(command[0], command)
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 80, 0, 0))
        self.output = b""

    def read_until(self, mark: bytes, count: int = 1) -> None:
        """Reads until `mark` has come `count` times since the last `type`."""
        end = time.monotonic() + 240
        while self.output.count(mark) < count:
            assert time.monotonic() < end, self.output.decode(errors="replace")
            if select.select([self.fd], [], [], 1)[0]:
                try:
                    self.output += os.read(self.fd, 65536)
                except OSError:  # the program has ended
                    assert self.output.count(mark) >= count, self.output.decode(errors="replace")

    def type(self, text: bytes) -> None:
        self.output = b""
        os.write(self.fd, text)

    def end(self) -> int:
        """The exit status, when the program has ended by itself."""
        try:
            while chunk := os.read(self.fd, 65536):
                self.output += chunk
        except OSError:
            pass
        status = os.waitpid(self.pid, 0)[1]
        os.close(self.fd)
        return os.waitstatus_to_exitcode(status)


@pytest.mark.slow
def test_a_terminal(folder):
    terminal = Terminal(sys.executable, "-m", "pipeline.chat", str(folder))
    terminal.read_until(b"you> ")
    assert b"base, SFT and PPO on" in terminal.output
    terminal.type(b"/example 2\n")
    terminal.read_until(b"you> ")
    text = terminal.output.decode()
    assert "say blue =>" in text and text.count("keyword") == 3 and "Traceback" not in text
    terminal.type(b"\x03")  # at the prompt Ctrl-C leaves
    assert terminal.end() == 0 and b"Traceback" not in terminal.output


def test_ctrl_c_stops_an_answer_and_not_the_chat(loaded, monkeypatch, capsys):
    calls = []

    def slow(*args, **kwargs):
        calls.append(1)
        if len(calls) == 1:
            signal.raise_signal(signal.SIGINT)
        return [[2]]

    monkeypatch.setattr(chat, "load_run", lambda path, own_code: loaded)
    monkeypatch.setattr(speakers.evaluation, "complete", slow)
    monkeypatch.setattr(sys, "stdin", io.StringIO("one\ntwo\n"))
    chat.main(["x"])
    out = capsys.readouterr().out
    assert out.count("(stopped)") == 1 and out.count("(nothing)") == 3
    from pipeline.models.adapters import adapter_layers

    assert {tuple(layer._active_adapter) for layer in adapter_layers(loaded.model)} == {("default",)}
