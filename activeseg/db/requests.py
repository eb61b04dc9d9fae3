"""Requests: who asked for what. One waits at most of each kind; whoever runs the job takes it."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime, timedelta

import sqlalchemy as sa
from sqlalchemy.orm import Session

from activeseg.db.jobs import RECENT
from activeseg.db.models import JobRun, RequestRow

PULL = "pull"
"""Collect annotations now instead of at the next planned time."""

ROUND = "round"
"""Do all that can be done now instead of at the next planned time."""

HINT = "label studio webhook"
"""`requested_by` of what Label Studio asked for."""

REASON_LENGTH = 500
"""Characters of a reason; longer ones are cut by who asks."""

_LOCK = 7_206_114
"""Of PostgreSQL's advisory locks: held while a kind is looked at and inserted, for a table that has no row to lock yet."""


def ask(session: Session, kind: str, *, requested_by: str, reason: str | None = None) -> bool:
    """Ask for something unless it waits already; whether a row was written. Needs a write transaction."""
    if session.get_bind().dialect.name == "postgresql":
        session.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK)))
    if is_waiting(session, [kind]):
        return False
    session.add(RequestRow(kind=kind, argument={}, requested_by=requested_by, reason=reason))
    session.flush()
    return True


def is_waiting(session: Session, kinds: Collection[str]) -> bool:
    """Whether anything of these kinds was asked for and not taken."""
    return bool(session.scalar(sa.select(sa.exists().where(RequestRow.kind.in_(kinds), RequestRow.taken_at.is_(None)))))


def rested(session: Session, kinds: Collection[str], *, at: datetime, pause: timedelta) -> list[str]:
    """The kinds whose last run outside the plan ended `pause` before `at`, or never was.

    An end after `at`, by a clock that was ahead, keeps nothing waiting. Looked at are the RECENT last runs.
    """
    recent = sa.select(sa.func.max(JobRun.id) - RECENT).scalar_subquery()
    # Grouped here: a database that groups takes the index of jobs, and reads all there ever were.
    ended = sa.select(JobRun.job, JobRun.ended_at).where(JobRun.id > recent, JobRun.planned_at.is_(None))
    last: dict[str, datetime] = {}
    for job, when in session.execute(ended):
        if when is not None:
            last[job] = max(when, last.get(job, when))
    return [kind for kind in kinds if kind not in last or not timedelta(0) <= at - last[kind] < pause]


def take(session: Session, kinds: Collection[str], *, at: datetime) -> RequestRow | None:
    """The oldest waiting request of these kinds, which nobody else gets from now on; None without one."""
    waiting = sa.select(RequestRow).where(RequestRow.kind.in_(kinds), RequestRow.taken_at.is_(None))
    row = session.scalar(waiting.order_by(RequestRow.id).limit(1).with_for_update(skip_locked=True))
    if row is not None:
        row.taken_at = at
        session.flush()
    return row


def give_back(session: Session, request_id: int) -> None:
    """Let a taken request wait again, unless the same was asked for meanwhile."""
    row = session.get_one(RequestRow, request_id)
    if session.get_bind().dialect.name == "postgresql":
        session.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK)))
    if not is_waiting(session, [row.kind]):
        row.taken_at = None
        session.flush()


def last_asked(session: Session, kind: str, requested_by: str) -> datetime | None:
    """When this was asked for last (aware UTC); hints that came while one was waiting are not counted."""
    asked = sa.select(sa.func.max(RequestRow.created_at))
    return session.scalar(asked.where(RequestRow.kind == kind, RequestRow.requested_by == requested_by))
