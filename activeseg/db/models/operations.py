"""requests, schedule slots, job runs, leases, alerts, tokens: who asked for what, what ran, who may act, who was told."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum

import sqlalchemy as sa
from sqlalchemy.orm import Mapped, mapped_column

from activeseg.db.models.columns import Json, Model, UtcDateTime, created, text_enum


class JobOutcome(StrEnum):
    """How a job ended."""

    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    BUSY = "busy"
    """another process held the lease; it does the work"""
    ABANDONED = "abandoned"
    """its process died; seen at the next look"""


WAITING = sa.text("taken_at IS NULL")
"""Requests nobody took yet."""


class RequestRow(Model):
    """What a person asked for; the loop takes it from there."""

    __tablename__ = "requests"
    # Looked for every second, among all that ever were.
    __table_args__ = (sa.Index("ix_requests_waiting", "kind", sqlite_where=WAITING, postgresql_where=WAITING),)

    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(sa.String(50))
    argument: Mapped[Json] = mapped_column(sa.JSON, default=dict)
    requested_by: Mapped[str] = mapped_column(sa.String(100))
    reason: Mapped[str | None] = mapped_column(sa.String(500))
    created_at: Mapped[datetime] = created()
    taken_at: Mapped[datetime | None] = mapped_column(UtcDateTime)


class ScheduleSlot(Model):
    """A planned time of a job. The row is the claim: who inserts it runs the job, once."""

    __tablename__ = "schedule_slots"

    job: Mapped[str] = mapped_column(sa.String(50), primary_key=True)
    planned_at: Mapped[datetime] = mapped_column(UtcDateTime, primary_key=True)
    claimed_at: Mapped[datetime] = created()


class JobRun(Model):
    """One run of a job."""

    __tablename__ = "job_runs"
    # For the last run of each job and the counts that /metrics asks for; a pull every ten minutes is fifty thousand a year.
    __table_args__ = (sa.Index("ix_job_runs_outcome", "job", "outcome", "ended_at", "id"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    job: Mapped[str] = mapped_column(sa.String(50))
    planned_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    host: Mapped[str] = mapped_column(sa.String(255))
    pid: Mapped[int]
    outcome: Mapped[JobOutcome] = mapped_column(text_enum(JobOutcome))
    message: Mapped[str | None] = mapped_column(sa.String(1000))
    started_at: Mapped[datetime] = created()
    ended_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    beat_at: Mapped[float | None] = mapped_column(sa.Double)
    """when its process was last heard of, in seconds since 1970 on the database's clock"""
    log: Mapped[str | None] = mapped_column(sa.String(500))
    """the file of its log lines, on its host"""


class Lease(Model):
    """The right to act, until `expires_at` by the database's clock; `token` grows with each new holder."""

    __tablename__ = "leases"

    name: Mapped[str] = mapped_column(sa.String(50), primary_key=True)
    holder: Mapped[str] = mapped_column(sa.String(255))
    token: Mapped[int] = mapped_column(sa.BigInteger)
    expires_at: Mapped[float] = mapped_column(sa.Double)
    """seconds since 1970 on the database's clock"""


class Alert(Model):
    """Something a person should know. The row is written first and sent after it, so that a crash loses none."""

    __tablename__ = "alerts"

    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(sa.String(50))
    """failure, recovery, idle, drift, report or test"""
    about: Mapped[str] = mapped_column(sa.String(100))
    """what it is about, such as a job's name: the same of it is not sent again too soon"""
    message: Mapped[str] = mapped_column(sa.Text)
    created_at: Mapped[datetime] = created()
    sent_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    attempts: Mapped[int] = mapped_column(default=0)
    error: Mapped[str | None] = mapped_column(sa.String(500))
    """the ways that the last attempt did not arrive by, a line each with its reason"""


class Token(Model):
    """A key to the HTTP API, of which only the hash is stored."""

    __tablename__ = "tokens"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(sa.String(100), unique=True)
    sha256: Mapped[str] = mapped_column(sa.String(64), unique=True)
    scopes: Mapped[str] = mapped_column(sa.String(100))
    """'read' or 'read operate'"""
    created_at: Mapped[datetime] = created()
    expires_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    revoked_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
