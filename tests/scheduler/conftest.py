"""A scheduler whose clock stands where a test puts it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
import sqlalchemy as sa

from activeseg.cron import Cron
from activeseg.db.database import Database
from activeseg.db.models import JobRun
from activeseg.scheduler import Job, Scheduler


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self, time: datetime) -> None:
        self.time = time

    def __call__(self) -> datetime:
        return self.time

    def move(self, **how_far: float) -> None:
        self.time += timedelta(**how_far)


@pytest.fixture
def clock() -> Clock:
    """Twenty seconds past the nightly 02:00 UTC."""
    return Clock(datetime(2025, 6, 3, 2, 0, 20, tzinfo=UTC))


@pytest.fixture
def nightly(clock: Clock) -> Callable[..., Scheduler]:
    """A scheduler with one nightly job 'round' that does `work`; all share the clock."""

    def make(database: Database, work: Callable[..., str] = lambda check_stop: "worked", cron: str = "0 2 * * *") -> Scheduler:
        job = Job("round", Cron(cron, ZoneInfo("UTC"), key="round"), work, catches_up=True)
        return Scheduler(database, [job], now=clock)

    return make


@pytest.fixture
def runs(database: Database) -> Callable[[], list[JobRun]]:
    def read() -> list[JobRun]:
        with database.read() as session:
            return list(session.scalars(sa.select(JobRun).order_by(JobRun.id)))

    return read
