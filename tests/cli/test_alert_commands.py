"""activeseg alerts and drift: what was told, whether telling works, and a person's word on drift."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa

from activeseg.db import alerts
from activeseg.db.alerts import AlertKind
from activeseg.db.database import Database
from activeseg.db.models import ScoringRun
from tests.alerts.receivers import Receiver
from tests.cli.commands import CommandLine
from tests.db.rows import Rows


def told_to(command: CommandLine, url: str) -> None:
    assert command.config is not None
    with command.config.open("a", encoding="utf-8") as file:
        file.write(f'\n[alerts]\nwebhook_url = "{url}"\n')


def opened(folder: Path) -> Database:
    return Database(f"sqlite:///{folder / 'activeseg.db'}")


def test_alerts_are_listed_youngest_first(empty: CommandLine, tmp_path: Path) -> None:
    database = opened(tmp_path)
    with database.write() as session:
        alerts.note(session, AlertKind.FAILURE, "round", "round failed: [no room]\nmore")
        alerts.note(session, AlertKind.RECOVERY, "round", "round works again")
    found = empty("alerts", "--json").data
    assert [(row["kind"], row["sent_at"], row["attempts"]) for row in found] == [("recovery", None, 0), ("failure", None, 0)]
    out = empty("alerts", "--limit", "1").out
    assert "works again" in out
    assert "no room" not in out
    assert "[no room]" in empty("alerts").out


def test_a_test_alert_is_sent_now_and_it_is_said_what_happened(empty: CommandLine) -> None:
    assert "webhook_url" in empty("alerts", "test").error
    with Receiver() as receiver:
        told_to(empty, receiver.url)
        assert empty("alerts", "test").out.split() == ["ok", "webhook", "taken"]
        receiver.status = 500
        answer = empty("alerts", "test")
        assert answer.error == "the alert was not taken by webhook"
        assert f"127.0.0.1:{receiver.port} answered 500" in answer.out
        assert len(receiver.got) == 2


def test_a_person_accepts_drift(empty: CommandLine, tmp_path: Path) -> None:
    assert "nothing to accept" in empty("drift", "accept").out
    database = opened(tmp_path)
    rows = Rows(database)
    rows.run(rows.config(rows.checkpoint("a")), shift=0.5, drift="new light")
    assert "drift in scoring run 2: new light" in empty("status").out
    assert empty("drift", "accept", "--reason", "winter", "--json").data == [{"scoring_run": 2, "drift": "new light"}]
    assert "new light" not in empty("status").out
    with database.read() as session:
        assert session.scalar(sa.select(ScoringRun.shift).where(ScoringRun.id == 2)) == 0.5
        assert "(winter)" in alerts.newest(session)[0].message
