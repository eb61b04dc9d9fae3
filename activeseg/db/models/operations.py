"""requests, schedule slots, job runs and leases: who asked for what, what ran when, who may act."""

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


class RequestRow(Model):
    """What a person asked for; the loop takes it from there."""

    __tablename__ = "requests"

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

    id: Mapped[int] = mapped_column(primary_key=True)
    job: Mapped[str] = mapped_column(sa.String(50))
    planned_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    host: Mapped[str] = mapped_column(sa.String(255))
    pid: Mapped[int]
    outcome: Mapped[JobOutcome] = mapped_column(text_enum(JobOutcome))
    message: Mapped[str | None] = mapped_column(sa.String(1000))
    started_at: Mapped[datetime] = created()
    ended_at: Mapped[datetime | None] = mapped_column(UtcDateTime)


class Lease(Model):
    """The right to act, until `expires_at` by the database's clock; `token` grows with each new holder."""

    __tablename__ = "leases"

    name: Mapped[str] = mapped_column(sa.String(50), primary_key=True)
    holder: Mapped[str] = mapped_column(sa.String(255))
    token: Mapped[int] = mapped_column(sa.BigInteger)
    expires_at: Mapped[float] = mapped_column(sa.Double)
    """seconds since 1970 on the database's clock"""
