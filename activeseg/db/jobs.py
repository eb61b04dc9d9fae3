"""Claims of planned times and records of what ran. A slot's row is the claim: who inserts it runs the job, once."""

from __future__ import annotations

import os
import socket
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from activeseg.db.models import JobOutcome, JobRun, ScheduleSlot

MESSAGE_LENGTH = 1000


def claim_slot(session: Session, job: str, planned_at: datetime, *, at: datetime, catching_up: bool = False) -> int | None:
    """Claim a planned time and open its run; the run's id, or None where the time is not ours to run.

    catching_up: claim only where the job ran at an earlier planned time before; a first start has missed nothing.
    """
    if catching_up and not _claimed_before(session, job, planned_at):
        return None
    insert = postgresql.insert if session.get_bind().dialect.name == "postgresql" else sqlite.insert
    slot = {"job": job, "planned_at": planned_at, "claimed_at": at}
    # Of two schedulers the second waits here for the first one's commit, then inserts nothing.
    claim = insert(ScheduleSlot).values(slot).on_conflict_do_nothing().returning(ScheduleSlot.job)
    if session.scalar(claim) is None:
        return None
    return start_run(session, job, planned_at, at=at)


def release_slot(session: Session, job: str, planned_at: datetime) -> None:
    """Give a planned time back, so that it may be claimed again."""
    session.execute(sa.delete(ScheduleSlot).where(ScheduleSlot.job == job, ScheduleSlot.planned_at == planned_at))


def start_run(session: Session, job: str, planned_at: datetime | None, *, at: datetime) -> int:
    """Record that this process runs a job now (planned_at None: asked for by hand); returns the run's id."""
    row = JobRun(job=job, planned_at=planned_at, host=this_host(), pid=os.getpid(), outcome=JobOutcome.RUNNING, started_at=at)
    session.add(row)
    session.flush()
    return row.id


def end_run(session: Session, run_id: int, outcome: JobOutcome, message: str, *, at: datetime) -> JobRun:
    """Record how a run ended."""
    row = session.get_one(JobRun, run_id)
    row.outcome, row.message, row.ended_at = outcome, message[:MESSAGE_LENGTH], at
    return row


def running_here(session: Session) -> list[JobRun]:
    """Runs recorded as running on this host, oldest first."""
    found = sa.select(JobRun).where(JobRun.host == this_host(), JobRun.outcome == JobOutcome.RUNNING)
    return list(session.scalars(found.order_by(JobRun.id)))


def this_host() -> str:
    """This machine's name as `job_runs.host` holds it."""
    return socket.gethostname()[:255]


def _claimed_before(session: Session, job: str, planned_at: datetime) -> bool:
    earlier = sa.exists().where(ScheduleSlot.job == job, ScheduleSlot.planned_at < planned_at)
    return bool(session.scalar(sa.select(earlier)))
