"""What the sandbox of generated code must hold. What would hurt if it got out is kept small."""

import ctypes
import json
import os
import signal
import socket
import subprocess
import sys

import psutil
import pytest
from sandboxed import DOUBLE, ROOT, SMALL, outcome, sandboxed, score

from rewards.sandbox import PYTHON, Job, run_all


@pytest.fixture
def processes():
    """Fails if a process is left over. Orphans come to this process, not to init, so that they are seen."""
    libc = ctypes.CDLL(None)
    before = set(psutil.Process().children(recursive=True))
    libc.prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER
    yield
    left = set(psutil.Process().children(recursive=True)) - before
    libc.prctl(36, 0, 0, 0, 0)
    for process in left:
        process.kill()
    assert not left


# --- containment: files ---------------------------------------------------------------------------------------------
@sandboxed
@pytest.mark.parametrize(
    "lines",
    [
        "open('{file}').read()",
        "open('/etc/passwd').read()",
        "os.listdir('{folder}')",
        "os.listdir(os.path.dirname('{folder}'))",
        "os.listdir('/')",
        "open('/proc/self/environ').read()",
        "open('/proc/%d/environ' % os.getppid()).read()",
        "open('/proc/%d/mem' % os.getppid(), 'rb').read(1)",
        "open('{file}', 'w').write('broken')",
        "open('{folder}/new', 'w').close()",
        "open('new_file_of_generated_code', 'w').close()",
        "open('/tmp/new_file_of_generated_code', 'w').close()",
        "open('/dev/shm/new_file_of_generated_code', 'w').close()",
        "open(os.__file__, 'a').close()",
        "os.open('{file}', os.O_RDONLY | os.O_TRUNC)",
        "os.open(os.__file__, os.O_RDONLY | os.O_CREAT)",
        "os.truncate('{file}', 0)",
        "os.remove('{file}')",
        "os.rename('{file}', '{file}2')",
        "os.mkdir('{folder}/new')",
        "os.rmdir('{folder}/empty')",
        "os.symlink('{file}', '{folder}/new')",
        "os.link('{file}', '{folder}/new')",
        "os.chmod('{file}', 0o777)",
        "os.utime('{file}')",
        "os.memfd_create('hidden')",
    ],
)
def test_files_outside_are_neither_read_nor_changed(lines, tmp_path):
    victim, empty = tmp_path / "victim", tmp_path / "empty"
    victim.write_text("untouched")
    empty.mkdir()
    before = victim.stat()
    assert outcome(lines.format(file=victim, folder=tmp_path), "PermissionError")
    assert sorted(tmp_path.iterdir()) == [empty, victim]
    assert victim.read_text() == "untouched"
    assert (victim.stat().st_mode, victim.stat().st_mtime_ns) == (before.st_mode, before.st_mtime_ns)
    for folder in ("/", "/tmp", "/dev/shm", str(ROOT), os.getcwd()):
        assert not os.path.exists(os.path.join(folder, "new_file_of_generated_code"))


@sandboxed
def test_the_environment_is_empty(monkeypatch):
    monkeypatch.setenv("PLUMBLINE_TEST_SECRET", "sesame")
    code = "import os\nnames = set(os.environ)\nvalues = str(dict(os.environ))"
    tests = ["assert 'sesame' not in values", "assert names <= {'PYTHONHASHSEED', 'LC_CTYPE'}"]
    assert score(code, tests) == 1.0


@sandboxed
def test_open_files_of_the_parent_stay_with_the_parent():
    reading, writing = os.pipe()
    os.set_inheritable(writing, True)
    os.set_blocking(reading, False)
    try:
        assert outcome(f"os.write({writing}, b'hello')", "OSError")  # there is no such file in there
        with pytest.raises(BlockingIOError):
            os.read(reading, 1)
    finally:
        os.close(reading)
        os.close(writing)


# --- containment: processes, network, memory, time ------------------------------------------------------------------
@sandboxed
@pytest.mark.parametrize(
    "lines, end",
    [
        # Two to the fourth processes at most, if it should ever get out.
        ("for _ in range(4):\n    os.fork()", "PermissionError"),
        ("if os.fork() == 0:\n    time.sleep(30)\n    os._exit(0)", "PermissionError"),
        ("if os.fork() == 0:\n    os.setsid()\n    time.sleep(30)\n    os._exit(0)", "PermissionError"),
        ("import subprocess\nsubprocess.Popen(['/bin/sleep', '30'])", "PermissionError"),
        ("os.posix_spawn('/bin/sleep', ['sleep', '30'], {})", "PermissionError"),
        ("os.execv('/bin/sleep', ['sleep', '30'])", "PermissionError"),
        ("import threading\nthreading.Thread(target=time.sleep, args=(30,)).start()", "RuntimeError"),
        ("import multiprocessing\nmultiprocessing.Process(target=time.sleep, args=(30,)).start()", "PermissionError"),
    ],
)
def test_no_process_is_started_and_none_is_left(lines, end, processes):
    assert outcome(lines, end)


