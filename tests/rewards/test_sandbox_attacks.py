"""More attacks on the sandbox, each refused by the kernel; the sandbox in a container; two hundred tests at once."""

import ctypes
import json
import os
import subprocess
import sys
import textwrap

import psutil
import pytest
from sandboxed import ROOT, sandboxed

from rewards.sandbox import Job, run, run_all

# What each group of system calls would be good for. Their arguments are 0: a filter comes before arguments are read.
CALLS = {
    "to outlive the test, or to multiply": "fork vfork clone clone3 execve execveat setsid setpgid",
    "to hurt others": "kill tkill tgkill rt_sigqueueinfo rt_tgsigqueueinfo pidfd_open pidfd_getfd pidfd_send_signal "
    "process_vm_readv process_vm_writev ptrace kcmp prlimit64 sched_setaffinity setpriority ioprio_set "
    "process_madvise",
    "to share memory": "shmget shmat shmctl semget semop msgget msgsnd mq_open memfd_create memfd_secret",
    "to talk": "socket socketpair connect bind listen sendto sendmsg recvfrom io_uring_setup io_uring_enter pipe "
    "pipe2 mknod mknodat",
    "to leave something on the disk": "creat truncate ftruncate fallocate copy_file_range sendfile splice tee link "
    "linkat symlink symlinkat rename renameat2 unlink unlinkat mkdir mkdirat rmdir chmod fchmod fchmodat chown fchown "
    "utimensat setxattr lsetxattr fsetxattr sync syncfs fsync",
    "to open what is closed": "open openat2 open_by_handle_at name_to_handle_at chroot pivot_root mount umount2 setns "
    "unshare fsopen move_mount open_tree",
    "to watch": "inotify_init inotify_init1 fanotify_init perf_event_open bpf userfaultfd syslog sysinfo ustat",
    "to keep secrets in the kernel": "keyctl add_key request_key",
    "to wait in another way": "epoll_create1 eventfd2 timerfd_create signalfd4 timer_create alarm setitimer pause",
    "to lift the locks": "seccomp prctl landlock_create_ruleset landlock_restrict_self capset setuid setgid setgroups "
    "setrlimit personality arch_prctl ioctl flock mlockall set_tid_address",
    "to break the machine": "reboot kexec_load init_module finit_module delete_module swapon swapoff acct iopl ioperm "
    "settimeofday clock_settime adjtimex sethostname setdomainname quotactl vhangup",
}
IN_PYTHON = {
    "a path alone, then opened": 'fd = os.open("/etc/passwd", os.O_PATH); os.open(f"/proc/self/fd/{fd}", os.O_RDONLY)',
    "a folder's path alone": 'os.open("passwd", os.O_RDONLY, dir_fd=os.open("/etc", os.O_PATH))',
    "up from a folder that may be read": 'open(os.path.dirname(os.__file__) + "/../" * 20 + "etc/passwd").read()',
    "a file without a name": 'os.open("/tmp", os.O_TMPFILE | os.O_RDWR)',
    "its own memory": 'open("/proc/self/mem", "r+b")',
    "its own map": 'open("/proc/self/maps").read()',
    "its own files": 'os.listdir("/proc/self/fd")',
    "a terminal": 'os.open("/dev/tty", os.O_RDONLY)',
    "the library, to be changed": "import mmap; f = os.open(os.__file__, os.O_RDONLY); "
    "mmap.mmap(f, 0, mmap.MAP_SHARED, mmap.PROT_WRITE)",
    "a compiled file": 'open(os.path.dirname(os.__file__) + "/__pycache__/os.x.pyc", "wb")',
    "a lease": "import fcntl; fcntl.fcntl(0, 1024, 0)",
    "a large pipe": "import fcntl; fcntl.fcntl(3, 1031, 2**20)",
    "a signal at each change": "import fcntl; fcntl.fcntl(0, 1026, 1)",
    "a lock that others would wait for": "import fcntl; fcntl.fcntl(0, fcntl.F_SETLK, bytes(32))",
}


def ends_of(attacks: dict[str, str], end: str) -> dict[str, bool]:
    """Attack -> whether it ended with that exception, each in a process of its own."""

    def job(lines: str) -> Job:
        code = f"import os\ntry:\n{textwrap.indent(lines, '    ')}\n    end = 'done'\n"
        return Job(
            "tests",
            f"{code}except BaseException as error:\n    end = type(error).__name__",
            test=f"assert end == {end!r}",
        )

    return dict(zip(attacks, run_all([job(lines) for lines in attacks.values()], 20.0, 200), strict=True))


