"""What is asked for between planned times: written once, run once, by whoever may."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
import sqlalchemy as sa

from activeseg.cron import Cron
from activeseg.db import lease, requests
from activeseg.db.database import Database
from activeseg.db.models import JobOutcome, JobRun, RequestRow
from activeseg.errors import LabelStudioUnreachable, LeaseError
from activeseg.scheduler import Job, Scheduler

Runs = Callable[[], list[JobRun]]
NEVER = Cron("0 0 29 2 *", ZoneInfo("UTC"), key="pull")


def ask(database: Database, kind: str = requests.PULL) -> bool:
    with database.write() as session:
        return requests.ask(session, kind, requested_by=requests.HINT)


def rows(database: Database) -> list[RequestRow]:
    with database.read() as session:
        return list(session.scalars(sa.select(RequestRow).order_by(RequestRow.id)))


def waiting(database: Database) -> bool:
    with database.read() as session:
        return requests.is_waiting(session, [requests.PULL])


@pytest.fixture
def pulling(database: Database, clock: Any) -> Callable[..., Scheduler]:
    def make(work: Callable[..., str] = lambda check_stop: "pull 3", database: Database = database) -> Scheduler:
        jobs = [Job("round", NEVER, lambda check_stop: "never"), Job("pull", NEVER, work, on_request=True)]
        return Scheduler(database, jobs, now=clock)

    return make


def test_of_many_hints_one_request_waits(database: Database) -> None:
    assert [ask(database) for _ in range(5)] == [True, False, False, False, False]
    [row] = rows(database)
    assert (row.kind, row.requested_by, row.taken_at) == ("pull", "label studio webhook", None)


def test_hints_at_the_same_moment_leave_one_request(database: Database, database_url: str) -> None:
    others = [Database(database_url) for _ in range(4)]
    barrier = threading.Barrier(4)

    def hint(other: Database) -> bool:
        barrier.wait(30)
        return ask(other)

    try:
        with ThreadPoolExecutor(4) as threads:
            written = list(threads.map(hint, others))
    finally:
        for other in others:
            other.close()
    assert sorted(written) == [False, False, False, True]
    assert len(rows(database)) == 1


def test_a_waiting_request_runs_the_pull_once(database: Database, pulling: Any, runs: Runs, clock: Any) -> None:
    scheduler = pulling()
    assert scheduler.serve_request() is None
    ask(database)
    result = scheduler.serve_request()
    assert (result.job, result.planned_at, result.outcome) == ("pull", None, JobOutcome.DONE)
    assert scheduler.serve_request() is None
    [run] = runs()
    assert (run.job, run.message) == ("pull", "pull 3")
    [row] = rows(database)
    assert row.taken_at == clock.time


def test_a_hint_that_comes_while_the_pull_runs_is_pulled_after_it_rested(
    database: Database, pulling: Any, runs: Runs, clock: Any
) -> None:
    def work(check_stop: Callable[[], None]) -> str:
        if len(rows(database)) == 1:
            ask(database)
        clock.move(seconds=100)
        return "worked"

    scheduler = pulling(work)
    ask(database)
    served = []
    for seconds in (0, 0, 29, 1, 60):
        clock.move(seconds=seconds)
        served.append(scheduler.serve_request() is not None)
    # Thirty seconds from its end on, and it was one hint: no third pull.
    assert served == [True, False, False, True, False]
    assert len(runs()) == 2


@pytest.mark.slow
def test_people_who_submit_all_the_time_do_not_keep_the_pull_running_all_the_time(
    database: Database, pulling: Any, runs: Runs, clock: Any
) -> None:
    scheduler = pulling()
    for _ in range(60):
        ask(database)
        scheduler.serve_request()
        clock.move(seconds=3)
    assert len(runs()) == 6
    assert waiting(database)


def test_a_restart_and_another_scheduler_keep_the_rest_too(
    database: Database, database_url: str, pulling: Any, clock: Any
) -> None:
    ask(database)
    assert pulling().serve_request() is not None
    ask(database)
    other = Database(database_url)
    try:
        assert pulling(database=other).serve_request() is None
        clock.move(seconds=30)
        assert pulling(database=other).serve_request() is not None
    finally:
        other.close()


def test_a_planned_pull_keeps_no_hint_waiting(database: Database, clock: Any) -> None:
    job = Job("pull", Cron("* * * * *", ZoneInfo("UTC"), key="pull"), lambda check_stop: "pull 3", on_request=True)
    scheduler = Scheduler(database, [job], now=clock)
    assert scheduler.tick("pull") is not None
    ask(database)
    assert scheduler.serve_request() is not None


def test_a_clock_that_is_set_back_keeps_no_hint_waiting(database: Database, pulling: Any, clock: Any) -> None:
    scheduler = pulling()
    ask(database)
    scheduler.serve_request()
    ask(database)
    clock.move(days=-1)
    assert scheduler.serve_request() is not None


def test_while_a_request_waits_for_its_rest_nothing_is_written(database: Database, pulling: Any, monkeypatch: Any) -> None:
    scheduler = pulling()
    ask(database)
    scheduler.serve_request()
    ask(database)
    monkeypatch.setattr(database, "write", lambda: pytest.fail("the database was written to"))
    assert scheduler.serve_request() is None


def test_of_two_schedulers_one_gets_the_request(database: Database, database_url: str, pulling: Any, runs: Runs) -> None:
    ask(database)
    others = [Database(database_url) for _ in range(4)]
    barrier = threading.Barrier(4)

    def look(other: Database) -> bool:
        scheduler = pulling(database=other)
        barrier.wait(30)
        return scheduler.serve_request() is not None

    try:
        with ThreadPoolExecutor(4) as threads:
            assert sorted(threads.map(look, others)) == [False, False, False, True]
    finally:
        for other in others:
            other.close()
    assert len(runs()) == 1


@pytest.mark.parametrize("kind", ["retrain", "round", ""])
def test_what_it_does_not_answer_to_stays(database: Database, pulling: Any, runs: Runs, kind: str) -> None:
    ask(database, kind)
    assert pulling().serve_request() is None
    assert (runs(), rows(database)[0].taken_at) == ([], None)


def test_while_another_process_holds_the_lease_the_request_waits_and_no_run_is_written(
    database: Database, database_url: str, pulling: Any, runs: Runs
) -> None:
    ask(database)
    other = Database(database_url)
    try:
        with lease.holding(other):
            assert pulling().serve_request() is None
            assert (runs(), waiting(database)) == ([], True)
    finally:
        other.close()
    assert pulling().serve_request() is not None


def test_a_lease_lost_in_between_gives_the_request_back(database: Database, pulling: Any, runs: Runs) -> None:
    def busy(check_stop: Callable[[], None]) -> str:
        raise LeaseError("another process is at work")

    ask(database)
    assert pulling(busy).serve_request().outcome == JobOutcome.BUSY
    assert waiting(database)
    assert [run.outcome for run in runs()] == [JobOutcome.BUSY]


def test_given_back_beside_a_new_hint_one_request_waits(database: Database, pulling: Any) -> None:
    def busy(check_stop: Callable[[], None]) -> str:
        ask(database)
        raise LeaseError("another process is at work")

    ask(database)
    pulling(busy).serve_request()
    assert [row.taken_at is None for row in rows(database)] == [False, True]


def test_a_failed_pull_is_not_tried_again_before_its_planned_time(database: Database, pulling: Any, runs: Runs) -> None:
    def away(check_stop: Callable[[], None]) -> str:
        raise LabelStudioUnreachable("no answer")

    ask(database)
    scheduler = pulling(away)
    assert scheduler.serve_request().outcome == JobOutcome.FAILED
    assert scheduler.serve_request() is None


def test_an_absent_database_is_no_exception_and_the_next_look_finds_the_request(
    database: Database, pulling: Any, caplog: pytest.LogCaptureFixture
) -> None:
    ask(database)
    with database.engine.begin() as connection:
        connection.execute(sa.text("ALTER TABLE requests RENAME TO elsewhere"))
    assert pulling().serve_request() is None
    assert "requests could not be looked for" in caplog.text
    with database.engine.begin() as connection:
        connection.execute(sa.text("ALTER TABLE elsewhere RENAME TO requests"))
    assert pulling().serve_request() is not None


def test_the_running_scheduler_looks_every_few_seconds(database: Database, runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("activeseg.scheduler.scheduler.LOOK_EVERY", timedelta(seconds=0.2))
    done = threading.Event()

    def work(check_stop: Callable[[], None]) -> str:
        done.set()
        return "worked"

    def end_when_done() -> None:
        import os

        ask(database)
        done.wait(30)
        os.kill(os.getpid(), 15)

    watcher = threading.Thread(target=end_when_done)
    Scheduler(database, [Job("pull", NEVER, work, on_request=True)]).run(on_start=watcher.start)
    watcher.join()
    assert [(run.job, run.outcome) for run in runs()] == [("pull", JobOutcome.DONE)]
