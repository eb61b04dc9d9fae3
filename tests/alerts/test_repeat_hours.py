"""`[alerts] repeat_hours` is what it says for each kind of alert, not only by its default."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta

import pytest
from sqlalchemy.orm import Session

from activeseg.alerts.watching import note_drift, note_idleness, note_nothing_to_do, note_run
from activeseg.config import Settings
from activeseg.db import alerts
from activeseg.db.database import Database
from activeseg.db.models import QueryStatus, RoundStatus
from activeseg.db.models.columns import now
from tests.db.rows import Rows

START = now() - timedelta(days=30)


def failed(session: Session, settings: Settings, at: datetime) -> None:
    note_run(session, settings, "pull", "failed", "said why", at=at)


def idle(session: Session, settings: Settings, at: datetime) -> None:
    note_idleness(session, settings, at=at)


def used_up(session: Session, settings: Settings, at: datetime) -> None:
    note_nothing_to_do(session, settings, at=at)


@pytest.mark.parametrize("hours", [3.0, 48.0])
@pytest.mark.parametrize("look", [failed, idle, used_up])
def test_what_goes_on_is_told_again_after_repeat_hours(
    database: Database, make_settings: Callable[..., Settings], look: Callable[..., None], hours: float
) -> None:
    settings = make_settings(alerts={"repeat_hours": hours, "idle_days": 0.1})
    rows = Rows(database)
    if look is idle:
        rows.query(rows.round(pushed_at=START - timedelta(days=9)), rows.image(), QueryStatus.PUSHED)
    if look is used_up:
        rows.round(RoundStatus.CLOSED, opened_at=START - timedelta(days=9))
    told = []
    for later in (0.0, hours - 0.1, hours + 0.1):
        with database.write() as session:
            look(session, settings, at=START + timedelta(hours=later))
            told.append(len(alerts.newest(session)))
    assert told == [1, 1, 2]


@pytest.mark.parametrize("hours", [3.0, 48.0])
def test_a_later_run_with_drift_is_told_after_repeat_hours(
    database: Database, make_settings: Callable[..., Settings], hours: float
) -> None:
    settings = make_settings(alerts={"repeat_hours": hours})
    rows = Rows(database)
    config = rows.config(rows.checkpoint("fcn-1"))
    told = []
    for later in (0.0, hours - 0.1, hours + 0.1):
        at = START + timedelta(hours=later)
        rows.run(config, shift=0.4, drift="shifted", ended_at=at)
        with database.write() as session:
            note_drift(session, settings, at=at)
            told.append(len(alerts.newest(session)))
    assert told == [1, 1, 2]


def test_a_job_that_comes_and_goes_is_told_three_times_within_repeat_hours(
    database: Database, make_settings: Callable[..., Settings]
) -> None:
    settings = make_settings(alerts={"repeat_hours": 3})
    with database.write() as session:
        for minute in range(0, 180, 10):
            outcome = "done" if minute % 20 else "failed"
            note_run(session, settings, "pull", outcome, "said why", at=START + timedelta(minutes=minute))
        assert [row.kind for row in alerts.newest(session)].count("failure") == 3
        assert "nothing more is told of it for 3 hours" in alerts.newest(session)[0].message
        note_run(session, settings, "pull", "done", "", at=START + timedelta(hours=6))
        note_run(session, settings, "pull", "failed", "anew", at=START + timedelta(hours=6, minutes=1))
        assert [row.kind for row in alerts.newest(session)].count("failure") == 4
