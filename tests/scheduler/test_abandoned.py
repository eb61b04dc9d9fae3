"""A run whose process is gone is seen by whoever looks next, on any host, and what it was at goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from activeseg.config import Settings
from activeseg.cron import Cron
from activeseg.db import jobs, lease, requests
from activeseg.db.database import Database
from activeseg.db.models import JobOutcome, JobRun, RequestRow, ScheduleSlot
from activeseg.db.processes import this_host
from activeseg.db.status import read_status
from activeseg.errors import NoRoomError
from activeseg.scheduler import Job, Scheduler, Stopped

NIGHT = datetime(2025, 6, 3, 2, tzinfo=UTC)
TTL = 2.0
Runs = Callable[[], list[JobRun]]
Nightly = Callable[..., Scheduler]
Told = list[tuple[str | None, str | None, str | None]]


def running(database: Database, *, host: str = "elsewhere", heard: float | None = 1e9, **columns: Any) -> int:
    """A run's row as its process left it. heard: seconds ago its last beat was; None = never."""
    with database.write() as session:
        row = JobRun(job="round", host=host, pid=7, outcome=JobOutcome.RUNNING, **columns)
        session.add(row)
        session.flush()
        if heard is not None:
            clock = sa.literal_column(lease.CLOCK[database.dialect], sa.Double)
            session.execute(sa.update(JobRun).where(JobRun.id == row.id).values(beat_at=clock - heard))
        return row.id


@pytest.mark.parametrize("host", ["elsewhere", this_host()])
def test_a_run_that_is_not_heard_of_is_abandoned_on_whatever_host_it_was(
    database: Database, nightly: Nightly, runs: Runs, host: str
) -> None:
    silent, never = running(database, host=host, heard=61), running(database, host=host, heard=None)
    alive = running(database, host=host, heard=30)
    assert nightly(database).recover() == [silent, never]
    assert [run.outcome for run in runs()] == ["abandoned", "abandoned", "running"]
    assert f"process 7 on {host}" in (runs()[0].message or "")
    assert runs()[0].ended_at is not None
    assert nightly(database).recover() == []
    assert alive


def test_a_live_run_of_another_container_with_our_host_name_and_number_is_left(
    database: Database, nightly: Nightly, runs: Runs
) -> None:
    with database.write() as session:
        jobs.start_run(session, "round", None, at=NIGHT).pid = os.getpid()
    assert nightly(database).recover() == []
    assert [run.outcome for run in runs()] == ["running"]


def test_readers_are_told_abandoned_before_anybody_wrote_it_down(database: Database, runs: Runs) -> None:
    running(database, started_at=NIGHT)
    with database.read() as session:
        [record], [last] = jobs.history(session, limit=5), jobs.last_of_each(session)
        problems = read_status(session, Settings())["problems"]
    assert (record.outcome, last.outcome) == (JobOutcome.ABANDONED, JobOutcome.ABANDONED)
    assert "round abandoned (2025-06-03 02:00 UTC): not heard of any more" in problems
    assert [run.outcome for run in runs()] == ["running"]


def test_each_abandoned_run_is_told_to_people_once(database: Database, database_url: str, clock: Any) -> None:
    told: Told = []
    other = Database(database_url)
    running(database)
    schedulers = [Scheduler(place, [], now=clock, watch=lambda *what: told.append(what)) for place in (database, other)]
    for scheduler in schedulers:
        scheduler.recover()
    other.close()
    assert [(job, outcome) for job, outcome, _ in told] == [("round", "abandoned")]


def test_a_cut_off_run_that_a_later_one_made_up_before_anybody_saw_it_frightens_nobody(
    database: Database, clock: Any, runs: Runs
) -> None:
    told: Told = []
    running(database, started_at=NIGHT - timedelta(hours=3))
    job = Job("round", Cron("0 2 * * *", ZoneInfo("UTC"), key="round"), lambda check_stop: "worked", catches_up=True)
    scheduler = Scheduler(database, [job], now=clock, watch=lambda *what: told.append(what))
    scheduler.tick("round")
    scheduler.recover()
    assert [run.outcome for run in runs()] == ["abandoned", "done"]
    assert [(job, outcome) for job, outcome, _ in told] == [("round", "done")]


