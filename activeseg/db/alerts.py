"""Alerts: an outbox. A row is written first and sent after it, so that a crash loses none.

A row without `sent_at` still waits, until it was tried for a day. When it is due follows from when it was made and how
often it was tried.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Literal

import sqlalchemy as sa
from sqlalchemy.orm import Session

from activeseg.config.masking import masked
from activeseg.db import rounds
from activeseg.db.models import Alert, Annotation, AnnotationSource, Image, Query, QueryStatus, Round, RoundStatus
from activeseg.db.models.columns import now


class AlertKind(StrEnum):
    """What an alert is about."""

    FAILURE = "failure"
    """a job failed or was abandoned"""
    RECOVERY = "recovery"
    """a job that was told to fail works again, or there is something to do again"""
    IDLE = "idle"
    """open tasks that nobody annotates, or nothing to do"""
    DRIFT = "drift"
    REPORT = "report"
    TEST = "test"


RETRIES = tuple(timedelta(minutes=minutes) for minutes in (0, 1, 5, 15, 60, 120, 240, 480, 900, 1435))
"""After how long since it was noted an alert is tried for the first time, the second, ..."""
GIVEN_UP_AFTER = timedelta(days=1)
TOLD_FOR = timedelta(days=7)

_ABOUT, _MESSAGE, _ERROR = 100, 10_000, 500


def lock(session: Session) -> None:
    """Let nobody else note anything before this transaction ends: of two that see one failure, one tells it."""
    # On SQLite a write transaction locks the whole database.
    if session.get_bind().dialect.name == "postgresql":
        session.execute(sa.text("LOCK TABLE alerts IN SHARE ROW EXCLUSIVE MODE"))


def note(session: Session, kind: AlertKind, about: str, message: str, *, at: datetime | None = None) -> Alert:
    """Write an alert down, to be sent; secrets in its message are masked."""
    row = Alert(kind=kind, about=about[:_ABOUT], message=masked(message[:_MESSAGE]), created_at=at or now(), attempts=0)
    session.add(row)
    session.flush()
    return row


def latest(session: Session, kinds: Sequence[AlertKind], about: str | None = None) -> Alert | None:
    """The youngest alert of these kinds, about this where it is given."""
    statement = sa.select(Alert).where(Alert.kind.in_(kinds))
    if about is not None:
        statement = statement.where(Alert.about == about[:_ABOUT])
    return session.scalar(statement.order_by(Alert.id.desc()).limit(1))


def count(session: Session, kind: AlertKind, about: str, *, since: datetime) -> int:
    """How many alerts of a kind about something were noted since."""
    statement = sa.select(sa.func.count()).select_from(Alert)
    return session.scalar(statement.where(Alert.kind == kind, Alert.about == about[:_ABOUT], Alert.created_at > since)) or 0


def newest(session: Session, *, limit: int | None = None, since: datetime | None = None) -> list[Alert]:
    """Alerts, youngest first."""
    statement = sa.select(Alert).order_by(Alert.id.desc()).limit(limit)
    return list(session.scalars(statement if since is None else statement.where(Alert.created_at > since)))


def due(session: Session, at: datetime) -> list[Alert]:
    """What is to be sent now, the least tried first. Tests are sent by who asks for them, and by nobody else."""
    rows = session.scalars(sa.select(Alert).where(*to_be_sent(at)).order_by(Alert.attempts, Alert.id))
    return [row for row in rows if row.attempts < len(RETRIES) and row.created_at + RETRIES[row.attempts] <= at]


def waiting(session: Session, at: datetime) -> int:
    """How many alerts are still to be sent: not those that were given up, nor tests."""
    return session.scalar(sa.select(sa.func.count()).select_from(Alert).where(*to_be_sent(at))) or 0


def to_be_sent(at: datetime) -> tuple[sa.ColumnElement[bool], ...]:
    """Conditions on `Alert` that hold for what still waits to be sent: not for what was given up, nor for tests."""
    # What no attempt came to an end with waits however old it is: the process may have been killed in the midst of it.
    tried = sa.or_(Alert.error.is_(None), Alert.created_at > at - GIVEN_UP_AFTER)
    return Alert.sent_at.is_(None), Alert.kind != AlertKind.TEST, Alert.attempts < len(RETRIES), tried


def claim(session: Session, row: Alert) -> bool:
    """Count an attempt before it is made; False where another process made it meanwhile."""
    ours = (Alert.id == row.id, Alert.attempts == row.attempts, Alert.sent_at.is_(None))
    claimed = sa.update(Alert).where(*ours).values(attempts=row.attempts + 1).returning(Alert.id)
    return session.scalar(claimed) is not None


def record(session: Session, alert_id: int, *, sent_at: datetime | None, error: str | None) -> None:
    """Write down how an attempt ended. error: see `Alert.error`."""
    values = {"sent_at": sent_at, "error": error[:_ERROR] if error else None}
    session.execute(sa.update(Alert).where(Alert.id == alert_id).values(**values))


def unsent(session: Session, at: datetime) -> list[Alert]:
    """Alerts of the last week that were tried and could not be sent, youngest first; tests are not among them."""
    tried = sa.select(Alert).where(Alert.sent_at.is_(None), Alert.attempts > 0, Alert.error.is_not(None))
    tried = tried.where(Alert.created_at > at - TOLD_FOR)
    return list(session.scalars(tried.where(Alert.kind != AlertKind.TEST).order_by(Alert.id.desc())))


def given_up(row: Alert, at: datetime) -> bool:
    """Whether an alert that was not sent is not tried any more."""
    return row.attempts >= len(RETRIES) or (row.error is not None and row.created_at <= at - GIVEN_UP_AFTER)


def state(row: Alert, at: datetime) -> Literal["sent", "waiting", "given up", "not sent"]:
    """What became of it; 'not sent' of a test, which is tried once."""
    if row.sent_at is not None:
        return "sent"
    if row.kind == AlertKind.TEST:
        return "not sent"
    return "given up" if given_up(row, at) else "waiting"


def nothing_to_do_since(session: Session) -> datetime | None:
    """Since when no image came, no round began or ended and nothing was annotated; None where a task is open, a round is
    begun or nothing ever happened. Whether images are left to ask about is for the caller to ask: it may take longer."""
    if rounds.open_tasks(session) or rounds.unfinished(session, RoundStatus.OPEN, RoundStatus.SELECTED):
        return None
    happened = (
        sa.select(Image.created_at).order_by(Image.id.desc()).limit(1),
        sa.select(sa.func.max(Annotation.received_at)),
        sa.select(sa.func.max(Round.opened_at)),
        sa.select(sa.func.max(Round.closed_at)),
    )
    return max((when for one in happened if (when := session.scalar(one)) is not None), default=None)


def idle_since(session: Session) -> tuple[datetime, int] | None:
    """Since when nobody annotated the tasks that are open, and how many they are; None where none is open.

    From the last answer, or from when the oldest round with an open task was sent, whichever is later.
    """
    of_open = (
        sa.select(sa.func.min(Round.pushed_at), sa.func.count()).select_from(Query).join(Round, Round.id == Query.round_id)
    )
    pushed_at, tasks = session.execute(of_open.where(Query.status == QueryStatus.PUSHED)).one()
    if pushed_at is None:
        return None
    by_people = sa.or_(Annotation.source == AnnotationSource.LABELSTUDIO, Annotation.query_id.is_not(None))
    answered = session.scalar(sa.select(sa.func.max(Annotation.received_at)).where(by_people))
    return (max(pushed_at, answered) if answered else pushed_at), tasks
