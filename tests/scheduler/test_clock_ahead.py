"""A clock that ran ahead, of the whole machine or of one host against its database, costs nothing once it is put right."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from activeseg.db import jobs, lease
from activeseg.db.database import Database
from activeseg.db.models import JobOutcome, JobRun, ScheduleSlot
from activeseg.db.readiness import scheduler_seen
from activeseg.scheduler import Scheduler
from tests.scheduler.conftest import Clock

NOON, NIGHT = datetime(2025, 6, 3, 12, tzinfo=UTC), datetime(2025, 6, 4, 2, tzinfo=UTC)
DAY = timedelta(days=1)
Runs = Callable[[], list[JobRun]]
Nightly = Callable[..., Scheduler]
Put = Callable[[datetime], None]


@pytest.fixture
def put(database: Database, monkeypatch: pytest.MonkeyPatch) -> Put:
    """Puts the database's clock to a time, where it stands still."""

    def to(time: datetime) -> None:
        monkeypatch.setitem(lease.CLOCK, database.dialect, f"({time.timestamp()})")

    return to


@pytest.mark.parametrize("ahead", [DAY, 40 * DAY])
def test_a_night_that_a_clock_ahead_had_begun_runs_at_its_time_once_the_clock_is_right(
    database: Database, nightly: Nightly, clock: Clock, runs: Runs, put: Put, ahead: timedelta
) -> None:
    def at(time: datetime) -> None:
        clock.time = time
        put(time)

    for night in (NIGHT - 2 * DAY, NIGHT - DAY, NIGHT):  # each some days early: the clock is ahead
        at(night + ahead - DAY)
        assert nightly(database).tick("round") is not None
    at(NOON)
    assert nightly(database).look() == []
    assert nightly(database).catch_up() == []
    with database.read() as session:
        assert not jobs.has_dead(session)
    for night in (NIGHT, NIGHT + DAY):
        at(night + ahead - DAY)
        before = len(runs())
        assert [bool(nightly(database).tick("round")) for _ in range(2)] == [True, False]
        assert nightly(database).catch_up() == []
        assert [run.planned_at for run in runs()[before:]] == [night + ahead - DAY]


def test_a_night_that_a_host_ahead_of_its_database_had_begun_runs_at_its_time(
    database: Database, nightly: Nightly, clock: Clock, runs: Runs, put: Put
) -> None:
    put(NIGHT - DAY)
    clock.time = NIGHT
    host_ahead = nightly(database)
    assert host_ahead.tick("round") is not None
    for _ in range(12):
        clock.move(minutes=10)
        put(clock.time - DAY)
        assert host_ahead.look() == host_ahead.catch_up() == [], "it runs nothing twice meanwhile"
    clock.time = NIGHT
    put(NIGHT)
    assert [bool(nightly(database).tick("round")) for _ in range(2)] == [True, False]
    assert [run.planned_at for run in runs()] == [NIGHT, NIGHT]


@pytest.mark.parametrize("back", [5, 50])
def test_a_clock_put_back_by_less_than_an_hour_runs_no_time_again(
    database: Database, nightly: Nightly, clock: Clock, runs: Runs, put: Put, back: int
) -> None:
    put(clock.time)
    assert nightly(database).tick("round") is not None
    clock.move(minutes=-back)
    for _ in range(2 * back // 5):
        put(clock.time)
        scheduler = nightly(database)
        assert (scheduler.tick("round"), scheduler.look(), scheduler.catch_up()) == (None, [], [])
        clock.move(minutes=5)
    assert len(runs()) == 1


def test_of_many_that_claim_such_a_night_anew_one_runs_it(
    database: Database, database_url: str, nightly: Nightly, clock: Clock, runs: Runs, put: Put
) -> None:
    other = Database(database_url)
    contenders = [nightly(place) for place in (database, other, database, other)]
    at_once = threading.Barrier(4)
    nights = [NIGHT + number * DAY for number in range(8)]
    with database.write() as session:
        session.add_all(ScheduleSlot(job="round", planned_at=night, claimed_at=night - 2 * DAY) for night in nights)
    with ThreadPoolExecutor(4) as threads:
        for night in nights:
            clock.time = night
            put(night)
            list(threads.map(lambda one: (at_once.wait(), one.tick("round")), contenders))
    other.close()
    assert [run.planned_at for run in runs()] == nights


def test_a_beat_in_the_future_is_no_sign_of_life(
    database: Database, nightly: Nightly, clock: Clock, runs: Runs, put: Put
) -> None:
    put(NOON + DAY)
    with database.write() as session:
        jobs.start_run(session, "round", None, at=NOON)
    put(NOON)
    with database.read() as session:
        assert [run.outcome for run in jobs.last_of_each(session)] == [JobOutcome.ABANDONED]
    assert len(nightly(database).recover()) == 1
    assert [run.outcome for run in runs()] == [JobOutcome.ABANDONED]
    assert nightly(database).recover() == []
    put(NOON + timedelta(seconds=1))
    with database.write() as session:
        jobs.start_run(session, "round", None, at=NOON)
    put(NOON - timedelta(seconds=50))
    assert nightly(database).recover() == [], "a beat a little ahead is one"


def test_claims_and_beats_of_a_clock_ahead_are_no_sign_of_a_scheduler_for_longer_than_a_look(
    database: Database, nightly: Nightly, clock: Clock, put: Put
) -> None:
    put(NOON + 9 * DAY)
    with database.write() as session:
        jobs.take_slot(session, "pull", NOON + 9 * DAY, at=NOON + 9 * DAY)
        jobs.end_run(session, jobs.start_run(session, "pull", None, at=NOON).id, JobOutcome.DONE, "", at=NOON)
    put(NOON)
    nightly(database).look()
    with database.read() as session:
        assert scheduler_seen(session) == NOON


def test_a_first_night_missed_after_a_clock_ahead_was_put_right_is_made_up(
    database: Database, nightly: Nightly, clock: Clock, runs: Runs, put: Put
) -> None:
    def at(time: datetime) -> Any:
        clock.time = time
        put(time)
        return nightly(database).catch_up()

    assert at(NOON + 30 * DAY) == at(NOON) == []
    assert [made_up.planned_at for made_up in at(NIGHT + timedelta(hours=1))] == [NIGHT]