@sandboxed
@pytest.mark.parametrize("purpose", CALLS)
def test_no_call(purpose):
    resolve = ctypes.CDLL("libseccomp.so.2").seccomp_syscall_resolve_name
    numbers = {name: resolve(name.encode()) for name in CALLS[purpose].split()}
    attacks = {
        name: f"import ctypes; libc = ctypes.CDLL(None, use_errno=True)\n"
        f"if libc.syscall({number}, 0, 0, 0, 0, 0, 0) == -1: raise OSError(ctypes.get_errno(), 'refused')"
        for name, number in numbers.items()
        if number >= 0  # this architecture, or this libseccomp, has no such call
    }
    assert len(attacks) > len(numbers) / 2
    assert [name for name, refused in ends_of(attacks, "PermissionError").items() if not refused] == []


@sandboxed
def test_no_way_around_in_python():
    assert [name for name, refused in ends_of(IN_PYTHON, "PermissionError").items() if not refused] == []


@sandboxed
def test_what_can_be_counted_ends():
    attacks = {
        "ten thousand files": "[os.dup(0) for _ in range(10_000)]",
        "memory that grows in its place": "import mmap; mmap.mmap(-1, 4096).resize(400 * 2**20)",
    }
    assert all(ends_of(attacks, "OSError").values())


# Python cannot be interrupted in the middle of these; each would pass in the end.
@sandboxed
@pytest.mark.parametrize(
    "lines",
    [
        "len(str(7 ** 10**8 % 10**7))",
        "import re; re.match('(a|aa)+$', 'a' * 60 + 'b')",
        "sum(range(10**12))",
        "import signal; signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65)); sum(range(10**12))",
    ],
)
def test_a_bomb_in_c_is_stopped(lines):
    assert not run(Job("tests", f"import sys; sys.set_int_max_str_digits(0); {lines}"), 1.0, 400)


# ------------------------------------------------------------ in a container
def confined(tmp_path, refused: list[str], program: str) -> str:
    (tmp_path / "program.py").write_text(textwrap.dedent(program))
    command = [
        sys.executable,
        str(ROOT / "tests/support/confined.py"),
        json.dumps(refused),
        str(tmp_path / "program.py"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip()


SCORED = """
from rewards import Code, RewardError
try:
    reward = Code(seconds=20.0, memory_mb=200)
    print(reward(["p"], ["def f(x): return 2 * x"], tests=[["assert f(2) == 4", "assert f(2) == 5"]]))
except RewardError as error:
    print(error)
"""


@sandboxed
@pytest.mark.parametrize(
    ("refused", "words"),
    [
        ([], "[0.5]"),  # Docker's own profile lets Landlock and seccomp through
        (["landlock_create_ruleset"], "it is not run; missing: Landlock (a kernel from 5.13 up"),
        (["pidfd_open"], "it is not run; missing: pidfd_open (a kernel from 5.3 up"),
        (["capset"], "it is not run; missing: dropping capabilities"),
        (["prctl"], "it is not run; missing: a signal at the parent's end"),
        (["seccomp", "prctl"], "it is not run; missing: "),
    ],
)
def test_in_a_container(tmp_path, refused, words):
    assert words in confined(tmp_path, refused, SCORED)


@sandboxed
@pytest.mark.slow
def test_two_hundred_at_once_in_a_container(tmp_path):
    """Good ones, wrong ones, some that hang and some that take all memory, each in a Python of its own."""
    program = """
    import os, psutil
    os.cpu_count = lambda: 200
    from rewards.sandbox import Job, run_all
    good = [Job("tests", f"def f(x): return x * {i}", test=f"assert f(2) == {2 * i}") for i in range(100)]
    bad = [Job("tests", f"def f(x): return x * {i}", test=f"assert f(2) == {2 * i + 1}") for i in range(60)]
    hang = [Job("tests", f"import time; time.sleep(100 + {i})") for i in range(20)]
    take = [Job("tests", f"blocks = [bytearray(2**20) for _ in range(1000 + {i})]") for i in range(20)]
    jobs = [*hang, *good, *take, *bad]
    assert run_all(jobs, 20.0, 150) == [job in good for job in jobs]
    assert not psutil.Process().children(recursive=True)
    print(len(jobs))
    """
    assert confined(tmp_path, [], program) == "200"
    assert not [child for child in psutil.Process().children() if "sandbox_runner" in " ".join(child.cmdline())]
