"""/readyz tells the truth: what is missing, what stands still, and whether anybody runs what is planned."""

from __future__ import annotations

import shutil
import threading
from datetime import UTC, datetime, timedelta
from typing import Any

import anyio
import pytest
import sqlalchemy as sa
from starlette.testclient import TestClient

from activeseg.config import Settings
from activeseg.db.database import Database
from activeseg.db.models import JobOutcome, JobRun, RequestRow, Round, RoundStatus, ScheduleSlot
from activeseg.web import ready
from activeseg.web.ready import Check, Readiness
from activeseg.workspace import Workspace

START = datetime(2026, 3, 3, 12, 0, tzinfo=UTC)


class Watch:
    """Readiness with a clock that the test moves."""

    def __init__(self, settings: Settings, database: Database) -> None:
        self.time = datetime.now(UTC)
        self.readiness = Readiness(Workspace(settings, database), now=lambda: self.time, clock=lambda: self.time.timestamp())

    def look(self) -> dict[str, Check]:
        return {check.name: check for check in anyio.run(self.readiness.checks)}

    def failing(self, *, after: timedelta = timedelta(seconds=10)) -> set[str]:
        self.time += after
        return {name for name, check in self.look().items() if not check.ok}


@pytest.fixture
def watch(settings: Settings, database: Database) -> Watch:
    return Watch(settings, database)


def test_a_fresh_installation_is_ready_and_only_callers_with_a_token_learn_more(client: TestClient) -> None:
    told = client.get("/readyz")
    assert (told.status_code, told.json()["status"]) == (200, "ready")
    assert {check["name"] for check in told.json()["checks"]} == {"database", "pool", "artifacts", "scheduler", "loop"}
    del client.headers["Authorization"]
    assert client.get("/readyz").json() == {"status": "ready"}
    assert client.get("/readyz", headers={"Authorization": "Bearer wrong"}).json() == {"status": "ready"}


def test_a_database_of_another_schema_or_none_is_503(client: TestClient, database: Database) -> None:
    with database.write() as session:
        session.execute(sa.text("DROP TABLE tokens"))
        session.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    answer = client.get("/readyz", headers={"Authorization": "Bearer wrong"})
    assert (answer.status_code, answer.json()) == (503, {"status": "not ready"})
    checks = {check["name"]: check for check in client.get("/readyz").json()["checks"]}
    assert "activeseg db upgrade" in checks["database"]["sentence"]


def test_a_pool_that_is_not_mounted_is_told(watch: Watch, settings: Settings) -> None:
    assert watch.failing() == set()
    shutil.rmtree(settings.root / "pool")
    assert watch.failing() == {"pool"}


def test_a_disk_below_the_floor_is_told(settings: Settings, database: Database) -> None:
    full = settings.model_copy(update={"housekeeping": settings.housekeeping.model_copy(update={"min_free_gb": 1e9})})
    watch = Watch(full, database)
    assert watch.failing() == {"artifacts"}
    assert "min_free_gb" in watch.look()["artifacts"].sentence


def test_a_planned_time_nobody_ran_is_told_and_a_sign_of_a_scheduler_ends_it(watch: Watch, filler: Any) -> None:
    # `pull` is planned every ten minutes.
    assert watch.failing(after=timedelta(minutes=14)) == set()
    assert watch.failing(after=timedelta(minutes=12)) == {"scheduler"}
    filler.add(ScheduleSlot(job="pull", planned_at=watch.time, claimed_at=watch.time))
    assert watch.failing() == set()
    # A long run keeps the next times waiting, but its process is heard of.
    beat = watch.time + timedelta(hours=3)
    row = filler.add(
        JobRun(job="round", host="h", pid=1, outcome=JobOutcome.DONE, started_at=watch.time, beat_at=beat.timestamp())
    )
    assert row
    assert watch.failing(after=timedelta(hours=3)) == set()
    assert watch.failing(after=timedelta(minutes=26)) == {"scheduler"}


def test_what_stands_still_is_told(watch: Watch, filler: Any, database: Database) -> None:
    def loop(*, planned: str = "round") -> str:
        watch.time += timedelta(seconds=10)
        found = watch.look()["loop"]
        assert found.ok == (found.sentence == "nothing stands still")
        return found.sentence

    filler.add(JobRun(job="round", host="h", pid=1, outcome=JobOutcome.FAILED, message="disk full", ended_at=watch.time))
    assert "round failed at" in loop()
    assert "disk full" in loop()
    filler.add(JobRun(job="round", host="h", pid=1, outcome=JobOutcome.DONE))
    assert loop() == "nothing stands still"
    filler.add(JobRun(job="gc", host="h", pid=1, outcome=JobOutcome.FAILED, message="an unplanned job"))
    assert loop() == "nothing stands still"
    filler.add(JobRun(job="pull", host="h", pid=1, outcome=JobOutcome.RUNNING, beat_at=1.0))
    assert "pull was cut off" in loop()
    filler.add(JobRun(job="pull", host="h", pid=1, outcome=JobOutcome.DONE))
    filler.add(RequestRow(kind="round", argument={}, requested_by="ann", created_at=watch.time - timedelta(minutes=20)))
    assert "round was asked for" in loop()
    with database.write() as session:
        session.execute(sa.delete(RequestRow))
    filler.add(
        Round(
            number=7,
            status=RoundStatus.OPEN,
            acquisition="entropy_sum",
            query_size=1,
            control_share=0.0,
            seed=0,
            error="no model",
        )
    )
    assert loop() == "round 7: no model"


def test_a_disk_that_hangs_hangs_no_answer_and_gathers_no_threads(
    settings: Settings, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    hanging, entered = threading.Event(), []

    def hang(settings: Settings) -> str:
        entered.append(threading.get_ident())
        hanging.wait(30)
        return "back again"

    monkeypatch.setattr(ready, "_pool", hang)
    readiness = Readiness(Workspace(settings, database), patience=0.2)
    try:
        for _ in range(3):
            [check] = anyio.run(readiness.checks)
            assert (check.ok, "hangs" in check.sentence) == (False, True)
        assert len(entered) == 1
    finally:
        hanging.set()
