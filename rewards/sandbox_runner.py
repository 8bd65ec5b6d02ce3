"""Locks its own process in for good, then runs one piece of generated code. Started by sandbox.py, never imported.

With `--serve` it does so in a fork of itself for each job that comes, so that Python starts once (`serve`).

Reads one job as JSON from stdin and writes two lines of JSON to stdout: `{"locked": true}` (or `{"error": ...}`, and
nothing is run), then the verdict `{"token": ..., "passed": ...}`. It stands alone: the Python that runs it is started
without site-packages, so that generated code sees the standard library and nothing else.

What holds the code is the kernel, not Python: from `lock` on, no code in this process can undo it.
"""

import ast
import ctypes
import errno
import fcntl
import json
import os
import resource
import select
import signal
import socket
import sys
import types

PR_SET_PDEATHSIG, PR_SET_NO_NEW_PRIVS = 1, 38
# System calls 444 to 446 are Landlock's on every architecture.
LANDLOCK_CREATE_RULESET, LANDLOCK_ADD_RULE, LANDLOCK_RESTRICT_SELF = 444, 445, 446
LANDLOCK_RULE_PATH_BENEATH = 1
READ_FILE, READ_DIR, ALL_RIGHTS = 1 << 2, 1 << 3, (1 << 13) - 1  # the rights of Landlock's first version
SCMP_ACT_ALLOW, SCMP_ACT_ERRNO = 0x7FFF0000, 0x00050000
SCMP_CMP_EQ, SCMP_CMP_MASKED_EQ = 4, 7

# What can be read: the standard library and the shared libraries that it loads. Nothing can be written.
READABLE = [
    *sys.path,
    f"{sys.base_prefix}/lib",
    *("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/etc/ld.so.cache", "/usr/share/zoneinfo", "/etc/localtime"),
]
# What pure computation needs. Whatever is not named fails with EPERM: processes and threads, exec, sockets, signals to
# others, ptrace, pipes, shared memory, every change to a file or folder, and what kernels to come will add.
SYSTEM_CALLS = """
    read pread64 write close lseek fstat newfstatat stat lstat statx access faccessat faccessat2 getcwd chdir
    getdents64 readlink readlinkat dup dup2 dup3 brk mmap munmap mprotect mremap futex rt_sigaction rt_sigprocmask
    rt_sigreturn sigaltstack restart_syscall sched_yield sched_getaffinity clock_gettime clock_getres
    clock_nanosleep nanosleep gettimeofday time times getrusage getrandom getpid getppid gettid getuid geteuid
    getgid getegid uname exit exit_group
""".split()
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
# fcntl could otherwise make the kernel send signals to other processes (F_SETOWN), or give pipes large buffers.
FCNTL_COMMANDS = [fcntl.F_DUPFD, fcntl.F_DUPFD_CLOEXEC, fcntl.F_GETFD, fcntl.F_SETFD, fcntl.F_GETFL]
# Calls allowed for some arguments only, if any one rule holds: (name, position of the argument, comparison, operands).
PARTLY_ALLOWED = [
    ("openat", 2, SCMP_CMP_MASKED_EQ, (WRITING, 0)),
    *(("fcntl", 1, SCMP_CMP_EQ, (command, 0)) for command in FCNTL_COMMANDS),
]


class Comparison(ctypes.Structure):
    """`struct scmp_arg_cmp` of libseccomp."""

    _fields_ = [("arg", ctypes.c_uint), ("op", ctypes.c_int), ("a", ctypes.c_uint64), ("b", ctypes.c_uint64)]


class PathBeneath(ctypes.Structure):
    """`struct landlock_path_beneath_attr`."""

    _pack_ = 1
    _fields_ = [("allowed_access", ctypes.c_uint64), ("parent_fd", ctypes.c_int32)]


