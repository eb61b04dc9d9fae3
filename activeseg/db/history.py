"""Who was told, what waits, what was decided, for people to read. What ran: `jobs.history`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.orm import Session

from activeseg.db import alerts
from activeseg.db.alerts import AlertKind
from activeseg.db.models import Alert, Checkpoint, Promotion, RequestRow
from activeseg.db.models.columns import now


@dataclass(frozen=True, slots=True)
class AlertRow:
    """Something a person should know. error: why the last attempt to tell failed."""

    id: int
    kind: str
    about: str
    message: str
    created_at: datetime
    sent_at: datetime | None
    attempts: int
    error: str | None


@dataclass(frozen=True, slots=True)
class WaitingRequest:
    """Something that was asked for and not begun."""

    kind: str
    requested_by: str
    created_at: datetime


@dataclass(frozen=True, slots=True)
class DecisionRow:
    """The last decision about a checkpoint. decision: promoted, refused, ..."""

    model_version: str
    decision: str
    reason: str
    created_at: datetime


def waiting_alerts(session: Session, *, limit: int) -> list[AlertRow]:
    """Those still to be sent, oldest first."""
    return _alerts(session, sa.select(Alert).where(*alerts.to_be_sent(now())).order_by(Alert.id).limit(limit))


def given_up_alerts(session: Session, *, limit: int) -> list[AlertRow]:
    """Those nobody was told of and nobody will be, youngest first; a test that was not taken is none."""
    waits = sa.and_(*alerts.to_be_sent(now()))
    unsent = sa.select(Alert).where(Alert.sent_at.is_(None), Alert.kind != AlertKind.TEST, ~waits)
    return _alerts(session, unsent.order_by(Alert.id.desc()).limit(limit))


def last_alerts(session: Session, *, limit: int) -> list[AlertRow]:
    """Those somebody was told of, youngest first."""
    return _alerts(session, sa.select(Alert).where(Alert.sent_at.is_not(None)).order_by(Alert.id.desc()).limit(limit))


def waiting_requests(session: Session, *, limit: int) -> list[WaitingRequest]:
    """What was asked for and not begun, oldest first."""
    columns = sa.select(RequestRow.kind, RequestRow.requested_by, RequestRow.created_at)
    statement = columns.where(RequestRow.taken_at.is_(None)).order_by(RequestRow.id).limit(limit)
    return [WaitingRequest(*row) for row in session.execute(statement)]


def last_decision(session: Session) -> DecisionRow | None:
    """What was decided last about a checkpoint."""
    columns = sa.select(Checkpoint.model_version, Promotion.decision, Promotion.reason, Promotion.created_at)
    statement = columns.join(Checkpoint, Checkpoint.id == Promotion.checkpoint_id).order_by(Promotion.id.desc()).limit(1)
    row = session.execute(statement).one_or_none()
    return None if row is None else DecisionRow(*row)


def learning_curve(session: Session, *, limit: int) -> list[tuple[int, float]]:
    """(training images, mIoU on the validation split) of the last trainings, oldest first."""
    text = "SELECT num_images, mean_iou FROM learning_curve WHERE split = 'val' ORDER BY training_run_id DESC LIMIT :limit"
    rows: Sequence[tuple[int, float]] = [(row[0], row[1]) for row in session.execute(sa.text(text), {"limit": limit})]
    return list(reversed(rows))


def _alerts(session: Session, statement: sa.Select[Alert]) -> list[AlertRow]:
    return [
        AlertRow(row.id, row.kind, row.about, row.message, row.created_at, row.sent_at, row.attempts, row.error)
        for row in session.scalars(statement)
    ]
