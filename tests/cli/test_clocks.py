"""One clock for people: the zone of [schedule], named with each time; programs get UTC."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from activeseg.db.database import Database
from activeseg.db.models import Alert, Checkpoint, Decision, JobOutcome, JobRun, RequestRow
from tests.cli.commands import CommandLine
from tests.db.rows import Rows

NIGHT = datetime(2026, 1, 15, 23, 30, tzinfo=UTC)
THERE = "2026-01-16 00:30 CET"


@pytest.fixture
def berlin(empty: CommandLine, tmp_path: Path) -> CommandLine:
    """A workspace whose rows all have one time."""
    assert empty.config is not None
    with empty.config.open("a", encoding="utf-8") as file:
        file.write('\n[schedule]\ntimezone = "Europe/Berlin"\n')
    database = Database(f"sqlite:///{tmp_path / 'activeseg.db'}")
    rows = Rows(database)
    champion = rows.checkpoint("a", Decision.PROMOTED)
    rows.round(opened_at=NIGHT)
    rows.add(Alert(kind="failure", about="round", message="m", created_at=NIGHT, sent_at=NIGHT))
    rows.add(RequestRow(kind="round", argument={}, requested_by="web: ann", created_at=NIGHT, taken_at=NIGHT))
    run = {"host": "h", "pid": 1, "outcome": JobOutcome.FAILED, "message": "no room", "started_at": NIGHT, "ended_at": NIGHT}
    rows.add(JobRun(job="pull", planned_at=NIGHT, **run))
    rows.add(JobRun(job="round", **run))
    with database.write() as session:
        row = session.get_one(Checkpoint, champion)
        row.created_at, row.location = NIGHT, f"checkpoints/00/{'0' * 64}.safetensors"
    database.close()
    return empty


@pytest.mark.parametrize(
    ("words", "times"), [(["runs"], 5), (["status"], 5), (["alerts"], 2), (["checkpoints"], 1)], ids=lambda found: str(found)
)
def test_people_are_told_times_in_the_zone_of_the_schedule_and_programs_in_utc(
    berlin: CommandLine, words: list[str], times: int
) -> None:
    out = berlin(*words).out
    assert out.count(THERE) == times, out
    assert "UTC" not in out
    assert "23:30" not in out
    told = berlin(*words, "--json").out
    assert "2026-01-15T23:30:00+00:00" in told
    assert THERE not in told.replace(f"({THERE}): no room", "")  # a sentence for people among the problems


def test_a_tokens_times_are_the_zones_too(berlin: CommandLine) -> None:
    told = [
        berlin("token", "create", "ann", "--expires", "9d").err,
        berlin("token", "list").out,
        berlin("token", "revoke", "ann").out,
    ]
    for text in told:
        assert " CE" in text
        assert "UTC" not in text


def test_runs_say_who_asked_for_them(berlin: CommandLine) -> None:
    asked, planned = berlin("runs", "--json").data
    assert (asked["asked_by"], planned["asked_by"]) == ("web: ann", None)
    assert "asked for by" in (out := berlin("runs").out)
    assert out.count("web: ann") == 1


def test_an_alert_that_was_given_up_says_so(berlin: CommandLine, tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'activeseg.db'}")
    rows = Rows(database)
    for kind in ("failure", "test"):
        rows.add(Alert(kind=kind, about="round", message="m", created_at=NIGHT, attempts=10, error="no route"))
    rows.add(Alert(kind="failure", about="round", message="m"))
    database.close()
    assert [row["state"] for row in berlin("alerts", "--json").data] == ["waiting", "not sent", "given up", "sent"]
    out = berlin("alerts").out
    assert [state in out for state in ("waiting", "not sent", "given up")] == [True] * 3
