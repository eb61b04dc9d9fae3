"""A planned time runs once, whoever looks at it and however often; every run leaves a row that says what became of it."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
import sqlalchemy as sa
from apscheduler.triggers.cron import CronTrigger

from activeseg.config import Settings
from activeseg.cron import Cron
from activeseg.db import lease
from activeseg.db.database import Database
from activeseg.db.models import JobOutcome, JobRun, ScheduleSlot
from activeseg.db.processes import this_host
from activeseg.errors import LabelStudioUnreachable
from activeseg.scheduler import Job, Scheduler, loop_jobs

pytestmark = pytest.mark.slow

NIGHT = datetime(2025, 6, 3, 2, tzinfo=UTC)
Runs = Callable[[], list[JobRun]]
Nightly = Callable[..., Scheduler]

ONE_SCHEDULER = """
import sys
from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo
from activeseg.db.database import Database
from activeseg.cron import Cron
from activeseg.scheduler import Job, Scheduler

job = Job("round", Cron("0 2 * * *", ZoneInfo("UTC"), key="round"), lambda check_stop: "worked")
scheduler = Scheduler(Database(sys.argv[1]), [job], now=lambda: datetime.fromisoformat(sys.argv[2]))
print("ready", flush=True)
sys.stdin.readline()
print("ran" if scheduler.tick("round") else "left it", flush=True)
"""


def test_two_processes_run_one_planned_time_once(database: Database, database_url: str, clock: Any, runs: Runs) -> None:
    command = [sys.executable, "-c", ONE_SCHEDULER, database_url, clock().isoformat()]
    pair = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.stdout.readline() for process in pair if process.stdout] == ["ready\n"] * 2
    for process in pair:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    answers = sorted(process.communicate(timeout=60)[0].strip() for process in pair)
    assert answers == ["left it", "ran"]
    assert [(run.planned_at, run.outcome, run.pid in {p.pid for p in pair}) for run in runs()] == [(NIGHT, "done", True)]


def test_schedulers_racing_for_many_times_run_each_once(
    database: Database, database_url: str, nightly: Nightly, clock: Any, runs: Runs
) -> None:
    other = Database(database_url)
    contenders = [nightly(place) for place in (database, other, database, other)]
    at_once = threading.Barrier(4)
    with ThreadPoolExecutor(4) as threads:
        for _ in range(10):
            list(threads.map(lambda one: (at_once.wait(), one.tick("round")), contenders))
            clock.move(days=1)
    other.close()
    assert [run.planned_at for run in runs()] == [NIGHT + timedelta(days=day) for day in range(10)]


def test_a_restart_inside_the_minute_runs_nothing_again(database: Database, nightly: Nightly, runs: Runs) -> None:
    assert nightly(database).tick("round") is not None
    restarted = nightly(database)
    restarted.recover()
    assert restarted.catch_up() == []
    assert restarted.tick("round") is None
    assert len(runs()) == 1


def test_a_clock_set_back_runs_no_time_again(database: Database, nightly: Nightly, clock: Any, runs: Runs) -> None:
    scheduler = nightly(database, cron="*/10 * * * *")
    for minutes in (0, 10, -10, 10, 10):
        clock.move(minutes=minutes)
        scheduler.tick("round")
    assert [run.planned_at for run in runs()] == [NIGHT + timedelta(minutes=late) for late in (0, 10, 20)]


def test_a_missed_night_is_made_up_once_at_start(database: Database, nightly: Nightly, clock: Any, runs: Runs) -> None:
    nightly(database).tick("round")
    clock.move(days=3, hours=4)
    assert [result.planned_at for result in nightly(database).catch_up()] == [NIGHT + timedelta(days=3)]
    assert nightly(database).catch_up() == []
    assert [run.planned_at for run in runs()] == [NIGHT, NIGHT + timedelta(days=3)]


def test_the_very_first_start_makes_nothing_up(database: Database, nightly: Nightly, runs: Runs) -> None:
    assert nightly(database).catch_up() == []
    assert runs() == []


def test_a_night_missed_too_long_ago_is_left(database: Database, nightly: Nightly, clock: Any, runs: Runs) -> None:
    nightly(database).tick("round")
    clock.move(days=1, hours=6)
    assert nightly(database).catch_up() == []
    assert len(runs()) == 1


def test_only_jobs_that_want_it_are_made_up(database: Database, clock: Any) -> None:
    pull = Job("pull", Cron("*/10 * * * *", ZoneInfo("UTC"), key="pull"), lambda check_stop: "pulled")
    scheduler = Scheduler(database, [pull], now=clock)
    assert scheduler.tick("pull") is not None
    clock.move(minutes=15)
    assert scheduler.catch_up() == []


def test_a_run_says_who_ran_when_and_what_came_of_it(database: Database, nightly: Nightly, clock: Any, runs: Runs) -> None:
    def work(check_stop: Callable[[], None]) -> str:
        [row] = runs()
        assert (row.outcome, row.ended_at) == (JobOutcome.RUNNING, None)
        clock.move(minutes=5)
        return "score 12, push 12"

    result = nightly(database, work).tick("round")
    [run] = runs()
    assert (run.job, run.planned_at, run.host, run.pid) == ("round", NIGHT, this_host(), os.getpid())
    assert (run.outcome, run.message) == (JobOutcome.DONE, "score 12, push 12")
    assert run.ended_at is not None
    assert run.ended_at - run.started_at == timedelta(minutes=5)
    assert result is not None
    assert result.seconds == 300
    with database.read() as session:
        assert session.scalar(sa.select(sa.func.count()).select_from(ScheduleSlot)) == 1


def test_another_holder_of_the_lease_makes_a_run_busy(
    database: Database, database_url: str, nightly: Nightly, runs: Runs
) -> None:
    def work(check_stop: Callable[[], None]) -> str:
        mine = Database(database_url)
        try:
            with lease.holding(mine):
                return "worked"
        finally:
            mine.close()

    scheduler = nightly(database, work)
    other = Database(database_url)
    with lease.holding(other):
        scheduler.tick("round")
    other.close()
    [run] = runs()
    assert run.outcome == JobOutcome.BUSY
    assert "another process is at work" in (run.message or "")


def test_a_night_that_found_the_lease_taken_is_made_up_for(
    database: Database, database_url: str, nightly: Nightly, clock: Any, runs: Runs
) -> None:
    def work(check_stop: Callable[[], None]) -> str:
        mine = Database(database_url)
        try:
            with lease.holding(mine):
                return "worked"
        finally:
            mine.close()

    scheduler = nightly(database, work)
    scheduler.tick("round")
    clock.move(days=1)
    other = Database(database_url)
    with lease.holding(other):
        scheduler.tick("round")
    other.close()
    clock.move(minutes=10)
    scheduler.catch_up()
    scheduler.catch_up()
    assert [run.outcome for run in runs()] == [JobOutcome.DONE, JobOutcome.BUSY, JobOutcome.DONE]


def test_what_waits_for_a_backup_is_not_tried_at_each_look(
    database: Database, database_url: str, clock: Any, runs: Runs
) -> None:
    def work(check_stop: Callable[[], None]) -> str:
        mine = Database(database_url)
        try:
            with lease.holding(mine, lease.FILES):
                return "worked"
        finally:
            mine.close()

    [gc] = [one for one in loop_jobs(Settings(schedule={"gc": "0 2 * * *"})) if one.name == "gc"]
    scheduler = Scheduler(database, [replace(gc, run=work)], now=clock)
    other = Database(database_url)
    with lease.holding(other, lease.FILES):
        scheduler.tick("gc")
        assert [scheduler.look() for _ in range(3)] == [[], [], []]
    other.close()
    scheduler.look()
    assert [run.outcome for run in runs()] == [JobOutcome.BUSY, JobOutcome.DONE]


def test_failures_are_recorded_and_the_next_night_runs(
    database: Database, nightly: Nightly, clock: Any, runs: Runs, caplog: pytest.LogCaptureFixture
) -> None:
    nights: list[Exception | None] = [
        LabelStudioUnreachable("no answer from http://ls"),
        ZeroDivisionError("by zero\nor so"),
        None,
    ]

    def work(check_stop: Callable[[], None]) -> str:
        error = nights.pop(0)
        if error is not None:
            raise error
        return "worked"

    scheduler = nightly(database, work)
    with caplog.at_level(logging.ERROR):
        for _ in range(3):
            scheduler.tick("round")
            clock.move(days=1)
    assert [(run.outcome, run.message) for run in runs()] == [
        ("failed", "no answer from http://ls"),
        ("failed", "ZeroDivisionError: by zero"),
        ("done", "worked"),
    ]
    assert [record.exc_info[0] for record in caplog.records if record.exc_info] == [ZeroDivisionError]


def test_a_message_longer_than_its_column_is_cut(database: Database, nightly: Nightly, runs: Runs) -> None:
    nightly(database, lambda check_stop: "x" * 5000).tick("round")
    assert runs()[0].message == "x" * 1000


def test_a_night_lost_to_an_absent_database_is_reported_and_made_up(
    database: Database, nightly: Nightly, clock: Any, runs: Runs, caplog: pytest.LogCaptureFixture
) -> None:
    scheduler = nightly(database)
    scheduler.tick("round")
    clock.move(days=1)
    rename = "ALTER TABLE {} RENAME TO {}"
    with database.engine.begin() as connection:
        connection.execute(sa.text(rename.format("schedule_slots", "elsewhere")))
    with caplog.at_level(logging.CRITICAL):
        result = scheduler.tick("round")
    assert result is not None
    assert (result.outcome, result.message.split(":")[0]) == (JobOutcome.FAILED, "not begun")
    with database.engine.begin() as connection:
        connection.execute(sa.text(rename.format("elsewhere", "schedule_slots")))
    assert [made_up.outcome for made_up in scheduler.catch_up()] == [JobOutcome.DONE]
    assert [run.planned_at for run in runs()] == [NIGHT, NIGHT + timedelta(days=1)]


def test_run_once_claims_no_planned_time(database: Database, nightly: Nightly, runs: Runs) -> None:
    scheduler = nightly(database)
    assert scheduler.run_once("round").outcome == JobOutcome.DONE
    assert scheduler.tick("round") is not None
    assert [run.planned_at for run in runs()] == [None, NIGHT]


def test_a_job_interrupted_by_a_signal_is_abandoned_and_goes_on_next_time(
    database: Database, nightly: Nightly, runs: Runs
) -> None:
    def work(check_stop: Callable[[], None]) -> str:
        os.kill(os.getpid(), 15)
        raise AssertionError("not reached: the signal interrupts the main thread")

    assert nightly(database, work).run_once("round").outcome == JobOutcome.ABANDONED
    [run] = runs()
    assert run.ended_at is not None


class EverySecond(Cron):
    """A trigger fast enough for a test."""

    def __init__(self) -> None:
        super().__init__("* * * * *", ZoneInfo("UTC"), key="round")
        self._trigger = CronTrigger(second="*", timezone="UTC")

    def latest(self, now: datetime, *, within: timedelta) -> datetime:
        return now.replace(microsecond=0)


def test_apscheduler_calls_the_job_and_a_signal_ends_it_at_its_next_stop(database: Database, runs: Runs) -> None:
    begun = threading.Event()

    def work(check_stop: Callable[[], None]) -> str:
        begun.set()
        while True:
            check_stop()
            threading.Event().wait(0.01)

    def end_when_begun() -> None:
        begun.wait(30)
        os.kill(os.getpid(), 15)

    scheduler = Scheduler(database, [Job("round", EverySecond(), work)])
    watcher = threading.Thread(target=end_when_begun)
    stopped: list[bool] = []
    scheduler.run(on_start=watcher.start, on_stop=lambda: stopped.append(True))
    watcher.join()
    [run] = runs()
    assert (run.outcome, stopped) == (JobOutcome.ABANDONED, [True])
    assert run.planned_at is not None


def test_a_stopped_scheduler_begins_nothing(database: Database, runs: Runs) -> None:
    scheduler = Scheduler(database, [Job("round", EverySecond(), lambda check_stop: "worked")])
    scheduler.run(on_start=lambda: os.kill(os.getpid(), 2))
    before = len(runs())
    assert scheduler.tick("round") is None
    assert len(runs()) == before