def test_a_run_says_that_it_is_on_for_as_long_as_it_is(database: Database, clock: Any, runs: Runs) -> None:
    beats: list[float | None] = []

    def work(check_stop: Callable[[], None]) -> str:
        until = time.monotonic() + 30
        while len(set(beats)) < 3 and time.monotonic() < until:
            beats.append(runs()[0].beat_at)
            time.sleep(0.02)
        return "worked"

    job = Job("round", Cron("0 2 * * *", ZoneInfo("UTC"), key="round"), work, catches_up=True)
    Scheduler(database, [job], now=clock, ttl=0.3).tick("round")
    assert len(set(beats)) == 3
    assert beats == sorted(beats, key=lambda beat: beat or 0)


@pytest.mark.parametrize("other", [None, "pull"])
def test_a_scheduler_goes_on_where_a_restore_replaced_its_run(
    database: Database, clock: Any, runs: Runs, caplog: pytest.LogCaptureFixture, other: str | None
) -> None:
    """Whatever has its number now is another run, whose outcome is not its own."""

    def work(check_stop: Callable[[], None]) -> str:
        with database.write() as session:
            if other is None:
                session.execute(sa.delete(JobRun))
            else:
                session.execute(sa.update(JobRun).values(job=other, outcome="failed", message="its own"))
        return "worked"

    job = Job("round", Cron("0 2 * * *", ZoneInfo("UTC"), key="round"), work, catches_up=True)
    scheduler = Scheduler(database, [job], now=clock)
    scheduler.tick("round")
    scheduler.look()
    assert [(run.job, run.outcome, run.message) for run in runs()] == ([(other, "failed", "its own")] if other else [])
    assert "is not in the database any more" in caplog.text
    assert "a look failed" not in caplog.text


def test_a_run_that_a_restore_gave_our_number_is_not_kept_alive(database: Database, clock: Any, runs: Runs) -> None:
    """It was on when the backup was made, its process is gone, and its night waits for somebody to see that."""

    def work(check_stop: Callable[[], None]) -> str:
        before = {"started_at": NIGHT - timedelta(days=1), "beat_at": 1.0}
        with database.write() as session:
            session.execute(sa.update(JobRun).values(before))
        until = time.monotonic() + 5
        while any(thread.name == f"beat-{runs()[0].id}" for thread in threading.enumerate()) and time.monotonic() < until:
            time.sleep(0.02)
        return str(runs()[0].beat_at)

    job = Job("round", Cron("0 2 * * *", ZoneInfo("UTC"), key="round"), work, catches_up=True)
    result = Scheduler(database, [job], now=clock, ttl=0.3).tick("round")
    assert result is not None
    assert result.message == "1.0"


