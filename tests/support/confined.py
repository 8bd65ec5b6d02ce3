"""Makes this process what a process in a container is: `python confined.py '["landlock_create_ruleset"]' program.py`.

What Docker's default seccomp profile (moby/moby, profiles/seccomp/default.json) refuses to a container without further
capabilities, new namespaces among it, and Docker's default capabilities; the rest is allowed. The names that are given
are refused besides, as by the profile of an older Docker.
"""

import ctypes
import errno
import json
import os
import runpy
import sys

DENIED = """
    unshare setns mount umount2 pivot_root open_tree move_mount fsopen fsmount keyctl add_key request_key bpf
    perf_event_open userfaultfd kcmp pidfd_getfd process_madvise open_by_handle_at acct delete_module finit_module
    init_module kexec_file_load kexec_load lookup_dcookie move_pages quotactl reboot swapoff swapon syslog iopl ioperm
    fanotify_init sethostname setdomainname settimeofday clock_settime vhangup mbind set_mempolicy
""".split()
CAPABILITIES = 0xA80425FB  # chown, dac_override, fowner, fsetid, kill, setgid, setuid, setpcap, net_bind_service, ...
CLONE_NEWUSER = 0x10000000
NEW_NAMESPACES = [1 << bit for bit in (17, 25, 26, 27, 28, 29, 30)]  # CLONE_NEW*: 0x7E020000, as in the profile
ALLOW, ERRNO, MASKED_EQ = 0x7FFF0000, 0x00050000, 7


class Comparison(ctypes.Structure):
    """`struct scmp_arg_cmp` of libseccomp."""

    _fields_ = [("arg", ctypes.c_uint), ("op", ctypes.c_int), ("a", ctypes.c_uint64), ("b", ctypes.c_uint64)]


def confine(more: list[str]) -> None:
    """From here on this process and its children are in such a container."""
    library, libc = ctypes.CDLL("libseccomp.so.2"), ctypes.CDLL(None)
    library.seccomp_init.restype = ctypes.c_void_p
    rules = ctypes.c_void_p(library.seccomp_init(ctypes.c_uint32(ALLOW)))
    add = library.seccomp_rule_add_array
    add.argtypes = [ctypes.c_void_p, ctypes.c_uint32, ctypes.c_int, ctypes.c_uint, ctypes.POINTER(Comparison)]

    def deny(name: str, number: int = errno.EPERM, *comparisons: Comparison) -> None:
        found = {"landlock_create_ruleset": 444}.get(name) or library.seccomp_syscall_resolve_name(name.encode())
        assert found > 0, name
        given = (Comparison * len(comparisons))(*comparisons)
        assert add(rules, ERRNO | number, found, len(comparisons), given) == 0, name

    for name in [*DENIED, *more]:
        deny(name)
    deny("clone3", errno.ENOSYS)
    for flag in NEW_NAMESPACES:
        deny("clone", errno.EPERM, Comparison(0, MASKED_EQ, flag, flag))
    header, sets = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    assert libc.capget(header, sets) == 0
    for i in range(6):
        sets[i] &= CAPABILITIES if i < 3 else 0
    assert libc.capset(header, sets) == 0
    assert libc.prctl(38, 1, 0, 0, 0) == 0  # no new privileges
    assert library.seccomp_load(rules) == 0
    assert libc.unshare(CLONE_NEWUSER) == -1  # the test itself


if __name__ == "__main__":
    confine(json.loads(sys.argv[1]))
    sys.path.insert(0, os.environ["PYTHONPATH"].split(os.pathsep)[0])
    runpy.run_path(sys.argv[2], run_name="__main__")
