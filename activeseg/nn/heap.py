"""Memory that a network frees and asks for again a moment later stays in this process.

glibc gives every block above 32 MiB at most back to the system the moment it is freed, and the outputs of layers are larger:
for each of them the kernel maps pages, clears them and takes them back. On two cores that was up to half of a forward pass.
While `kept_heap` lasts, freed blocks wait in the heap for the next layer; afterwards they are given back.

Only the heap of the main thread grows beyond 64 MiB. A program that computes in another thread calls `share_heap` before it
starts one. Without glibc (macOS, musl) neither does anything.
"""

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

# malloc.h
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -3, -4, -8

_USUAL_MMAP_MAX = 65_536
_USUAL_TRIM_THRESHOLD = 128 * 1024
_LARGEST_MMAP_THRESHOLD = 32 * 1024 * 1024
_NEVER = -1

_lock = threading.Lock()
_users = 0


@contextmanager
def kept_heap() -> Iterator[None]:
    """Keep what is freed. May be entered again, and from several threads: the last one to leave gives it back."""
    global _users
    with _lock:
        _users += 1
        if _users == 1:
            _set(_MMAP_MAX, 0)
            _set(_TRIM_THRESHOLD, _NEVER)
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if _users == 0:
                # The threshold as it is for a process that has freed a block of that size; any setting stops it from growing.
                _set(_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD)
                _set(_MMAP_MAX, _USUAL_MMAP_MAX)
                _set(_TRIM_THRESHOLD, _USUAL_TRIM_THRESHOLD)
                _give_back()


def share_heap() -> None:
    """Have threads that are started from now on use the main thread's heap."""
    _set(_ARENA_MAX, 1)


def _set(setting: int, value: int) -> None:
    if (libc := _glibc()) is not None:
        libc.mallopt(ctypes.c_int(setting), ctypes.c_int(value))


def _give_back() -> None:
    if (libc := _glibc()) is not None:
        libc.malloc_trim(ctypes.c_size_t(0))


@cache
def _glibc() -> ctypes.CDLL | None:
    if not sys.platform.startswith("linux"):
        return None
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "gnu_get_libc_version") else None
