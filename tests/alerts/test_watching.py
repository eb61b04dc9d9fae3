"""A person is told once of what goes wrong, again only when it still does or does so anew, and once that it is over."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import datetime, timedelta

import pytest
import sqlalchemy as sa

from activeseg.alerts import watch
from activeseg.alerts.watching import note_drift, note_idleness, note_run
from activeseg.config import Settings
from activeseg.db import alerts, drift, jobs
from activeseg.db.alerts import AlertKind
from activeseg.db.database import Database
from activeseg.db.models import Alert, JobOutcome, JobRun, QueryStatus
from activeseg.db.models.columns import now
from tests.alerts.receivers import Receiver
from tests.db.rows import Rows

Make = Callable[..., Settings]
Read = Callable[[], list[Alert]]
START = now() - timedelta(days=3)


class Nights:
    """A job's runs, minute by minute."""

    def __init__(self, database: Database, settings: Settings) -> None:
        self.database, self.settings = database, settings

    def end(self, outcome: str, *, minute: float, job: str = "pull") -> None:
        with self.database.write() as session:
            note_run(session, self.settings, job, outcome, "said why", at=START + timedelta(minutes=minute))

    def told(self) -> list[tuple[str, str]]:
        with self.database.read() as session:
            return [(row.kind, row.about) for row in alerts.newest(session)[::-1]]


@pytest.fixture
def nights(database: Database, make_settings: Make) -> Nights:
    return Nights(database, make_settings())


def test_a_job_that_fails_every_ten_minutes_is_one_alert_and_one_when_it_works_again(nights: Nights) -> None:
    for minute in range(0, 600, 10):
        nights.end("abandoned" if minute == 30 else "failed", minute=minute)
    for minute in range(600, 660, 10):
        nights.end("done", minute=minute)
    assert nights.told() == [("failure", "pull"), ("recovery", "pull")]


def test_a_job_that_works_is_no_news(nights: Nights) -> None:
    nights.end("done", minute=0)
    nights.end("busy", minute=1)
    assert nights.told() == []


def test_a_job_that_is_kept_waiting_is_not_well_again(nights: Nights) -> None:
    nights.end("failed", minute=0)
    nights.end("busy", minute=10)
    nights.end("failed", minute=20)
    assert nights.told() == [("failure", "pull")]


def test_a_failure_that_ended_and_comes_back_is_news(nights: Nights) -> None:
    for minute, outcome in enumerate(["failed", "done", "failed", "failed"]):
        nights.end(outcome, minute=minute)
    assert nights.told() == [("failure", "pull"), ("recovery", "pull"), ("failure", "pull")]


def test_a_job_that_fails_every_night_is_told_every_morning_in_spite_of_a_few_minutes(nights: Nights, rows_of: Read) -> None:
    for night, late in enumerate((31, 29, 33)):
        nights.end("failed", minute=night * 1440 + late, job="round")
    assert nights.told() == [("failure", "round")] * 3
    assert [row.message.split(":")[0] for row in rows_of()] == ["round failed", "round still failed", "round still failed"]


def test_a_job_that_comes_and_goes_all_night_is_told_a_few_times(nights: Nights, rows_of: Read) -> None:
    for minute in range(0, 1200, 10):
        nights.end("failed" if minute % 20 else "done", minute=minute)
    told = nights.told()
    assert told.count(("failure", "pull")) == 3
    assert told[-1] == ("failure", "pull")
    assert "comes and goes" in rows_of()[-1].message
    nights.end("done", minute=1300)
    assert nights.told()[-1] == ("recovery", "pull")


def test_jobs_do_not_hide_each_other(nights: Nights) -> None:
    nights.end("failed", minute=0, job="round")
    nights.end("failed", minute=1, job="pull")
    nights.end("done", minute=2, job="pull")
    assert nights.told() == [("failure", "round"), ("failure", "pull"), ("recovery", "pull")]


@pytest.fixture
def rows_of(database: Database) -> Read:
    def read() -> list[Alert]:
        with database.read() as session:
            return alerts.newest(session)[::-1]

    return read


def run_row(database: Database, outcome: JobOutcome, ended_at: datetime, message: str = "no room") -> None:
    with database.write() as session:
        session.add(
            JobRun(job="round", host="h", pid=1, outcome=outcome, message=message, started_at=ended_at, ended_at=ended_at)
        )


def test_a_run_whose_process_died_before_it_told_is_told_at_the_next_look(
    database: Database, receiver: Receiver, make_settings: Make, rows_of: Read
) -> None:
    settings = make_settings(alerts={"webhook_url": receiver.url})
    run_row(database, JobOutcome.FAILED, now() - timedelta(minutes=5))
    for _ in range(3):
        watch(settings, database)
    assert [(row.kind, row.message, row.attempts) for row in rows_of()] == [("failure", "round failed: no room", 1)]
    run_row(database, JobOutcome.DONE, now())
    watch(settings, database)
    watch(settings, database, job="round", outcome="done", message="nothing new")
    assert [row.kind for row in rows_of()] == ["failure", "recovery"]
    assert len(receiver.got) == 2


def test_restarts_of_the_scheduler_are_no_news_and_do_not_use_up_what_tells_of_failures(
    database: Database, make_settings: Make, rows_of: Read
) -> None:
    for minute in range(5, 0, -1):
        run_row(database, JobOutcome.ABANDONED, now() - timedelta(minutes=minute), jobs.STOPPED)
        watch(make_settings(), database, job="round", outcome="abandoned", message=jobs.STOPPED)
    watch(make_settings(), database)
    assert rows_of() == []
    watch(make_settings(), database, job="round", outcome="failed", message="no room")
    assert [row.message for row in rows_of()] == ["round failed: no room"]


