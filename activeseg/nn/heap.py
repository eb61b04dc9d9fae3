"""Memory that a network frees and asks for again a moment later stays in this process.

glibc gives every block above 32 MiB at most back to the system the moment it is freed, and the outputs of layers are larger:
for each of them the kernel maps pages, clears them and takes them back, which may take as long as the layers themselves.
While `kept_heap` lasts, freed blocks wait in the heap for the next layer; afterwards they are given back.

Only the heap of the main thread grows beyond 64 MiB. A program that computes in another thread calls `share_heap` first of
all. Without glibc (macOS, musl), and where somebody has set malloc by the environment, neither does anything.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache

# malloc.h
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -3, -4, -8

_NEVER = -1
_USUAL_MMAP_MAX = 65_536
# What glibc comes to by itself once a block of that size was freed; after any setting it adapts no more.
_LARGEST_MMAP_THRESHOLD = 32 * 1024 * 1024
_LARGEST_TRIM_THRESHOLD = 2 * _LARGEST_MMAP_THRESHOLD

# Reentrant: anything here may start a garbage collection, and that end a generator that is inside `kept_heap`.
_lock = threading.RLock()
_users = 0


@contextmanager
def kept_heap() -> Iterator[None]:
    """Keep what is freed. May be entered again, and from several threads: the last one to leave gives it back."""
    _enter()
    try:
        yield
    finally:
        _leave()


def share_heap() -> None:
    """Have all threads use the main thread's heap. Called before any other thread has allocated; later it changes nothing."""
    _set(_ARENA_MAX, 1)


def is_set_elsewhere(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether the environment tells glibc's malloc what to do (`mallopt(3)`, GLIBC_TUNABLES)."""
    return any(name.startswith("MALLOC_") for name in environment) or "glibc.malloc" in environment.get("GLIBC_TUNABLES", "")


def _enter() -> None:
    global _users
    with _lock:
        _users += 1
        if _users == 1:
            _set(_MMAP_MAX, 0)
            _set(_TRIM_THRESHOLD, _NEVER)


def _leave() -> None:
    global _users
    with _lock:
        _users -= 1
        if _users == 0:
            _set(_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD)
            _set(_MMAP_MAX, _USUAL_MMAP_MAX)
            _set(_TRIM_THRESHOLD, _LARGEST_TRIM_THRESHOLD)
            _give_back()


def _set(setting: int, value: int) -> None:
    if (libc := _glibc()) is not None:
        libc.mallopt(ctypes.c_int(setting), ctypes.c_int(value))


def _give_back() -> None:
    if (libc := _glibc()) is not None:
        libc.malloc_trim(ctypes.c_size_t(0))


@cache
def _glibc() -> ctypes.CDLL | None:
    """None where there is nothing to set."""
    if not sys.platform.startswith("linux") or is_set_elsewhere():
        return None
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "gnu_get_libc_version") else None