def lock(parent: int, seconds: float, memory_mb: int) -> None:
    """Shuts this process in; `OSError` if any one of the locks is not to be had."""
    try:
        seccomp = ctypes.CDLL("libseccomp.so.2")
    except OSError as error:
        raise OSError(f"libseccomp, in the package libseccomp2 or libseccomp ({error})") from None
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    _check("a signal at the parent's end", libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0))
    if os.getppid() != parent:  # it ended before that
        os._exit(1)
    limit_resources(seconds, memory_mb)
    drop_capabilities(libc)
    _check("no_new_privs", libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    limit_files(libc)
    limit_system_calls(seccomp)


def limit_resources(seconds: float, memory_mb: int) -> None:
    """Memory, and what else can be counted. It is one process: its address space is all it can take."""
    limits = {
        resource.RLIMIT_AS: memory_mb * 2**20,
        resource.RLIMIT_CPU: int(seconds) + 5,  # the parent's clock comes first
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_NOFILE: 64,
    }
    for what, most in limits.items():
        try:
            hard = resource.getrlimit(what)[1]
            most = most if hard == resource.RLIM_INFINITY else min(most, hard)
            resource.setrlimit(what, (most, most))
        except OSError as error:
            raise OSError(f"a limit on resources ({what} to {most}): {error}") from None


def drop_capabilities(libc: ctypes.CDLL) -> None:
    """For root: what is left is the name. For others nothing changes."""
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # version 3, this process
    _check("dropping capabilities", libc.capset(header, (ctypes.c_uint32 * 6)()))


def limit_files(libc: ctypes.CDLL) -> None:
    """Landlock: nothing but READABLE can be opened or listed, nothing at all written, made, moved or removed."""
    attributes = ctypes.c_uint64(ALL_RIGHTS)
    ruleset = libc.syscall(LANDLOCK_CREATE_RULESET, ctypes.byref(attributes), ctypes.c_size_t(8), 0)
    _check("Landlock (a kernel from 5.13 up that has it enabled)", ruleset)
    for path in filter(os.path.exists, READABLE):
        rights = READ_FILE | READ_DIR if os.path.isdir(path) else READ_FILE
        rule = PathBeneath(rights, os.open(path, os.O_PATH))
        added = libc.syscall(LANDLOCK_ADD_RULE, ruleset, LANDLOCK_RULE_PATH_BENEATH, ctypes.byref(rule), 0)
        _check(f"Landlock ({path})", added)
        os.close(rule.parent_fd)
    _check("Landlock", libc.syscall(LANDLOCK_RESTRICT_SELF, ruleset, 0))
    os.close(ruleset)


def limit_system_calls(library: ctypes.CDLL) -> None:
    """seccomp, by way of libseccomp: only SYSTEM_CALLS and PARTLY_ALLOWED, everything else fails with EPERM."""
    library.seccomp_init.restype = ctypes.c_void_p
    add = library.seccomp_rule_add_array
    add.argtypes = [ctypes.c_void_p, ctypes.c_uint32, ctypes.c_int, ctypes.c_uint, ctypes.POINTER(Comparison)]

    rules = ctypes.c_void_p(library.seccomp_init(ctypes.c_uint32(SCMP_ACT_ERRNO | errno.EPERM)))
    if not rules:
        raise OSError("seccomp")
    calls: list[tuple[str, list[Comparison]]] = [(name, []) for name in SYSTEM_CALLS]
    calls += [(name, [Comparison(argument, op, *values)]) for name, argument, op, values in PARTLY_ALLOWED]
    for name, comparisons in calls:
        number = library.seccomp_syscall_resolve_name(name.encode())
        if number < 0:  # unknown to this architecture, or to this libseccomp
            continue
        code = add(rules, SCMP_ACT_ALLOW, number, len(comparisons), (Comparison * len(comparisons))(*comparisons))
        _check(f"a seccomp rule for {name}", code, -code)
    code = library.seccomp_load(rules)
    _check("seccomp (filters of system calls)", code, -code)


def _check(what: str, result: int, error: int | None = None) -> None:
    if result < 0:
        raise OSError(f"{what}: {os.strerror(ctypes.get_errno() if error is None else error)}")


def passes(check: str, code: str, setup: str, test: str) -> bool:
    """Whether the code parses, compiles, or runs together with its test to the end."""
    try:
        if not ast.parse(code).body:  # an empty text is no program
            return False
        if check == "parses":
            return True
        program = compile(code, "<code>", "exec", dont_inherit=True)
        if check == "compiles":
            return True
        before, after = compile(setup, "<setup>", "exec"), compile(test, "<test>", "exec")
        # A real module of another name than __main__: what stands under `if __name__ == "__main__"` is not run.
        module = sys.modules["generated"] = types.ModuleType("generated")
        execute, namespace = exec, module.__dict__  # in hand before the program runs, which may patch builtins
        execute(before, namespace)
        execute(program, namespace)
        execute(after, namespace)
        return True
    except BaseException:  # SystemExit, KeyboardInterrupt and MemoryError are failures like any other
        return False


def main() -> None:
    job = json.load(sys.stdin)
    answers = os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(null, standard)
    os.close(null)
    # All that is needed afterwards is taken in hand now: what generated code patches has no part in the verdict.
    token = job.pop("token")
    verdict = {passed: _line(token=token, passed=passed) for passed in (True, False)}
    write, leave = os.write, os._exit
    try:
        lock(job.pop("parent"), job.pop("seconds"), job.pop("memory_mb"))
    except (OSError, MemoryError) as error:
        write(answers, _line(error=str(error) or "memory"))
        leave(1)
    write(answers, _line(locked=True))
    write(answers, verdict[passes(**job)])
    leave(0)


def serve() -> None:
    """Runs `main` in a fork of this process for each pair of files that comes: an order to read, answers to write.

    This process reads no order and runs nothing that is not ours; it only saves each job the start of Python. The fork
    locks itself in like a Python of its own, and has no file of this process: not the socket, not another job's pipe.
    When the other end of the socket is closed, the fork is killed, if there is one, and this process ends.
    """
    control = socket.socket(fileno=os.dup(0))
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    lacking = None
    try:
        os.close(os.pidfd_open(os.getpid()))
    except OSError as error:  # an older container's filter
        lacking = _line(
            error=f"pidfd_open (a kernel from 5.3 up, and a container that lets it through): {error.strerror}"
        )
    while True:
        _, files, _, _ = socket.recv_fds(control, 1, 2)
        if len(files) < 2:  # the trainer has gone
            return
        if lacking is not None:
            os.write(files[1], lacking)
            for file in files:
                os.close(file)
            continue
        child = os.fork()
        if child == 0:
            control.close()
            for standard, file in enumerate(files):
                os.dup2(file, standard)
                os.close(file)
            main()
        for file in files:
            os.close(file)
        ended = os.pidfd_open(child)
        poll = select.poll()
        poll.register(ended, select.POLLIN)
        poll.register(control, 0)  # tells of its end only
        if any(file != ended for file, _ in poll.poll()):
            os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(ended)


def _line(**answer: object) -> bytes:
    return json.dumps(answer).encode() + b"\n"


if __name__ == "__main__":
    serve() if "--serve" in sys.argv else main()
