"""Page faults, counted by the kernel, say whether memory was given back and asked for again."""

from __future__ import annotations

import ctypes
import gc
import os
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from activeseg.nn import heap
from activeseg.nn.heap import is_set_elsewhere, kept_heap

with_glibc = pytest.mark.skipif(heap._glibc() is None, reason="glibc only, and not set by the environment")

PROGRAM = """
import ctypes, resource, sys, threading
import numpy as np
from activeseg.nn.heap import kept_heap, share_heap

ctypes.CDLL(None).prctl(41, 1, 0, 0, 0)  # PR_SET_THP_DISABLE: every page has a fault of its own
LARGE, SMALL = 20_000, 2_500  # pages

def faults(pages, times=3):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(times):
        np.ones(pages * resource.getpagesize(), np.uint8)
    return round((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / pages)

def resident():
    return int(open("/proc/self/statm").read().split()[1])

def look():
    faults(LARGE)
    print(faults(LARGE))
    with kept_heap():
        faults(LARGE)
        with kept_heap():
            print(faults(LARGE))
        print(faults(LARGE))
        held = resident()
    print(round((held - resident()) / LARGE))
    print(faults(LARGE))
    faults(SMALL)
    print(faults(SMALL))

if "shared" in sys.argv:
    share_heap()
if "thread" in sys.argv:
    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
else:
    look()
"""


def looks(*words: str) -> list[int]:
    """Times a large block was asked of the system, of three: before, within an inner use, within; large blocks given back by
    leaving; times afterwards, of a large and of a small one."""
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    command = [sys.executable, "-c", PROGRAM, *words]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return [int(word) for word in done.stdout.split()]


@with_glibc
@pytest.mark.slow
@pytest.mark.parametrize("words", [(), ("thread", "shared")])
def test_what_is_freed_is_kept_while_it_lasts_and_given_back_afterwards(words: tuple[str, ...]) -> None:
    assert looks(*words) == [3, 0, 0, 1, 3, 0]


@with_glibc
@pytest.mark.slow
def test_in_a_thread_with_a_heap_of_its_own_it_changes_nothing() -> None:
    assert looks("thread")[:5] == [3, 3, 3, 0, 3]


def test_an_error_ends_it_too(monkeypatch: pytest.MonkeyPatch) -> None:
    settings: list[tuple[int, int]] = []
    monkeypatch.setattr(heap, "_set", lambda setting, value: settings.append((setting, value)))
    with pytest.raises(ZeroDivisionError), kept_heap():
        raise ZeroDivisionError
    assert settings[:2] == [(heap._MMAP_MAX, 0), (heap._TRIM_THRESHOLD, -1)]
    assert dict(settings)[heap._MMAP_MAX] > 0
    assert dict(settings)[heap._TRIM_THRESHOLD] > 0


def test_a_use_that_the_collector_ends_while_another_begins_hangs_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    def using() -> Iterator[None]:
        with kept_heap():
            yield

    def forget_one() -> None:
        abandoned = using()
        next(abandoned)
        uses: list[object] = [abandoned]
        uses.append(uses)  # a cycle: only the collector ends it

    def collecting(setting: int, value: int) -> None:
        if not collected:
            collected.append(True)
            forget_one()
            gc.collect()

    def use() -> None:
        with kept_heap():
            pass

    collected: list[bool] = []
    monkeypatch.setattr(heap, "_set", collecting)
    thread = threading.Thread(target=use, daemon=True)
    thread.start()
    thread.join(30)
    assert collected
    assert not thread.is_alive()
    assert heap._users == 0


@pytest.mark.parametrize(
    ("environment", "found"),
    [
        ({}, False),
        ({"PATH": "/bin", "GLIBC_TUNABLES": "glibc.cpu.x86_ibt=on"}, False),
        ({"MALLOC_ARENA_MAX": "2"}, True),
        ({"MALLOC_TRIM_THRESHOLD_": "100000"}, True),
        ({"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}, True),
    ],
)
def test_settings_of_the_environment_are_left_alone(environment: dict[str, str], found: bool) -> None:
    assert is_set_elsewhere(environment) is found


def test_without_glibc_it_does_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: object) -> ctypes.CDLL:
        raise AssertionError("asked")

    monkeypatch.setattr(heap.sys, "platform", "darwin")
    monkeypatch.setattr(heap.ctypes, "CDLL", refuse)
    monkeypatch.setattr(heap, "_glibc", heap._glibc.__wrapped__)
    with kept_heap():
        heap.share_heap()
