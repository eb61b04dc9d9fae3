"""File locks that live exactly as long as a process, and the end of a process group."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def locked(path: Path) -> Iterator[int]:
    """Hold an exclusive lock on `path`, waiting for it; yields its descriptor.

    A child that is given the descriptor (pass_fds) holds the lock too, and keeps it if the parent is killed.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor
    finally:
        os.close(descriptor)


def is_locked(path: Path) -> bool:
    """Whether some process holds the lock on `path`."""
    with contextlib.suppress(FileNotFoundError):
        descriptor = os.open(path, os.O_RDWR)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
    return False


def free_port() -> int:
    """A TCP port nobody listens on at the moment, on 127.0.0.1."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def end_group(pid: int, lock: Path, *, patience: float = 10.0) -> None:
    """End the process group `pid` leads and wait until its lock is free: SIGTERM, then SIGKILL after `patience` seconds.

    The lock is what proves that `pid` is still that process: an unlocked file means it ended by itself, and whoever has
    the number now is left alone.
    """
    for number, seconds in ((signal.SIGTERM, patience), (signal.SIGKILL, patience)):
        if not is_locked(lock):
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, number)
        deadline = time.monotonic() + seconds
        while is_locked(lock) and time.monotonic() < deadline:
            time.sleep(0.05)
