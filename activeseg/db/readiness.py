"""Whether the loop moves: when a scheduler was heard of last, and what stands still. For /readyz."""

from __future__ import annotations

from collections.abc import Collection
from datetime import UTC, datetime, timedelta, tzinfo

import sqlalchemy as sa
from sqlalchemy.orm import Session

from activeseg.db import jobs, lease, rounds
from activeseg.db.jobs import RunRecord
from activeseg.db.models import JobOutcome, JobRun, Lease, RequestRow, ScheduleSlot
from activeseg.db.processes import is_of
from activeseg.wording import moment

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


def scheduler_at_work(session: Session) -> RunRecord | None:
    """The run in whose midst a scheduler that stays holds the loop's lease; None where another process does, or nobody.

    `activeseg schedule --once` stays not: its run was neither planned nor asked for.
    """
    holder = session.scalar(sa.select(Lease.holder).where(Lease.name == lease.LOOP)) if lease.is_held(session) else None
    if holder is None:
        return None
    on = (run for run in jobs.last_of_each(session) if run.outcome is JobOutcome.RUNNING and (run.planned_at or run.asked_by))
    return next((run for run in on if is_of(holder, run.host, run.pid)), None)


def standing_still(session: Session, *, planned: Collection[str], at: datetime, zone: tzinfo) -> list[str]:
    """A sentence for each thing that does not go on by itself.

    planned: names of the jobs that are. at: now, aware. zone: in which times are told.
    """
    stopped = rounds.stopped(session)
    lines = [f"round {row.number}: {row.error}" for row in stopped]
    told = {row.error for row in stopped}
    last = jobs.last_of_each(session)
    lines += [
        f"{run.job} {_STUCK[run.outcome]} at {moment(run.ended_at or run.started_at, zone)}: {run.message}"
        for run in last
        if run.outcome in _STUCK and run.job in planned and not (run.job in ("round", "push") and run.message in told)
    ]
    if any(run.outcome is JobOutcome.RUNNING for run in last):
        return lines
    waiting = sa.select(RequestRow).where(RequestRow.taken_at.is_(None), RequestRow.created_at < at - UNSERVED)
    return lines + [
        f"{row.kind} was asked for at {moment(row.created_at, zone)} and not begun" for row in session.scalars(waiting)
    ]
