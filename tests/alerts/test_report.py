"""The morning report says what the night did, once, in a text a person reads."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

from activeseg.alerts import morning_report
from activeseg.config import Settings
from activeseg.db import alerts
from activeseg.db.alerts import AlertKind
from activeseg.db.database import Database
from activeseg.db.models import Alert, Annotation, AnnotationStatus, Decision, JobOutcome, JobRun, Promotion, QueryStatus
from activeseg.db.models.columns import now
from tests.alerts.receivers import SmtpSink
from tests.db.rows import Rows

HOUR = timedelta(hours=1)


def run_row(job: str, outcome: JobOutcome, hours_ago: float, message: str = "") -> JobRun:
    at = now() - hours_ago * HOUR
    return JobRun(job=job, host="h", pid=1, outcome=outcome, message=message, started_at=at, ended_at=at)


def a_night(database: Database) -> None:
    rows = Rows(database)
    champion = rows.checkpoint("fcn-1", Decision.PROMOTED)
    rows.evaluation(champion, 0.612)
    refused = rows.checkpoint("fcn-2")
    config = rows.config(champion)
    rows.run(config, images_done=120, images_failed=3, started_at=now() - HOUR)
    rows.run(config, images_done=999, started_at=now() - 48 * HOUR)
    round_id = rows.round(pushed_at=now() - HOUR)
    for status in (QueryStatus.PUSHED, QueryStatus.PUSHED, QueryStatus.ANNOTATED):
        rows.query(round_id, rows.image(), status)
    annotations = [rows.annotation(rows.image(), status=status) for status in [AnnotationStatus.VALID] * 2]
    skipped = rows.annotation(rows.image(), status=AnnotationStatus.SKIPPED)
    with database.write() as session:
        for number in (*annotations, skipped):
            session.get_one(Annotation, number).received_at = now() - HOUR
        why = "mIoU 0.612 -> 0.590: may lose more than 0.02"
        session.add(Promotion(checkpoint_id=refused, decision=Decision.REFUSED, reason=why, decided_by="gate"))
        session.add(run_row("round", JobOutcome.FAILED, 40, "long ago"))
        session.flush()
        session.add_all(run_row("pull", JobOutcome.DONE, hours) for hours in (1, 2, 3))
        session.add(run_row("pull", JobOutcome.FAILED, 2.5, "Label Studio does not answer"))
        session.add(run_row("round", JobOutcome.DONE, 4, "score 120"))
        alerts.note(session, AlertKind.FAILURE, "pull", "pull failed: Label Studio does not answer", at=now() - 2 * HOUR)


def test_the_report_says_what_the_night_did(
    database: Database, sink: SmtpSink, make_settings: Callable[..., Settings], rows: Callable[[], list[Alert]]
) -> None:
    to = {"email_to": ("ada@example.org",), "email_from": "a@example.org"}
    server = {"smtp_host": "127.0.0.1", "smtp_port": sink.port, "smtp_security": "none"}
    settings = make_settings(alerts=to | server, schedule={"timezone": "Europe/Berlin"})
    a_night(database)
    assert morning_report(settings, database) == f"report {rows()[-1].id} sent"
    mails = {mail["Subject"]: mail.get_content() for _, mail, _ in sink.mails}
    [text] = [text for subject, text in mails.items() if "2 annotations, 2 open tasks" in subject]
    for line in (
        "champion     fcn-1, mIoU 0.612, since ",
        "decision     fcn-2 refused: mIoU 0.612 -> 0.590: may lose more than 0.02",
        "job          pull: 3 done, 1 failed (last trouble: Label Studio does not answer)",
        "job          round: 1 done\n",
        "scored       120 images, 3 could not be read",
        "annotations  2 new, 1 skipped; 2 tasks open",
        " failure: pull failed: Label Studio does not answer (not sent)",
        "next         2 images to annotate",
    ):
        assert line in text.replace("\r\n", "\n"), (line, text)
    assert text.splitlines()[1].count(" CE") == 2
    assert "UTC" not in text
    assert "long ago" not in text
    assert max(map(len, text.splitlines())) < 200


def test_the_next_report_begins_where_the_last_one_ended(
    database: Database, make_settings: Callable[..., Settings], rows: Callable[[], list[Alert]]
) -> None:
    settings = make_settings()
    a_night(database)
    told = morning_report(settings, database)
    assert "not sent yet: nobody to tell" in told
    morning_report(settings, database)
    assert "120 images" in rows()[-2].message
    assert "0 images, 0 could not be read" in rows()[-1].message
    assert "no job ended" in rows()[-1].message


def test_an_empty_database_has_a_report_too(
    database: Database, make_settings: Callable[..., Settings], rows: Callable[[], list[Alert]]
) -> None:
    morning_report(make_settings(), database)
    assert "champion     none yet" in rows()[0].message
