from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
import sqlalchemy as sa
from starlette.testclient import TestClient

from activeseg.db import jobs, lease
from activeseg.db.database import Database
from activeseg.db.models import Alert, JobOutcome, JobRun, RequestRow
from activeseg.db.status import read_status
from activeseg.web.operations import RecentStatus
from activeseg.workspace import Workspace


def run(job: str, outcome: JobOutcome, **columns: Any) -> JobRun:
    return JobRun(job=job, host="h", pid=1, outcome=outcome, **columns)


def test_asking_for_a_round_leaves_a_row_and_a_second_time_none(client: TestClient, database: Database) -> None:
    first, second = client.post("/api/rounds"), client.post("/api/rounds")
    assert (first.status_code, second.status_code) == (202, 202)
    assert [answer.json()["new"] for answer in (first, second)] == [True, False]
    assert "activeseg schedule" in first.json()["what"]
    with database.read() as session:
        [row] = session.scalars(sa.select(RequestRow))
    assert (row.kind, row.argument, row.requested_by, row.taken_at) == ("round", {}, "web: the installation's token", None)


def test_asking_says_who_is_at_work(client: TestClient, database: Database, tmp_path: Any) -> None:
    loop = Database(f"sqlite:///{tmp_path / 'activeseg.db'}")
    try:
        with lease.holding(loop):
            assert "after it" in client.post("/api/rounds").json()["what"]
    finally:
        loop.close()


def test_asking_says_that_the_scheduler_at_work_takes_it_up_next(client: TestClient, database: Database, tmp_path: Any) -> None:
    loop = Database(f"sqlite:///{tmp_path / 'activeseg.db'}")
    try:
        with lease.holding(loop):
            with loop.write() as session:
                at = datetime(2026, 3, 1, 2, tzinfo=UTC)
                jobs.start_run(session, "round", at, at=at)
            expected = "the scheduler is at work (round since 2026-03-01 02:00 UTC) and takes it up next"
            assert client.post("/api/rounds").json()["what"] == expected
    finally:
        loop.close()


def test_the_status_is_the_commands(client: TestClient, database: Database) -> None:
    workspace: Workspace = client.app.state.workspace  # type: ignore[attr-defined]
    with database.read() as session:
        expected = read_status(session, workspace.settings)
    found = client.get("/api/status").json()
    assert set(found) == set(expected)
    assert found["next"] == expected["next"]


def test_the_status_is_read_once_a_second_at_most(client: TestClient, filler: Any) -> None:
    moment = [0.0]
    recent = RecentStatus(client.app.state.workspace, clock=lambda: moment[0])  # type: ignore[attr-defined]
    assert recent.read()["images"] == {}
    filler.image("/pool/a.png")
    assert recent.read()["images"] == {}
    moment[0] = 1.0
    assert recent.read()["images"] == {"pool": 1}


@pytest.mark.parametrize("limit", [1, 2, 5, 6])
def test_runs_come_youngest_first_in_pages(filler: Any, client: TestClient, pages: Any, limit: int) -> None:
    began = datetime(2026, 3, 1, 2, tzinfo=UTC)
    for number in range(5):
        columns = {"started_at": began, "ended_at": began, "message": f"push {number}", "log": "a.jsonl"}
        filler.add(run("round", JobOutcome.FAILED if number == 2 else JobOutcome.DONE, **columns))
    items = pages("/api/runs", [("limit", limit)])
    assert [item["message"] for item in items] == [f"push {number}" for number in (4, 3, 2, 1, 0)]
    assert [item["outcome"] for item in items] == ["done", "done", "failed", "done", "done"]
    assert {item["log"] for item in items} == {"a.jsonl"}


def test_a_run_whose_process_is_gone_is_not_told_as_running(filler: Any, client: TestClient) -> None:
    filler.add(run("round", JobOutcome.RUNNING, started_at=datetime(2026, 3, 1, tzinfo=UTC), beat_at=1.0))
    [item] = client.get("/api/runs").json()["items"]
    assert item["outcome"] == "abandoned"


def test_alerts_are_told_apart_by_whether_somebody_was_told(filler: Any, client: TestClient) -> None:
    for number in range(3):
        filler.add(Alert(kind="failure", about="round", message=f"told {number}", sent_at=datetime.now(UTC)))
        filler.add(Alert(kind="failure", about="round", message=f"waits {number}", attempts=1, error="no route"))
    old = datetime(2026, 3, 1, tzinfo=UTC)
    filler.add(Alert(kind="failure", about="round", message="old", attempts=10, error="no route", created_at=old))
    found = client.get("/api/alerts?limit=2").json()
    assert [alert["message"] for alert in found["waiting"]] == ["waits 0", "waits 1"]
    assert [alert["message"] for alert in found["last"]] == ["told 2", "told 1"]
    assert [alert["message"] for alert in found["given_up"]] == ["old"]


@pytest.mark.parametrize("address", ["runs?limit=0", "runs?after=-1", "runs?job=round", "alerts?limit=501", "alerts?after=1"])
def test_wrong_questions_are_refused(client: TestClient, address: str) -> None:
    assert client.get(f"/api/{address}").status_code == 422
