"""What Prometheus gets, read by a parser of its own that follows the format's description."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sa
from starlette.testclient import TestClient

from activeseg.db import lease
from activeseg.db.database import Database
from activeseg.db.models import Alert, ImageStatus, JobRun, QueryStatus, ScoringRun

SAMPLE = re.compile(r"(?P<name>[a-z_:][a-z0-9_:]*)(?:\{(?P<labels>[^{}]*)\})? (?P<value>\S+)", re.IGNORECASE)
LABEL = re.compile(r'(?P<name>[a-z_][a-z0-9_]*)="(?P<value>(?:[^"\\]|\\.)*)"(?:,|$)', re.IGNORECASE)


def parse(text: str) -> dict[tuple[str, ...], float]:
    """(name, label=value...) -> number. Every family has one HELP and one TYPE, before its samples, which stand together."""
    assert text.endswith("\n")
    found: dict[tuple[str, ...], float] = {}
    family, kinds = "", dict[str, str]()
    for line in text.splitlines():
        if line.startswith("# HELP "):
            family = line.split(" ")[2]
            assert family not in kinds
        elif line.startswith("# TYPE "):
            _, _, name, kind = line.split(" ")
            assert name == family
            assert (kind == "counter") == name.endswith("_total")
            kinds[name] = kind
        else:
            match = SAMPLE.fullmatch(line)
            assert match, line
            assert match["name"] == family in kinds
            labels = LABEL.findall(match["labels"] or "")
            key = (family, *(f"{name}={value}" for name, value in labels))
            assert key not in found
            found[key] = float(match["value"])
    return found


def test_an_empty_database_has_figures_too(client: TestClient) -> None:
    answer = client.get("/metrics")
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    found = parse(answer.text)
    assert found.pop(("activeseg_free_bytes",)) > 0
    assert found == {
        ("activeseg_lease_held",): 0,
        ("activeseg_alerts_waiting",): 0,
        ("activeseg_scoring_images_total", "result=scored"): 0,
        ("activeseg_scoring_images_total", "result=failed"): 0,
        ("activeseg_scoring_runs_total",): 0,
        ("activeseg_annotated_images",): 0,
        ("activeseg_open_tasks",): 0,
    }


def test_the_figures_are_those_of_the_tables(client: TestClient, filler: Any, database: Database) -> None:
    began, ended = datetime(2026, 5, 1, 2, tzinfo=UTC), datetime(2026, 5, 1, 3, tzinfo=UTC)
    filler.checkpoint('m"1\\')
    config, _ = filler.runs['m"1\\']
    filler.add(ScoringRun(scoring_config_id=config, device="cpu", images_planned=9, images_done=7, images_failed=2))
    columns = {"images_done": 5, "images_failed": 1, "images_per_second": 12.5, "coverage": 0.75, "ended_at": ended}
    waiting = {"waiting_decode": 0.25, "waiting_device": 0.5, "waiting_database": 0.0}
    filler.add(ScoringRun(scoring_config_id=config, device="cpu", images_planned=6, started_at=began, **columns, **waiting))
    # One that has not ended yet counts, and hides nothing of the one before.
    filler.add(ScoringRun(scoring_config_id=config, device="cpu", images_planned=3, images_done=1))
    filler.image("/broken.png", status=ImageStatus.QUARANTINED)
    filler.query(filler.round(), filler.image("/asked.png"), QueryStatus.PUSHED)

    ran = JobRun(job="round", host="h", pid=1, outcome="done", started_at=began, ended_at=ended)
    failed = JobRun(job="round", host="h", pid=1, outcome="failed", started_at=ended, ended_at=ended + timedelta(seconds=5))
    for row in (ran, failed, Alert(kind="failure", about="round", message="no")):
        filler.add(row)

    with lease.holding(database):
        found = parse(client.get("/metrics").text)

    assert found.pop(("activeseg_free_bytes",)) > 0
    since = found.pop(("activeseg_champion_since_timestamp_seconds", 'model_version=m\\"1\\\\'))
    assert abs(since - datetime.now(UTC).timestamp()) < 600
    assert found == {
        ("activeseg_images", "split=pool", "status=active"): 1,
        ("activeseg_images", "split=pool", "status=quarantined"): 1,
        ("activeseg_scoring_images_total", "result=scored"): 13,
        ("activeseg_scoring_images_total", "result=failed"): 3,
        ("activeseg_scoring_runs_total",): 4,
        ("activeseg_last_scoring_images_per_second",): 12.5,
        ("activeseg_last_scoring_coverage_ratio",): 0.75,
        ("activeseg_last_scoring_started_timestamp_seconds",): began.timestamp(),
        ("activeseg_last_scoring_ended_timestamp_seconds",): ended.timestamp(),
        ("activeseg_last_scoring_waiting_ratio", "for=decode"): 0.25,
        ("activeseg_last_scoring_waiting_ratio", "for=device"): 0.5,
        ("activeseg_last_scoring_waiting_ratio", "for=database"): 0.0,
        ("activeseg_annotated_images",): 0,
        ("activeseg_open_tasks",): 1,
        ("activeseg_job_runs_total", "job=round", "outcome=done"): 1,
        ("activeseg_job_runs_total", "job=round", "outcome=failed"): 1,
        ("activeseg_last_job_run_seconds", "job=round"): 5,
        ("activeseg_last_job_success_timestamp_seconds", "job=round"): ended.timestamp(),
        ("activeseg_lease_held",): 1,
        ("activeseg_alerts_waiting",): 1,
    }


def test_they_need_the_token_and_a_database(client: TestClient, database: Database) -> None:
    assert client.get("/metrics", headers={"Authorization": "Bearer wrong"}).status_code == 401
    with database.write() as session:
        session.execute(sa.text("DROP VIEW current_annotations"))
    answer = client.get("/metrics")
    assert (answer.status_code, list(answer.json())) == (503, ["error"])
