"""What was noted goes out at least once by every way; what cannot be sent is tried again, then told and left."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from activeseg.alerts import deliver, send_test
from activeseg.config import Settings
from activeseg.db import alerts
from activeseg.db.alerts import RETRIES, AlertKind
from activeseg.db.database import Database
from activeseg.db.figures import read_figures
from activeseg.db.models import Alert
from activeseg.db.models.columns import now
from activeseg.db.status import read_status
from tests.alerts.receivers import Receiver, SmtpSink

Make = Callable[..., Settings]
Note = Callable[..., Alert]
Rows = Callable[[], list[Alert]]


def ids(receiver: Receiver) -> list[int]:
    return [json.loads(body)["id"] for _, _, body in receiver.got]


def age(database: Database, by: timedelta) -> None:
    """Let all alerts be as old."""
    with database.write() as session:
        for row in alerts.newest(session):
            row.created_at = now() - by


def by_mail(sink: SmtpSink) -> dict[str, Any]:
    to = {"email_to": ("ada@example.org",), "email_from": "a@example.org"}
    return to | {"smtp_host": "127.0.0.1", "smtp_port": sink.port, "smtp_security": "none"}


def problems(database: Database, settings: Settings) -> str:
    with database.read() as session:
        return "\n".join(read_status(session, settings)["problems"])


def still_to_be_sent(database: Database) -> int:
    with database.read() as session:
        return read_figures(session).alerts_waiting


def test_what_was_noted_goes_out_once(
    database: Database, receiver: Receiver, make_settings: Make, noted: Note, rows: Rows
) -> None:
    settings = make_settings(alerts={"webhook_url": receiver.url})
    first, second = noted(), noted()
    assert deliver(settings, database) == 2
    assert deliver(settings, database) == 0
    assert ids(receiver) == [first.id, second.id]
    assert [(row.attempts, row.error, row.sent_at is not None) for row in rows()] == [(1, None, True)] * 2


def test_a_receiver_that_is_down_gets_it_when_it_is_back_and_only_then(
    database: Database, receiver: Receiver, make_settings: Make, noted: Note, rows: Rows
) -> None:
    settings = make_settings(alerts={"webhook_url": receiver.url})
    receiver.status = 500
    noted()
    for _ in range(3):  # looks in quick succession make one attempt
        assert deliver(settings, database) == 0
    assert len(receiver.got) == 1
    assert (rows()[0].attempts, rows()[0].sent_at) == (1, None)
    assert rows()[0].error == f"webhook: 127.0.0.1:{receiver.port} answered 500"
    assert "1 alert could not be sent yet (webhook: " in problems(database, settings)
    age(database, RETRIES[1])
    receiver.status = 204
    assert deliver(settings, database) == 1
    assert (rows()[0].attempts, rows()[0].error) == (2, None)
    assert "alert" not in problems(database, settings)


def test_a_way_that_is_down_costs_one_attempt_a_look(
    database: Database, receiver: Receiver, make_settings: Make, noted: Note, rows: Rows
) -> None:
    receiver.status = 503
    for _ in range(5):
        noted()
    deliver(make_settings(alerts={"webhook_url": receiver.url}), database)
    assert len(receiver.got) == 1
    assert all("answered 503" in (row.error or "") for row in rows())


def test_only_the_way_that_failed_is_tried_again(
    database: Database, receiver: Receiver, sink: SmtpSink, make_settings: Make, noted: Note
) -> None:
    settings = make_settings(alerts={"webhook_url": receiver.url} | by_mail(sink))
    receiver.status = 500
    noted()
    assert deliver(settings, database) == 0
    age(database, RETRIES[1])
    receiver.status = 200
    assert deliver(settings, database) == 1
    assert (len(receiver.got), len(sink.mails)) == (2, 1)


def test_after_a_day_it_is_left_and_status_says_so_for_a_week(
    database: Database, receiver: Receiver, make_settings: Make, noted: Note
) -> None:
    settings = make_settings(alerts={"webhook_url": receiver.url})
    receiver.status = 500
    noted()
    deliver(settings, database)
    assert still_to_be_sent(database) == 1
    age(database, timedelta(hours=24, minutes=1))
    assert still_to_be_sent(database) == 0
    receiver.status = 200
    assert deliver(settings, database) == 0
    assert len(receiver.got) == 1
    assert "1 alert could not be sent for a day and will not be tried again (webhook: " in problems(database, settings)
    age(database, timedelta(days=8))
    assert problems(database, settings) == ""


def test_what_a_killed_process_noted_or_was_sending_is_sent_however_late(
    database: Database, receiver: Receiver, make_settings: Make, noted: Note
) -> None:
    noted()
    killed_in_the_middle = noted()
    with database.write() as session:
        assert alerts.claim(session, killed_in_the_middle)
    age(database, timedelta(days=3))
    assert deliver(make_settings(alerts={"webhook_url": receiver.url}), database) == 2


def test_of_two_processes_one_sends(database: Database, noted: Note) -> None:
    seen = noted()
    with database.write() as session:
        assert alerts.claim(session, seen)
    with database.write() as session:
        assert not alerts.claim(session, seen)


def test_waits_grow_and_end_within_the_day() -> None:
    gaps = [later - earlier for earlier, later in pairwise(RETRIES)]
    assert gaps == sorted(gaps)
    assert RETRIES[-1] < alerts.GIVEN_UP_AFTER


def test_with_nobody_to_tell_it_is_noted_and_no_flood_follows_when_somebody_is_set(
    database: Database, receiver: Receiver, make_settings: Make, noted: Note, rows: Rows
) -> None:
    noted()
    deliver(make_settings(), database)
    assert rows()[0].attempts == 0
    assert "nobody to tell" in (rows()[0].error or "")
    assert problems(database, make_settings()) == ""
    age(database, timedelta(days=2))
    assert deliver(make_settings(alerts={"webhook_url": receiver.url}), database) == 0


def test_a_secret_file_that_others_can_read_keeps_the_alert_and_says_so(
    database: Database, receiver: Receiver, make_settings: Make, noted: Note, rows: Rows, tmp_path: Path
) -> None:
    (tmp_path / "key").write_text("sixteen characters")
    (tmp_path / "key").chmod(0o644)
    settings = make_settings(alerts={"webhook_url": receiver.url, "webhook_secret_file": "key"})
    noted()
    deliver(settings, database)
    assert "chmod 600" in (rows()[0].error or "")
    (tmp_path / "key").chmod(0o600)
    age(database, RETRIES[1])
    assert deliver(settings, database) == 1
    assert "x-activeseg-signature" in receiver.got[0][1]


def test_a_way_that_breaks_keeps_no_other_from_telling(
    database: Database, sink: SmtpSink, make_settings: Make, noted: Note, rows: Rows
) -> None:
    settings = make_settings(alerts={"webhook_url": "http://" + "x" * 300 + ".\udcff/"} | by_mail(sink))
    noted()
    deliver(settings, database)
    assert len(sink.mails) == 1
    assert (rows()[0].error or "").startswith("webhook: ")


def test_a_test_says_what_became_of_it_by_every_way_and_is_never_sent_later(
    database: Database, receiver: Receiver, sink: SmtpSink, make_settings: Make, rows: Rows
) -> None:
    settings = make_settings(alerts={"webhook_url": receiver.url} | by_mail(sink))
    receiver.status = 410
    told = send_test(settings, database, asked_by="ada")
    assert told == {"webhook": f"127.0.0.1:{receiver.port} answered 410", "mail": None}
    age(database, RETRIES[1])
    deliver(settings, database)
    assert len(receiver.got) == 1
    assert rows()[0].kind == AlertKind.TEST
    assert problems(database, settings) == ""


def test_secrets_in_a_message_are_not_noted(noted: Note) -> None:
    assert "geheim-123" not in noted("job failed: postgresql://ada:geheim-123@db/x is away").message


@pytest.mark.parametrize("kind", [AlertKind.FAILURE, AlertKind.REPORT])
def test_a_long_reason_fits_its_column(
    database: Database, make_settings: Make, noted: Note, rows: Rows, kind: AlertKind
) -> None:
    noted("x" * 100_000, kind=kind, about="y" * 500)
    settings = make_settings(alerts={"webhook_url": "http://127.0.0.1:1/" + "z" * 2000, "webhook_secret_file": "k" * 900})
    deliver(settings, database)
    assert 0 < len(rows()[0].error or "") <= 500