def test_failures_of_last_week_are_no_news_to_a_new_program(database: Database, make_settings: Make, rows_of: Read) -> None:
    run_row(database, JobOutcome.FAILED, now() - timedelta(days=7))
    watch(make_settings(), database)
    assert rows_of() == []


def test_watching_never_raises_and_goes_on_where_noting_failed(
    database: Database, receiver: Receiver, make_settings: Make, rows_of: Read, caplog: pytest.LogCaptureFixture
) -> None:
    settings = make_settings(alerts={"webhook_url": receiver.url})
    watch(settings, database, job="round", outcome="failed", message="x")
    with database.write() as session:
        session.execute(sa.text("ALTER TABLE alerts RENAME TO away"))
    watch(settings, database, job="pull", outcome="failed", message="x")
    assert "could not be noted" in caplog.text
    with database.write() as session:
        session.execute(sa.text("ALTER TABLE away RENAME TO alerts"))
    watch(settings, database, job="pull", outcome="failed", message="x")
    assert [row.about for row in rows_of()] == ["round", "pull"]
    assert len(receiver.got) == 2


class Tasks:
    """Open tasks of a round pushed on a day."""

    def __init__(self, database: Database, rows: Rows, settings: Settings) -> None:
        self.database, self.rows, self.settings = database, rows, settings
        self.day = now() - timedelta(days=30)

    def push(self, day: float) -> int:
        round_id = self.rows.round(pushed_at=self.day + timedelta(days=day))
        return self.rows.query(round_id, self.rows.image(), QueryStatus.PUSHED)

    def answer(self, query: int, day: float) -> None:
        annotation = self.rows.annotation(self.rows.image(), query_id=query)
        with self.database.write() as session:
            session.execute(
                sa.text("UPDATE annotations SET received_at = :at WHERE id = :id").bindparams(
                    sa.bindparam("at", type_=sa.DateTime(timezone=True)), id=annotation, at=self.day + timedelta(days=day)
                )
            )

    def look(self, day: float) -> int:
        with self.database.write() as session:
            note_idleness(session, self.settings, at=self.day + timedelta(days=day))
            return len([row for row in alerts.newest(session) if row.kind == AlertKind.IDLE])


@pytest.fixture
def tasks(database: Database, make_settings: Make) -> Tasks:
    return Tasks(database, Rows(database), make_settings())


def test_open_tasks_nobody_annotates_are_told_after_a_week_and_then_weekly(tasks: Tasks) -> None:
    assert tasks.look(0) == 0
    tasks.push(1)
    assert [tasks.look(day) for day in (2, 7.9, 8.1, 8.2, 14, 15.2)] == [0, 0, 1, 1, 1, 2]


def test_an_answer_begins_the_wait_anew(tasks: Tasks) -> None:
    first = tasks.push(1)
    tasks.push(1)
    tasks.answer(first, 5)
    assert [tasks.look(day) for day in (8.5, 11.9, 12.1)] == [0, 0, 1]
    tasks.answer(first, 13)
    assert [tasks.look(day) for day in (19.9, 20.1)] == [1, 2]


def test_no_open_task_is_no_idleness_and_zero_days_is_never(tasks: Tasks, database: Database, make_settings: Make) -> None:
    tasks.rows.query(tasks.rows.round(pushed_at=tasks.day), tasks.rows.image(), QueryStatus.ANNOTATED)
    assert tasks.look(20) == 0
    tasks.push(1)
    never = Tasks(database, tasks.rows, make_settings(alerts={"idle_days": 0}))
    assert never.look(20) == 0


def test_drift_is_told_once_again_by_a_later_run_and_anew_after_it_was_over(
    database: Database, make_settings: Make, rows_of: Read
) -> None:
    rows = Rows(database)
    config = rows.config(rows.checkpoint("fcn-1"))
    settings = make_settings()

    def scored(hour: float, sentence: str | None) -> list[str]:
        at = START + timedelta(hours=hour)
        rows.run(config, shift=0.4 if sentence else 0.1, drift=sentence, ended_at=at)
        for _ in range(2):
            with database.write() as session:
                note_drift(session, settings, at=at + timedelta(minutes=1))
        return [row.about for row in rows_of()]

    assert scored(0, None) == []
    assert scored(1, "shifted") == ["fcn-1"]
    assert scored(2, "shifted") == ["fcn-1"]
    assert scored(3, None) == ["fcn-1"]
    assert scored(4, "shifted") == ["fcn-1", "fcn-1"]
    assert scored(25, "shifted") == ["fcn-1"] * 3
    assert "shifted" in rows_of()[0].message
    with database.write() as session:
        drift.accept(session, accepted_by="ada")
    with database.write() as session:
        note_drift(session, settings, at=now())
    assert [row.about for row in rows_of()] == [*["fcn-1"] * 3, "accepted"]


def test_of_two_that_see_one_failure_one_tells_it(
    database: Database, receiver: Receiver, make_settings: Make, rows_of: Read
) -> None:
    settings = make_settings(alerts={"webhook_url": receiver.url})
    together = threading.Barrier(4)

    def look() -> None:
        together.wait()
        watch(settings, database, job="round", outcome="failed", message="no room")

    threads = [threading.Thread(target=look) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [row.kind for row in rows_of()] == ["failure"]
    assert len(receiver.got) == 1
