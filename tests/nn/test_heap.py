"""Page faults, counted by the kernel, say whether memory was given back and asked for again."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

from activeseg.nn import heap
from activeseg.nn.heap import kept_heap

pytestmark = pytest.mark.skipif(heap._glibc() is None, reason="glibc only")

PAGES = 20_000
PROGRAM = f"""
import ctypes, resource, sys, threading
import numpy as np
from activeseg.nn.heap import kept_heap, share_heap

ctypes.CDLL(None).prctl(41, 1, 0, 0, 0)  # PR_SET_THP_DISABLE: every page has a fault of its own

def faults(times):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(times):
        np.ones({PAGES} * 4096, np.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident():
    return int(open("/proc/self/statm").read().split()[1])

def look():
    faults(1)
    print(faults(3) // {PAGES})
    with kept_heap():
        faults(1)
        with kept_heap():
            print(faults(3) // {PAGES})
        print(faults(3) // {PAGES})
        held = resident()
    print((held - resident()) // ({PAGES} - 1000))
    print(faults(3) // {PAGES})

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
    """Times a block was asked of the system, of three: before, within, within after an inner use; blocks given back by
    leaving; times afterwards."""
    done = subprocess.run([sys.executable, "-c", PROGRAM, *words], capture_output=True, text=True, check=True)
    return [int(word) for word in done.stdout.split()]


@pytest.mark.slow
@pytest.mark.parametrize("words", [(), ("thread", "shared")])
def test_what_is_freed_is_kept_while_it_lasts_and_given_back_afterwards(words: tuple[str, ...]) -> None:
    assert looks(*words) == [3, 0, 0, 1, 3]


@pytest.mark.slow
def test_in_a_thread_with_a_heap_of_its_own_it_changes_nothing() -> None:
    assert looks("thread") == [3, 3, 3, 0, 3]


def test_an_error_ends_it_too(monkeypatch: pytest.MonkeyPatch) -> None:
    settings: list[tuple[int, int]] = []
    monkeypatch.setattr(heap, "_set", lambda setting, value: settings.append((setting, value)))
    with pytest.raises(ZeroDivisionError), kept_heap():
        raise ZeroDivisionError
    assert settings[:2] == [(heap._MMAP_MAX, 0), (heap._TRIM_THRESHOLD, -1)]
    assert dict(settings)[heap._MMAP_MAX] > 0
    assert dict(settings)[heap._TRIM_THRESHOLD] > 0


def test_without_glibc_it_does_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: object) -> ctypes.CDLL:
        raise AssertionError("asked")

    monkeypatch.setattr(heap.sys, "platform", "darwin")
    monkeypatch.setattr(heap.ctypes, "CDLL", refuse)
    monkeypatch.setattr(heap, "_glibc", heap._glibc.__wrapped__)
    with kept_heap():
        heap.share_heap()
