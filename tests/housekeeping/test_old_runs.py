"""`activeseg gc` forgets old runs, planned times and requests, and nothing that anybody still asks for."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from activeseg.db import jobs, requests
from activeseg.db.models import JobOutcome, JobRun, RequestRow, ScheduleSlot
from activeseg.db.models.columns import now
from activeseg.housekeeping import collect_garbage, garbage
from tests.housekeeping.conftest import Store

MOMENT = now()


def ran(house: Store, days: float, job: str = "pull", outcome: JobOutcome = JobOutcome.DONE, **columns: Any) -> int:
    """A run of so many days ago."""
    at = MOMENT - timedelta(days=days)
    ended = None if outcome is JobOutcome.RUNNING else at + timedelta(minutes=1)
    row = {"planned_at": at, "host": "h", "pid": 1, "started_at": at, "ended_at": ended} | columns
    return house.add(JobRun(job=job, outcome=outcome, **row))


def planned(house: Store, days: float, job: str = "pull") -> None:
    at = MOMENT - timedelta(days=days)
    with house.database.write() as session:
        session.add(ScheduleSlot(job=job, planned_at=at, claimed_at=at))


def asked(house: Store, days: float, *, by: str = "ann", taken: bool = True, kind: str = "pull") -> int:
    at = MOMENT - timedelta(days=days)
    return house.add(RequestRow(kind=kind, requested_by=by, created_at=at, taken_at=at if taken else None))


def left(house: Store, column: Any) -> list[Any]:
    with house.database.read() as session:
        return list(session.scalars(sa.select(column).order_by(column)))


def test_runs_older_than_that_go_and_those_that_are_asked_for_stay(house: Store) -> None:
    well = ran(house, 130, "train")
    gone = [ran(house, 120), ran(house, 119, outcome=JobOutcome.FAILED), ran(house, 118, "train", JobOutcome.FAILED)]
    on = ran(house, 110, "train", JobOutcome.RUNNING)
    told = ran(house, 105, "train", JobOutcome.FAILED)
    last = ran(house, 100, "train", JobOutcome.BUSY)
    young = [ran(house, 89), ran(house, 1)]
    before = {run.run: run.outcome for run in last_of_each(house)}
    with house.database.read() as session:
        successes = jobs.last_successes(session)
    told_before = collect_garbage(house.workspace, dry_run=True)
    assert left(house, JobRun.id) == sorted([well, *gone, on, told, last, *young]), "a dry run removes nothing"
    done = collect_garbage(house.workspace)
    assert told_before.details["rows"] == done.details["rows"] == {"runs": len(gone)}
    assert told_before.written == done.written == len(gone)
    assert left(house, JobRun.id) == sorted([well, on, told, last, *young])
    assert {run.run: run.outcome for run in last_of_each(house)} == before
    with house.database.read() as session:
        assert jobs.last_successes(session) == successes
    assert collect_garbage(house.workspace).written == 0


def last_of_each(house: Store) -> list[jobs.RunRecord]:
    with house.database.read() as session:
        return jobs.last_of_each(session)


def test_a_planned_time_that_may_be_made_up_is_still_known_as_one(house: Store) -> None:
    for days in (120, 110, 100, 2, 0.1):
        planned(house, days)
    for days in (200, 150):
        planned(house, days, "gc")  # once a year, say
    assert collect_garbage(house.workspace).details["rows"] == {"planned times": 3}
    kept = [MOMENT - timedelta(days=days) for days in (150, 100, 2, 0.1)]
    assert left(house, ScheduleSlot.planned_at) == kept
    with house.database.write() as session:
        for job in ("pull", "gc"):
            assert not jobs.plan_from(session, job, at=MOMENT), "its beginning is not written down anew"
            missed = MOMENT - timedelta(days=0.05)
            assert jobs.claim_slot(session, job, missed, at=MOMENT, catching_up=True) is not None


def test_requests_that_were_served_go_and_open_ones_stay(house: Store) -> None:
    first, second = asked(house, 120), asked(house, 110)
    hint = asked(house, 115, by=requests.HINT)
    waiting = asked(house, 400, by="bob", taken=False, kind="round")
    serving = asked(house, 112, by="carl", kind="round")
    asked(house, 111, by="carl", kind="round")
    ran(house, 112, "round", JobOutcome.RUNNING, planned_at=None)
    assert collect_garbage(house.workspace).details["rows"] == {"requests": 1}
    assert first not in left(house, RequestRow.id)
    assert {second, hint, waiting, serving} <= set(left(house, RequestRow.id))
    with house.database.read() as session:
        assert requests.last_asked(session, "pull", requests.HINT) == MOMENT - timedelta(days=115)


def test_the_log_of_a_run_goes_with_its_row(make_house: Callable[..., Store], tmp_path: Path) -> None:
    house = make_house(housekeeping={"min_free_gb": 0, "log_days": 365, "keep_runs_days": 10})
    (tmp_path / "logs").mkdir()
    names = [f"2026010{day}-020000-pull-{day}.jsonl" for day in range(1, 4)]
    for name in [*names, "notes.txt"]:
        (tmp_path / "logs" / name).write_text("{}\n")
        house.age(tmp_path / "logs" / name, 20)
    ran(house, 20, log=str(tmp_path / "logs" / names[0]))
    ran(house, 20, log="/elsewhere/notes.txt")
    ran(house, 9, log=str(tmp_path / "logs" / names[1]))
    details = collect_garbage(house.workspace).details
    assert (details["logs"], details["rows"]) == (1, {"runs": 2})
    assert sorted(path.name for path in (tmp_path / "logs").iterdir()) == [*names[1:], "notes.txt"]


def test_many_rows_go_in_transactions_of_a_few(house: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(garbage, "ROWS", 2)
    for days in (120, 119, 118, 117, 116, 1):
        ran(house, days)
        planned(house, days)
    assert collect_garbage(house.workspace).details["rows"] == {"runs": 5, "planned times": 4}
    assert len(left(house, JobRun.id)) == 1
