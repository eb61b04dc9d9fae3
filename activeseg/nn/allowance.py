"""How much a pass over images may still take: what its budget leaves, judged by the pace so far."""

from __future__ import annotations

import time
from dataclasses import dataclass

from activeseg.config.budget import Budget
from activeseg.nn.pace import Pace


@dataclass
class Allowance:
    """budget: of images or seconds (None: no bound). planned: images there are. started: `time.monotonic()` when the run began,
    which is what a budget of time counts from. taken: images handed to the network so far.
    """

    budget: Budget | None
    pace: Pace
    planned: int
    started: float
    taken: int = 0

    def one_more(self) -> bool:
        """Whether one more image fits the budget, after those that are under way. The first one always does."""
        if self.budget is None or not self.taken:
            return True
        if self.budget.images is not None:
            return self.taken < self.budget.images
        finished = self.finished
        return finished == 0 or self.seconds_left() >= (self.taken + 1 - finished) * self._seconds_each()

    def left(self) -> float:
        """Images still to come, as far as can be told."""
        left = float(self.planned - self.finished)
        if self.budget and self.budget.seconds is not None and self.finished:
            left = min(left, self.seconds_left() / self._seconds_each())
        return max(0.0, left)

    def seconds_left(self) -> float:
        """Of a budget of time; infinite without one."""
        allowed = self.budget.seconds if self.budget else None
        return float("inf") if allowed is None else allowed - (time.monotonic() - self.started)

    @property
    def finished(self) -> int:
        """Images that take no more time: computed, or found to be unreadable."""
        return self.pace.images + self.pace.failed

    def _seconds_each(self) -> float:
        return (time.monotonic() - self.pace.started) / self.finished
