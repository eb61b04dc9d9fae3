"""Which process holds something, told so that two containers with one host name are not taken for one another."""

from __future__ import annotations

import hashlib
import os
import socket
import uuid
from functools import cache
from pathlib import Path

PROC = Path("/proc")
NO_START = "0"


def this_host() -> str:
    """This machine's name."""
    return socket.gethostname()[:150]


def this_process() -> str:
    """'host:pid:place:start:random', unique to the call. See `is_gone`."""
    pid = os.getpid()
    return f"{this_host()}:{pid}:{place()}:{_start(pid) or NO_START}:{uuid.uuid4().hex[:8]}"


@cache
def place() -> str:
    """Where a process number means the same process: one boot of one kernel, one namespace of process numbers."""
    try:
        boot = (PROC / "sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        namespace = os.readlink(PROC / "self/ns/pid")
    except OSError:  # not Linux: there the machine's name and address have to do
        boot, namespace = this_host(), f"{uuid.getnode():x}"
    return hashlib.sha256(f"{boot} {namespace}".encode()).hexdigest()[:12]


def is_of(holder: str, host: str, pid: int) -> bool:
    """Whether `this_process` named a process with this number on this host."""
    return holder.startswith(f"{host}:{pid}:")


def is_gone(holder: str) -> bool:
    """Whether the process that `this_process` named has certainly ended; False wherever that cannot be seen from here.

    Another process may have its number now: then it began at another time.
    """
    parts = holder.split(":")
    if len(parts) != 5 or parts[0] != this_host() or parts[2] != place() or not parts[1].isdigit():
        return False
    pid, start = int(parts[1]), parts[3]
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except OSError:
        pass
    found = _start(pid)
    return found is not None and start != NO_START and found != start


def _start(pid: int) -> str | None:
    """When a process began, in clock ticks since the boot; 'ended' for one that only waits for its parent, None where
    that cannot be seen."""
    try:
        fields = (PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    # proc(5): the state is the third field and the start the 22nd; the name before them may hold anything.
    return "ended" if fields[0] in ("Z", "X") else fields[19]
