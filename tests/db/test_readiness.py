from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from activeseg.config import Settings
from activeseg.db import figures, history, jobs, lease
from activeseg.db.alerts import GIVEN_UP_AFTER, RETRIES, AlertKind
from activeseg.db.database import Database
from activeseg.db.models import Alert, JobOutcome, JobRun, QueryStatus, RequestRow, RoundStatus
from activeseg.db.models.columns import now
from activeseg.db.morning import read_morning
from activeseg.db.readiness import scheduler_at_work, scheduler_seen, standing_still
from activeseg.db.status import read_status
from tests.db.rows import Rows

NOW = datetime(2026, 3, 3, 12, tzinfo=UTC)


def test_the_last_sign_of_a_scheduler_is_found_whatever_it_was(database: Database) -> None:
    with database.write() as session:
        assert scheduler_seen(session) is None
        jobs.take_slot(session, "pull", NOW, at=NOW)
        assert scheduler_seen(session) == NOW
        session.add(row := JobRun(job="round", host="h", pid=1, outcome=JobOutcome.DONE, started_at=NOW + timedelta(hours=1)))
        session.flush()
        assert scheduler_seen(session) == NOW + timedelta(hours=1)
        row.beat_at = (NOW + timedelta(hours=2)).timestamp()
        session.flush()
        assert scheduler_seen(session) == NOW + timedelta(hours=2)
        row.ended_at = NOW + timedelta(hours=3)
        session.flush()
        assert scheduler_seen(session) == NOW + timedelta(hours=3)


def test_what_stands_still_is_told_once_each(database: Database) -> None:
    with database.write() as session:
        session.add(JobRun(job="pull", host="h", pid=1, outcome=JobOutcome.FAILED, message="disk full", ended_at=NOW))
        session.add(JobRun(job="pull", host="h", pid=1, outcome=JobOutcome.BUSY))
        session.add(RequestRow(kind="round", argument={}, requested_by="ann", created_at=NOW - timedelta(hours=1)))
        session.flush()
        assert standing_still(session, planned=["pull"], at=NOW, zone=ZoneInfo("Asia/Tokyo")) == [
            "pull failed at 2026-03-03 21:00 JST: disk full",
            "round was asked for at 2026-03-03 20:00 JST and not begun",
        ]
        assert len(standing_still(session, planned=[], at=NOW - timedelta(minutes=50), zone=UTC)) == 0


def test_what_keeps_a_round_from_being_sent_is_one_problem_however_many_runs_met_it(database: Database, rows: Rows) -> None:
    number = rows.round(RoundStatus.SELECTED, error="no answer")
    rows.round(RoundStatus.CLOSED, error="no image was left to ask about")
    for job in ("round", "pull"):
        rows.add(JobRun(job=job, host="h", pid=1, outcome=JobOutcome.FAILED, message="no answer", ended_at=NOW, started_at=NOW))
    with database.read() as session:
        problems = read_status(session, Settings())["problems"]
        still = standing_still(session, planned=["round", "pull"], at=NOW, zone=UTC)
    told = [f"round {number}: no answer", "pull failed"]
    for lines in (problems, still):
        assert [line.startswith(start) for line, start in zip(lines, told, strict=True)] == [True, True], lines


def test_images_of_a_round_that_is_not_sent_yet_wait_for_no_annotator(database: Database, rows: Rows) -> None:
    rows.query(rows.round(RoundStatus.PUSHED), rows.image())
    for _ in range(3):
        rows.query(rows.round(RoundStatus.SELECTED), rows.image(), QueryStatus.SELECTED)
    with database.read() as session:
        assert read_status(session, Settings())["next"][0].startswith("1 image to annotate")
        assert figures.read_figures(session).open_tasks == 1


def test_the_morning_of_an_empty_and_of_a_used_database(database: Database) -> None:
    with database.read() as session:
        empty = read_morning(session, Settings())
    assert (empty.night, empty.decision, empty.curve, empty.ranking, empty.runs, empty.requests) == (None, None, [], [], [], [])
    with database.write() as session:
        for number in range(15):
            session.add(JobRun(job="round", host="h", pid=1, outcome=JobOutcome.DONE, message=str(number)))
            session.add(Alert(kind="failure", about="round", message=str(number), sent_at=NOW if number % 2 else None))
        session.add(RequestRow(kind="round", argument={}, requested_by="ann"))
    with database.read() as session:
        used = read_morning(session, Settings())
        waiting, last = history.waiting_alerts(session, limit=3), history.last_alerts(session, limit=3)
    assert used.night is not None
    assert used.night.message == "14"
    assert [run.message for run in used.runs] == [str(number) for number in range(14, 4, -1)]
    assert [request.requested_by for request in used.requests] == ["ann"]
    assert [alert.message for alert in waiting + last] == ["0", "2", "4", "13", "11", "9"]


def test_what_is_not_tried_any_more_and_tests_do_not_wait(database: Database) -> None:
    long_ago = now() - GIVEN_UP_AFTER - timedelta(minutes=1)
    with database.write() as session:
        for message, columns in {
            "new": {},
            "tried": {"attempts": 1, "error": "no route"},
            "cut off in its first attempt": {"attempts": 1, "created_at": long_ago},
            "too old": {"attempts": 3, "error": "no route", "created_at": long_ago},
            "tried too often": {"attempts": len(RETRIES), "error": "no route"},
            "test": {"kind": AlertKind.TEST, "attempts": 1, "error": "no route"},
        }.items():
            session.add(Alert(**{"kind": AlertKind.FAILURE, "about": "round", "message": message} | columns))
            session.flush()
    with database.read() as session:
        waiting = [alert.message for alert in history.waiting_alerts(session, limit=10)]
        given_up = [alert.message for alert in history.given_up_alerts(session, limit=10)]
        count = figures.read_figures(session).alerts_waiting
    assert (waiting, count) == (["new", "tried", "cut off in its first attempt"], 3)
    assert given_up == ["tried too often", "too old"]


@pytest.mark.parametrize(("planned", "request_by", "stays"), [(NOW, None, True), (None, "web: ann", True), (None, None, False)])
def test_the_scheduler_that_stays_is_known_by_the_run_it_holds_the_lease_for(
    database: Database, planned: datetime | None, request_by: str | None, stays: bool
) -> None:
    with lease.holding(database), database.write() as session:
        if request_by:
            session.add(RequestRow(kind="round", argument={}, requested_by=request_by, taken_at=NOW))
        assert scheduler_at_work(session) is None
        row = jobs.start_run(session, "round", planned, at=NOW)
        found = scheduler_at_work(session)
        assert (found is not None) is stays
        assert [run.asked_by for run in jobs.history(session, limit=1)] == [request_by]
        row.pid += 1  # another process's run, while we hold the lease
        session.flush()
        assert scheduler_at_work(session) is None
    with database.read() as session:
        assert scheduler_at_work(session) is None
