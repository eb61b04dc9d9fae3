"""SIGINT and SIGTERM, heard by a process that has something to bring to an end first. Main thread only."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def signal_pipe() -> Iterator[int]:
    """A file descriptor that can be read once SIGINT or SIGTERM came.

    No exception that could rise in the middle of a line being printed, or be swallowed by a callback; no lock that the
    interrupted code may hold; and a signal that comes before the read is not lost.
    """
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, lambda *_: None) for number in numbers}
    wakeup = signal.set_wakeup_fd(write_end)
    try:
        yield read_end
    finally:
        signal.set_wakeup_fd(wakeup)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(read_end)
        os.close(write_end)


@contextmanager
def signals_interrupt() -> Iterator[None]:
    """SIGTERM does what Ctrl-C does: KeyboardInterrupt in the main thread."""
    # An exception, not a flag: no lock of the interrupted code is taken again, and no signal is lost before a wait.
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, signal.default_int_handler) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def signals_kill() -> None:
    """From now on SIGINT and SIGTERM end the process at once."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
