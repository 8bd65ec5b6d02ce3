"""A wall around one Python process: put this folder first on PYTHONPATH and a file's path into NETGUARD_LOG.

Every attempt to look a name up or to reach an address outside this machine is refused, and written down with the
line of code that made it. Python loads a `sitecustomize` before anything else, so nothing can be imported before it.
"""

import ipaddress
import os
import sys
import traceback

LOG = os.environ.get("NETGUARD_LOG")
LOOKUPS = {"socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr"}
SENDING = {"socket.connect", "socket.sendto", "socket.sendmsg"}


def at_home(host: object) -> bool:
    """Whether a host is this machine; None and an empty name are what a server listens on."""
    if isinstance(host, bytes):
        host = host.decode(errors="replace")
    if host in (None, "", "localhost"):
        return True
    try:
        return ipaddress.ip_address(str(host).split("%")[0]).is_loopback
    except ValueError:
        return False


def guard(event: str, args: tuple) -> None:
    if event in LOOKUPS:
        host = args[0]
    elif event in SENDING:
        if not isinstance(args[1], tuple):  # a path: a socket within the machine; None: connected before
            return
        host = args[1][0]
    else:
        return
    if at_home(host):
        return
    with open(LOG, "a", encoding="utf-8") as file:
        file.write(f"{event} {host!r}\n{''.join(traceback.format_stack(limit=25))}\n")
    raise OSError(101, f"netguard: {event} {host!r} is outside this machine")


if LOG:
    sys.addaudithook(guard)