@sandboxed
def test_code_cannot_signal_its_parent():
    caught = []
    old = signal.signal(signal.SIGUSR1, lambda *_: caught.append(1))
    try:
        assert outcome(f"os.kill(os.getppid(), {int(signal.SIGUSR1)})", "PermissionError")
        assert outcome(f"os.kill({os.getpid()}, {int(signal.SIGUSR1)})", "PermissionError")
        # The kernel would send the signal itself, at the next byte in the pipe.
        owner = f"import fcntl\nfcntl.fcntl(1, fcntl.F_SETOWN, {os.getpid()})"
        assert outcome(owner, "PermissionError")
    finally:
        signal.signal(signal.SIGUSR1, old)
    assert not caught


@sandboxed
@pytest.mark.parametrize(
    "call",
    [
        "ptrace(0, 0, 0, 0)",
        "prctl(4, 1, 0, 0, 0)",
        "unshare(0x10000000)",
        "setpriority(0, 0, 5)",
        "syscall(425, 1, 0)",
    ],
)
def test_system_calls_that_computing_does_not_need_fail_also_through_ctypes(call):
    # Harmless forms of: tracing, process settings, new namespaces, priorities, io_uring.
    code = f"import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\nanswer = libc.{call}, ctypes.get_errno()"
    assert score(code, ["assert answer == (-1, 1)"]) == 1.0  # EPERM


@sandboxed
@pytest.mark.parametrize("lines", ["resource.setrlimit(resource.RLIMIT_AS, (-1, -1))", "os.nice(-1)", "os.setuid(1)"])
def test_limits_cannot_be_lifted(lines):
    assert outcome(f"import resource\n{lines}", "ValueError") or outcome(
        f"import resource\n{lines}", "PermissionError"
    )


@sandboxed
@pytest.mark.parametrize(
    "lines",
    [
        "socket.create_connection(('127.0.0.1', {port})).send(b'secret')",
        "socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'secret', ('127.0.0.1', {port}))",
        "socket.socket(socket.AF_UNIX).connect('/run/docker.sock')",
        "socket.socketpair()",
        "socket.socket().bind(('127.0.0.1', 0))",
    ],
)
def test_no_socket_is_opened(lines):
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(type=socket.SOCK_DGRAM) as datagrams:
        port = server.getsockname()[1]
        datagrams.bind(("127.0.0.1", port))
        assert outcome("import socket\n" + lines.format(port=port), "PermissionError")
        for listener in (server, datagrams):
            listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            server.accept()
        with pytest.raises(BlockingIOError):
            datagrams.recv(1)


@sandboxed
@pytest.mark.parametrize(
    "lines, end",
    [
        ("bytearray(10 * 2**30)", "MemoryError"),  # not touched, so harmless if it should ever be given
        ("blocks = [b'x' * 2**20 for _ in range(600)]", "MemoryError"),
        ("import mmap\nmmap.mmap(-1, 600 * 2**20)", "OSError"),
    ],
)
def test_memory_ends_at_its_limit(lines, end):
    assert outcome(lines, end, seconds=20, memory_mb=200)
    assert outcome("blocks = [b'x' * 2**20 for _ in range(100)]", "done", seconds=20, memory_mb=200)


@sandboxed
@pytest.mark.parametrize(
    "lines",
    [
        "while time.monotonic() < start + 20: pass",
        "time.sleep(20)",
        "import signal\nfor s in (1, 2, 3, 15): signal.signal(s, signal.SIG_IGN)\ntime.sleep(20)",
    ],
)
def test_what_takes_too_long_is_stopped(lines, processes):
    # Each of them would pass after 20 seconds.
    assert score(f"import time\nstart = time.monotonic()\n{lines}", ["assert True"], **SMALL) == 0.0