def test_a_full_disk_for_a_while_does_not_silence_a_run(
    database: Database, clock: Any, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, tries = threading.Event(), iter([True, False])
    beat = jobs.beat

    def full_once(session: Session, run: int, started_at: datetime) -> bool:
        if begun.is_set() and next(tries, False):
            raise NoRoomError("no room left for the database")
        return beat(session, run, started_at)

    def work(check_stop: Callable[[], None]) -> str:
        first = runs()[0].beat_at
        begun.set()
        until = time.monotonic() + 30
        while runs()[0].beat_at == first and time.monotonic() < until:
            time.sleep(0.02)
        return "heard of again" if runs()[0].beat_at != first else "silent"

    monkeypatch.setattr(jobs, "beat", full_once)
    job = Job("round", Cron("0 2 * * *", ZoneInfo("UTC"), key="round"), work, catches_up=True)
    result = Scheduler(database, [job], now=clock, ttl=0.3).tick("round")
    assert result is not None
    assert result.message == "heard of again"


def test_a_night_whose_process_died_goes_on_and_is_no_third_time_by_itself_a_killer(
    database: Database, nightly: Nightly, clock: Any, runs: Runs
) -> None:
    """What kills the process kills it again: three times, then it waits for the next night."""

    class Died(BaseException):
        pass

    def work(check_stop: Callable[[], None]) -> str:
        raise Died

    def silent() -> None:
        with database.engine.begin() as connection:
            connection.execute(sa.update(JobRun).values(beat_at=0.0))

    for attempt in range(5):
        scheduler = nightly(database, work)
        with pytest.raises(Died) if attempt < 3 else _nothing():
            scheduler.tick("round") if attempt == 0 else scheduler.catch_up()
        silent()
    assert [(run.planned_at, run.outcome) for run in runs()] == [(NIGHT, "abandoned")] * 3
    clock.move(days=1)
    assert nightly(database).tick("round") is not None
    assert runs()[-1].outcome == JobOutcome.DONE


@contextmanager
def _nothing() -> Iterator[None]:
    yield


def test_a_night_stopped_by_a_signal_goes_on_after_the_restart(database: Database, nightly: Nightly, runs: Runs) -> None:
    def stopped(check_stop: Callable[[], None]) -> str:
        raise Stopped

    nightly(database, stopped).tick("round")
    assert [result.outcome for result in nightly(database).catch_up()] == [JobOutcome.DONE]
    assert nightly(database).catch_up() == []
    assert [(run.planned_at, run.outcome) for run in runs()] == [(NIGHT, "abandoned"), (NIGHT, "done")]


def test_a_request_whose_run_died_waits_again(database: Database, clock: Any, runs: Runs) -> None:
    with database.write() as session:
        requests.ask(session, requests.ROUND, requested_by="ann", reason="new images")
        taken = requests.take(session, [requests.ROUND], at=clock())
        assert taken is not None
        jobs.start_run(session, "round", None, at=clock())
    with database.engine.begin() as connection:
        connection.execute(sa.update(JobRun).values(beat_at=0.0))
    job = Job("round", None, lambda check_stop: "worked", catches_up=True, on_request=True)
    clock.move(minutes=2)
    scheduler = Scheduler(database, [job], now=clock)
    assert scheduler.look() == []
    clock.move(seconds=30)
    [served] = scheduler.look()
    assert (served.job, served.outcome) == ("round", JobOutcome.DONE)
    with database.read() as session:
        [row] = session.scalars(sa.select(RequestRow))
    assert (row.reason, row.taken_at) == ("new images", clock())


def test_a_run_thought_dead_that_comes_to_its_end_is_done_and_not_done_again(
    database: Database, database_url: str, nightly: Nightly, clock: Any, runs: Runs
) -> None:
    other = Database(database_url)

    def work(check_stop: Callable[[], None]) -> str:
        with database.engine.begin() as connection:
            connection.execute(sa.update(JobRun).values(beat_at=0.0))
        assert len(nightly(other).recover()) == 1
        return "worked"

    nightly(database, work).tick("round")
    assert nightly(other).catch_up() == []
    other.close()
    assert [(run.outcome, run.message) for run in runs()] == [("done", "worked")]


def test_a_first_night_that_is_missed_is_made_up(database: Database, nightly: Nightly, clock: Any, runs: Runs) -> None:
    """First started in the afternoon, away from midnight to four."""
    clock.time = datetime(2025, 6, 2, 15, tzinfo=UTC)
    assert nightly(database).catch_up() == []
    with database.read() as session:
        assert len(list(session.scalars(sa.select(ScheduleSlot)))) == 1
    clock.time = datetime(2025, 6, 3, 4, tzinfo=UTC)
    assert [result.planned_at for result in nightly(database).catch_up()] == [NIGHT]
    assert nightly(database).catch_up() == []
    assert len(runs()) == 1


def test_a_first_start_in_the_night_runs_nothing_of_this_night(database: Database, nightly: Nightly, clock: Any) -> None:
    for _ in range(20):
        assert nightly(database).catch_up() == []
        clock.move(minutes=30)


@pytest.mark.parametrize(("hours", "late", "made_up"), [(1.0, 59, True), (1.0, 61, False), (24.0, 23 * 60, True)])
def test_a_night_is_made_up_within_the_configured_hours(
    database: Database, clock: Any, hours: float, late: int, made_up: bool
) -> None:
    job = Job("round", Cron("0 2 * * *", ZoneInfo("UTC"), key="round"), lambda check_stop: "worked", catches_up=True)
    clock.time = NIGHT - timedelta(hours=1)
    Scheduler(database, [job], now=clock).catch_up()
    clock.time = NIGHT + timedelta(minutes=late)
    assert bool(Scheduler(database, [job], now=clock, catch_up=timedelta(hours=hours)).catch_up()) is made_up


HOLDER = """
import sys, time
from datetime import datetime
from zoneinfo import ZoneInfo
from activeseg.cron import Cron
from activeseg.db import lease, requests
from activeseg.db.database import Database
from activeseg.scheduler import Job, Scheduler

url, moment, ttl, where = sys.argv[1], datetime.fromisoformat(sys.argv[2]), float(sys.argv[3]), sys.argv[4]

def work(check_stop):
    mine = Database(url)
    with lease.holding(mine, ttl=ttl):
        if where == "writing":
            with mine.write() as session:
                requests.ask(session, "half", requested_by="a stale holder")
                print("at work", flush=True)
                sys.stdin.readline()
        print("at work", flush=True)
        sys.stdin.readline()
        with mine.write() as session:
            requests.ask(session, "late", requested_by="a stale holder")
    return "worked"

job = Job("round", Cron("0 2 * * *", ZoneInfo("UTC"), key="round"), work, catches_up=True)
result = Scheduler(Database(url), [job], now=lambda: moment, ttl=ttl).tick("round")
print(result.outcome.value, flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "where"),
    [("SIGKILL", "working"), ("SIGKILL", "writing"), ("SIGSTOP", "working"), ("SIGSTOP", "writing")],
)
def test_another_scheduler_takes_a_night_over_within_the_lease_and_two_seconds(
    database: Database, database_url: str, clock: Any, runs: Runs, number: str, where: str
) -> None:
    if (database.dialect, number, where) == ("sqlite", "SIGSTOP", "writing"):
        pytest.skip("SQLite's one lock is kept for as long as the process lives")
    began: list[float] = []

    def work(check_stop: Callable[[], None]) -> str:
        mine = Database(database_url)
        try:
            with lease.holding(mine, ttl=TTL):
                began.append(time.monotonic())
                return "took over"
        finally:
            mine.close()

    command = [sys.executable, "-c", HOLDER, database_url, clock().isoformat(), str(TTL), where]
    holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "at work\n"
    job = Job("round", Cron("0 2 * * *", ZoneInfo("UTC"), key="round"), work, catches_up=True)
    second = Scheduler(database, [job], now=clock, ttl=TTL)
    if where == "working":
        assert second.catch_up() == []
    holder.send_signal(getattr(signal, number))
    ended = time.monotonic()
    while not began and time.monotonic() < ended + 20:
        second.look()
        time.sleep(0.5)
    assert began[0] - ended <= TTL + 2
    said = ""
    if number == "SIGSTOP":
        holder.send_signal(signal.SIGCONT)
        said, _ = holder.communicate("\n", timeout=60)
    else:
        holder.communicate()
    assert [(run.planned_at, run.outcome) for run in runs()] == [(NIGHT, "abandoned"), (NIGHT, "done")]
    with database.read() as session:
        assert list(session.scalars(sa.select(RequestRow))) == [], said
    # In the middle of a write the database sent it away.
    assert said in ("", "abandoned\n" if where == "writing" else "busy\n")
