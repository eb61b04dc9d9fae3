"""What a pass over images spends its time on."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal, TypeVar

Item = TypeVar("Item")
Waited = Literal["decode", "device", "database"]


@dataclass
class Pace:
    """Counts and seconds of one pass. Filled by those who do the work, read at its end.

    waited: seconds the pass stood still for images to be decoded, for the device to compute (on a CPU: that it computed), for
    rows to be written; compiling is counted apart. batch_size: the largest number of images computed at once.
    images: computed. failed: those of which nothing came but a reason. compiled_images: those that went through a compiled
    network. not_compiled: why none did, where that was tried.
    """

    started: float = field(default_factory=time.monotonic)
    waited: dict[Waited, float] = field(default_factory=lambda: {"decode": 0.0, "device": 0.0, "database": 0.0})
    images: int = 0
    failed: int = 0
    batch_size: int = 0
    compile_seconds: float = 0.0
    compiled_images: int = 0
    not_compiled: str | None = None

    @contextmanager
    def waiting(self, what: Waited) -> Iterator[None]:
        """Count the seconds of the block as waiting for `what`, but for those spent compiling."""
        began, compiling = time.monotonic(), self.compile_seconds
        try:
            yield
        finally:
            self.waited[what] += time.monotonic() - began - (self.compile_seconds - compiling)

    def each(self, what: Waited, items: Iterable[Item]) -> Iterator[Item]:
        """`items`, the seconds it takes to get each counted as waiting for `what`."""
        iterator = iter(items)
        while True:
            with self.waiting(what):
                try:
                    item = next(iterator)
                except StopIteration:
                    return
            yield item

    @property
    def described(self) -> str:
        """'decode 3%, device 95%, database 0%': shares of the time so far."""
        return ", ".join(f"{what} {self.share(what):.0%}" for what in self.waited)

    def share(self, what: Waited) -> float:
        """Share of the time since the start, 0 to 1."""
        return min(1.0, self.waited[what] / max(time.monotonic() - self.started, 1e-9))