# Starts one job, waits until it is locked in, names its process and dies without a chance to clean up.
TRAINER = """
import json, os, signal, subprocess, sys
order = json.loads(sys.argv[1]) | {"parent": os.getpid()}
process = subprocess.Popen(sys.argv[2:], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={})
process.stdin.write(json.dumps(order).encode())
process.stdin.close()
assert json.loads(process.stdout.readline()) == {"locked": True}
print(process.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@sandboxed
def test_the_sandbox_dies_with_the_trainer(processes):
    job = Job("tests", "import time\ntime.sleep(20)")
    order = {"token": "", "seconds": 30, "memory_mb": 200, **job._asdict()}
    trainer = subprocess.run(
        [sys.executable, "-c", TRAINER, json.dumps(order), *PYTHON], capture_output=True, text=True
    )
    assert trainer.returncode == -signal.SIGKILL, trainer.stderr
    _, status = os.waitpid(int(trainer.stdout), 0)  # the orphan has come to this process, see `processes`
    assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL


# The same for a job among many, which runs in a fork of the Python that was started for all of them.
TRAINER_OF_MANY = """
import os, signal, sys, threading
import psutil
from rewards.sandbox import Job, run_all
jobs = [Job("tests", "while True: pass")]
threading.Thread(target=run_all, args=(jobs, 60, 200), daemon=True).start()
while len(found := psutil.Process().children(recursive=True)) < 2:
    pass
print(*(process.pid for process in found), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@sandboxed
def test_the_started_python_and_its_fork_die_with_the_trainer(processes):
    trainer = subprocess.run(
        [sys.executable, "-c", TRAINER_OF_MANY],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert trainer.returncode == -signal.SIGKILL, trainer.stderr
    started, fork = map(int, trainer.stdout.split())
    os.waitpid(started, 0)
    os.waitpid(fork, 0)


@sandboxed
def test_jobs_do_not_disturb_the_ones_after_them(processes):
    crash, loop, good = "import ctypes\nctypes.string_at({})", "while True: {}", "x = {}"
    # says that it is done, and goes on
    stays = 'import os\nos.write(3, b\'{{"token": "{0}"}}\\n\')\nwhile True: {0}'
    jobs = [Job("tests", code.format(number)) for number in range(3) for code in (crash, loop, stays, good)]
    assert run_all(jobs, 1.0, 200) == [False, False, False, True] * 3


@sandboxed
def test_equal_jobs_get_one_verdict():
    chance = Job("tests", "import os\nfair = os.urandom(1)[0] % 2", test="assert fair")
    assert len(set(run_all([chance] * 30, 5.0, 200))) == 1


@sandboxed
def test_a_crash_of_the_interpreter_is_a_failure():
    assert score("import ctypes\ndef f(x): ctypes.string_at(0)") == 0.0
    deep = "import sys\nsys.setrecursionlimit(10**9)\ndef f(x): return f([x])"
    assert score(deep, **SMALL) == 0.0


@sandboxed
def test_output_goes_nowhere(capfd):
    code = (
        "import sys\nfor _ in range(200):\n    print('x' * 10**6)\n    print('x' * 10**6, file=sys.stderr)\n" + DOUBLE
    )
    assert score(code) == 1.0
    assert capfd.readouterr() == ("", "")


# --- containment: the verdict ---------------------------------------------------------------------------------------
WRITE_EVERYWHERE = (
    "def shout(text):\n    for fd in range(64):\n        try: os.write(fd, text)\n        except OSError: pass\n"
)


@sandboxed
@pytest.mark.parametrize(
    "lines",
    [
        "sys.exit(0)",
        "os._exit(0)",
        "raise KeyboardInterrupt",
        "def f(x): sys.exit(0)",
        "def f(x): os._exit(0)",
        "import atexit\natexit.register(os._exit, 0)",
        "import builtins\nbuiltins.exec = builtins.compile = lambda *a, **k: None",
        "import builtins\nbuiltins.AssertionError = StopIteration\nAssertionError = StopIteration",
        "import builtins\nclass Nothing(Exception): pass\nbuiltins.BaseException = Nothing",
        "import json\njson.dumps = lambda *a, **k: '{\"passed\": true}'",
        "sys.modules['__main__'].passes = lambda *a, **k: True",
        "shout(b'{\"passed\": true}\\n')\nos._exit(0)",
        'shout(b\'{"token": "", "passed": true}\\n\')\nos._exit(0)',
        "shout(b'{\"locked\": true}\\n')",
        "shout(b'x' * 10**6)",
        "shout(b'\\xff\\n[1]\\n')\nos._exit(0)",
        "os.close(3)",
    ],
)
def test_a_pass_is_not_faked(lines, processes):
    code = f"import os, sys\n{WRITE_EVERYWHERE}def f(x): return 0\n{lines}"
    assert score(code, ["assert f(2) == 4"], **SMALL) == 0.0


@sandboxed
def test_one_test_does_not_see_what_another_did():
    code = "seen = []\ndef f(x):\n    seen.append(x)\n    return len(seen)"
    assert score(code, ["assert f(0) == 1", "assert f(0) == 1"]) == 1.0
