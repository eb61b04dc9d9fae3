"""What waits in the outbox goes out, at least once: a receiver tells doubles by the alert's id."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from activeseg.alerts import mail, webhook
from activeseg.config import AlertsSection, Settings, read_secret
from activeseg.config.masking import masked
from activeseg.db import alerts
from activeseg.db.alerts import AlertKind
from activeseg.db.database import Database
from activeseg.db.models import Alert
from activeseg.db.models.columns import now
from activeseg.errors import ActivesegError

NOBODY = "nobody to tell: set [alerts] webhook_url or email_to"
_MOST_OF_A_REASON = 200

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Channel:
    """A way to tell people. send: once; raises ActivesegError where it did not arrive. name: 'webhook' or 'mail'."""

    name: str
    send: Callable[[Alert], None]


def channels(settings: Settings) -> list[Channel]:
    """The ways [alerts] names. Secrets are read when something is sent, so a missing one is an error of that way only."""
    section = settings.alerts
    found = []
    if section.webhook_url:
        found.append(Channel("webhook", partial(_post, settings)))
    if section.email_to:
        found.append(Channel("mail", partial(_mail, settings)))
    return found


def _post(settings: Settings, alert: Alert) -> None:
    webhook.post(settings.alerts.webhook_url or "", alert, secret=_secret(settings, "webhook_secret"))


def _mail(settings: Settings, alert: Alert) -> None:
    mail.send(settings.alerts, alert, password=_secret(settings, "smtp_password"))


def _secret(settings: Settings, key: str) -> str | None:
    section: AlertsSection = settings.alerts
    if (value := getattr(section, key)) is not None:
        return str(value.get_secret_value())
    file = getattr(section, f"{key}_file")
    return read_secret(settings.path(file), f"[alerts] {key}_file").get_secret_value() if file else None


def deliver(settings: Settings, database: Database) -> int:
    """Send what is due by every way; returns how many alerts went out.

    A way that fails is not tried again before the next look: the others that wait for it get the same reason.
    """
    ways = channels(settings)
    with database.read() as session:
        due = alerts.due(session, now())
    if not ways:
        _note_that_nobody_is_told(database, due)
        return 0
    out, down = 0, dict[str, str]()
    for alert in due:
        with database.write() as session:
            if not alerts.claim(session, alert):
                continue  # another process is at it
        failed = _attempt(database, alert, ways, down)
        for name, why in failed.items():
            _log.warning("alert %s could not be sent by %s: %s", alert.id, name, why)
        out += not failed
    return out


def _note_that_nobody_is_told(database: Database, due: Sequence[Alert]) -> None:
    if fresh := [alert for alert in due if alert.error != NOBODY]:
        with database.write() as session:
            for alert in fresh:
                alerts.record(session, alert.id, sent_at=None, error=NOBODY)


def _attempt(database: Database, alert: Alert, ways: Sequence[Channel], down: dict[str, str]) -> dict[str, str]:
    """Send an alert by the ways it did not go before, and write down what came of it; the reasons of those that failed.

    down: ways that failed during this look, with their reasons; grows.
    """
    failed: dict[str, str] = {}
    refused: dict[str, str] = {}
    for way in _outstanding(alert, ways):
        if way.name in down:
            failed[way.name] = down[way.name]
            continue
        try:
            way.send(alert)
        except mail.PartlyRefused as error:
            refused[f"{way.name} in part"] = _reason(error)
        except Exception as error:  # a way that breaks must not keep the others, or the next alerts, from going out
            failed[way.name] = down[way.name] = _reason(error)
    reasons = "\n".join(f"{name}: {why}" for name, why in (failed | refused).items()) or None
    with database.write() as session:
        alerts.record(session, alert.id, sent_at=None if failed else now(), error=reasons)
    return failed


def _outstanding(alert: Alert, ways: Sequence[Channel]) -> Sequence[Channel]:
    """The ways whose last attempt failed: its row names them, a line each. All where none of them is left."""
    named = {line.partition(":")[0] for line in (alert.error or "").splitlines()}
    return [way for way in ways if way.name in named] or ways


def _reason(error: Exception) -> str:
    told = str(error) if isinstance(error, ActivesegError) else f"{type(error).__name__}: {masked(str(error))}"
    return " ".join(told.split())[:_MOST_OF_A_REASON]


def send_test(settings: Settings, database: Database, *, asked_by: str) -> dict[str, str | None]:
    """Send one alert by every way now; what went wrong by the way's name, None where it was taken.

    It is sent once: one that fails is not tried again.
    """
    ways = channels(settings)
    with database.write() as session:
        alert = alerts.note(session, AlertKind.TEST, "test", f"test, asked for by {asked_by}: alerts arrive")
    if not ways:
        _note_that_nobody_is_told(database, [alert])
        return {}
    with database.write() as session:
        alerts.claim(session, alert)
    failed = _attempt(database, alert, ways, {})
    return {way.name: failed.get(way.name) for way in ways}
