"""The database goes away while a run is claimed, is on, or ends: the scheduler stays, and the next look mends it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
import sqlalchemy as sa

from activeseg.cron import Cron
from activeseg.db.database import Database
from activeseg.db.models import JobOutcome, JobRun
from activeseg.scheduler import Job, Scheduler

NIGHT = datetime(2025, 6, 3, 2, tzinfo=UTC)
Runs = Callable[[], list[JobRun]]
Nightly = Callable[..., Scheduler]


class Outage:
    """While `on`, no transaction of this engine begins."""

    def __init__(self, database: Database) -> None:
        self.on = False
        sa.event.listen(database.engine, "begin", self.refuse)

    def refuse(self, connection: sa.Connection) -> None:
        if self.on:
            raise sa.exc.OperationalError("BEGIN", None, Exception("server closed the connection unexpectedly"))

    @contextmanager
    def lasting(self) -> Iterator[None]:
        self.on = True
        try:
            yield
        finally:
            self.on = False


@pytest.fixture
def outage(database: Database) -> Outage:
    return Outage(database)


def test_looking_goes_on_and_the_outage_is_told_once(
    outage: Outage, database: Database, nightly: Nightly, caplog: pytest.LogCaptureFixture
) -> None:
    scheduler = nightly(database)
    with outage.lasting(), caplog.at_level(logging.INFO):
        for _ in range(5):
            assert scheduler.look() == []
    scheduler.look()
    told = [record.message for record in caplog.records]
    assert len(told) == 2
    assert "cannot be read" in told[0]
    assert "server closed the connection" in told[0]
    assert told[1] == "the database is back"


def test_a_night_that_could_not_be_claimed_is_run_as_soon_as_the_database_is_back(
    outage: Outage, database: Database, nightly: Nightly, clock: Any, runs: Runs
) -> None:
    scheduler = nightly(database)
    scheduler.catch_up()
    clock.move(days=1)
    with outage.lasting():
        result = scheduler.tick("round")
        assert scheduler.look() == []
    assert result is not None
    assert (result.outcome, result.run) == (JobOutcome.FAILED, None)
    assert [one.outcome for one in scheduler.look()] == [JobOutcome.DONE]
    assert scheduler.look() == []
    assert [(run.planned_at, run.outcome) for run in runs()] == [(NIGHT + timedelta(days=1), "done")]


def test_an_outcome_that_could_not_be_recorded_is_recorded_by_the_next_look(
    outage: Outage, database: Database, nightly: Nightly, runs: Runs
) -> None:
    def work(check_stop: Callable[[], None]) -> str:
        outage.on = True
        return "worked"

    scheduler = nightly(database, work)
    result = scheduler.tick("round")
    assert result is not None
    assert result.outcome == JobOutcome.DONE
    outage.on = False
    assert [run.outcome for run in runs()] == ["running"]
    scheduler.look()
    assert [(run.outcome, run.message) for run in runs()] == [("done", "worked")]


@pytest.mark.slow
def test_a_process_that_ends_waits_for_the_database_to_record_its_run(
    outage: Outage, database: Database, nightly: Nightly, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    def work(check_stop: Callable[[], None]) -> str:
        outage.on = True
        return "worked"

    refuse, tries = outage.refuse, []

    def refuse_thrice(connection: sa.Connection) -> None:
        if outage.on:
            tries.append(1)
            outage.on = len(tries) < 3
        refuse(connection)

    sa.event.remove(database.engine, "begin", outage.refuse)
    sa.event.listen(database.engine, "begin", refuse_thrice)
    nightly(database, work).run_once("round")
    assert [run.outcome for run in runs()] == ["done"]


def test_a_run_that_lost_the_database_goes_on_when_it_is_back(
    outage: Outage, database: Database, nightly: Nightly, runs: Runs
) -> None:
    nights = iter([True, False])

    def work(check_stop: Callable[[], None]) -> str:
        if next(nights):
            with outage.lasting(), database.write() as session:
                session.add(JobRun())
        return "worked"

    scheduler = nightly(database, work)
    result = scheduler.tick("round")
    assert result is not None
    assert (result.outcome, "database went away" in result.message) == (JobOutcome.ABANDONED, True)
    assert [one.outcome for one in scheduler.look()] == [JobOutcome.DONE]
    assert [(run.planned_at, run.outcome) for run in runs()] == [(NIGHT, "abandoned"), (NIGHT, "done")]


def test_connections_the_server_cut_in_the_middle_of_a_run_do_not_lose_its_outcome(
    database: Database, database_url: str, nightly: Nightly, runs: Runs
) -> None:
    if database.dialect != "postgresql":
        pytest.skip("SQLite has no connections to cut")

    def work(check_stop: Callable[[], None]) -> str:
        others = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> "
        other = Database(database_url)
        with other.engine.connect() as connection:
            connection.execute(sa.text(others + "pg_backend_pid()"))
        other.close()
        return "worked"

    scheduler = nightly(database, work)
    scheduler.tick("round")
    scheduler.look()
    assert [run.outcome for run in runs()] == ["done"]


def test_alerts_that_fail_keep_nothing_from_running(database: Database, clock: Any, runs: Runs, caplog: Any) -> None:
    def broken(job: str | None, outcome: str | None, message: str | None) -> None:
        raise ImportError("no alerts here")

    job = Job("round", Cron("0 2 * * *", ZoneInfo("UTC"), key="round"), lambda check_stop: "worked", catches_up=True)
    scheduler = Scheduler(database, [job], now=clock, watch=broken)
    assert scheduler.tick("round") is not None
    assert scheduler.catch_up() == []
    assert [run.outcome for run in runs()] == ["done"]
    assert "nobody could be told: ImportError: no alerts here" in caplog.text


def test_people_are_told_of_each_run_and_at_each_look_back(database: Database, clock: Any) -> None:
    told: list[Any] = []

    def fails(check_stop: Callable[[], None]) -> str:
        raise RuntimeError("no")

    job = Job("round", Cron("0 2 * * *", ZoneInfo("UTC"), key="round"), fails)
    scheduler = Scheduler(database, [job], now=clock, watch=lambda *what: told.append(what))
    scheduler.tick("round")
    scheduler.catch_up()
    assert told == [("round", "failed", "RuntimeError: no"), (None, None, None)]
