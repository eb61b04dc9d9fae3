"""Whether the loop moves: when a scheduler was heard of last, and what stands still. For /readyz."""

from __future__ import annotations

from collections.abc import Collection
from datetime import UTC, datetime, timedelta

import sqlalchemy as sa
from sqlalchemy.orm import Session

from activeseg.db import jobs, rounds
from activeseg.db.models import JobOutcome, JobRun, RequestRow, ScheduleSlot

UNSERVED = timedelta(minutes=15)
"""A request that waits so long, while nothing runs, is not looked for."""

_STUCK = {JobOutcome.FAILED: "failed", JobOutcome.ABANDONED: "was cut off"}


def scheduler_seen(session: Session) -> datetime | None:
    """When anything of a scheduler was written last: a claim, a run's start, beat or end. None where there never was one."""
    columns = (sa.func.max(JobRun.started_at), sa.func.max(JobRun.ended_at), sa.func.max(JobRun.beat_at))
    started, ended, beat = session.execute(sa.select(*columns)).one()
    claimed = session.scalar(sa.select(sa.func.max(ScheduleSlot.claimed_at)))
    beaten = None if beat is None else datetime.fromtimestamp(beat, UTC)
    return max((time for time in (started, ended, beaten, claimed) if time is not None), default=None)


def standing_still(session: Session, *, planned: Collection[str], at: datetime) -> list[str]:
    """A sentence for each thing that does not go on by itself. planned: names of the jobs that are. at: now, aware."""
    stopped = rounds.stopped(session)
    lines = [f"round {row.number}: {row.error}" for row in stopped]
    told = {row.error for row in stopped}
    last = jobs.last_of_each(session)
    lines += [
        f"{run.job} {_STUCK[run.outcome]} at {_utc(run.ended_at or run.started_at)}: {run.message}"
        for run in last
        if run.outcome in _STUCK and run.job in planned and not (run.job in ("round", "push") and run.message in told)
    ]
    if any(run.outcome is JobOutcome.RUNNING for run in last):
        return lines
    waiting = sa.select(RequestRow).where(RequestRow.taken_at.is_(None), RequestRow.created_at < at - UNSERVED)
    return lines + [f"{row.kind} was asked for at {_utc(row.created_at)} and not begun" for row in session.scalars(waiting)]


def _utc(time: datetime) -> str:
    return f"{time.astimezone(UTC):%Y-%m-%d %H:%M} UTC"
