"""Records of what ran that nobody needs any more: runs, planned times and requests older than a moment.

What is read of old ones stays: the last run of each job (`status`), the last that was more than busy, the last that ended well
(metrics), and the youngest of the old planned times of each job, by which a scheduler knows that later ones were planned. So
the highest number stays as well, from which `db.jobs.RECENT` counts down.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.orm import Session

from activeseg.db.models import JobOutcome, JobRun, RequestRow, ScheduleSlot

Slot = tuple[str, datetime]


@dataclass(frozen=True, slots=True)
class OldRuns:
    """What may go. runs, requests: ids. slots: (job, planned time). logs: names of the runs' log files, without folders."""

    runs: Sequence[int] = ()
    slots: Sequence[Slot] = ()
    requests: Sequence[int] = ()
    logs: frozenset[str] = field(default_factory=frozenset)

    def counts(self) -> dict[str, int]:
        """Rows by what they are; what there is none of is left out."""
        found = {"runs": len(self.runs), "planned times": len(self.slots), "requests": len(self.requests)}
        return {name: count for name, count in found.items() if count}


def older_than(session: Session, moment: datetime) -> OldRuns:
    """What was over before a moment. Reads only."""
    runs = session.execute(sa.select(JobRun.id, JobRun.log).where(*_over(moment)).order_by(JobRun.id)).all()
    slots = session.execute(sa.select(ScheduleSlot.job, ScheduleSlot.planned_at).where(*_planned_long_ago(moment)))
    requests = session.scalars(sa.select(RequestRow.id).where(*_served(moment)).order_by(RequestRow.id))
    names = frozenset(Path(row.log).name for row in runs if row.log)
    return OldRuns([row.id for row in runs], [(job, at) for job, at in slots], list(requests), names)


def forget(session: Session, old: OldRuns) -> None:
    """Delete these rows: a handful of them, in one transaction. Runs that are on stay, whatever the list says."""
    if old.runs:
        session.execute(sa.delete(JobRun).where(JobRun.id.in_(old.runs), JobRun.outcome != JobOutcome.RUNNING))
    if old.slots:
        session.execute(sa.delete(ScheduleSlot).where(sa.tuple_(ScheduleSlot.job, ScheduleSlot.planned_at).in_(old.slots)))
    if old.requests:
        session.execute(sa.delete(RequestRow).where(RequestRow.id.in_(old.requests), RequestRow.taken_at.is_not(None)))


def _over(moment: datetime) -> tuple[sa.ColumnElement[bool], ...]:
    last = sa.select(sa.func.max(JobRun.id)).group_by(JobRun.job)
    told = sa.select(sa.func.max(JobRun.id)).where(JobRun.outcome != JobOutcome.BUSY).group_by(JobRun.job)
    done = JobRun.outcome == JobOutcome.DONE
    ended = sa.select(JobRun.job, sa.func.max(JobRun.ended_at).label("at")).where(done).group_by(JobRun.job).subquery()
    well = sa.select(JobRun.id).join(ended, sa.and_(ended.c.job == JobRun.job, ended.c.at == JobRun.ended_at)).where(done)
    kept = (JobRun.id.not_in(one) for one in (last, told, well))
    return JobRun.outcome != JobOutcome.RUNNING, JobRun.started_at < moment, JobRun.ended_at < moment, *kept


def _planned_long_ago(moment: datetime) -> tuple[sa.ColumnElement[bool], ...]:
    youngest = sa.select(ScheduleSlot.job, sa.func.max(ScheduleSlot.planned_at).label("at"))
    youngest_old = youngest.where(ScheduleSlot.planned_at < moment).group_by(ScheduleSlot.job).subquery()
    kept = sa.exists().where(youngest_old.c.job == ScheduleSlot.job, youngest_old.c.at == ScheduleSlot.planned_at)
    return ScheduleSlot.planned_at < moment, ScheduleSlot.claimed_at < moment, ~kept


def _served(moment: datetime) -> tuple[sa.ColumnElement[bool], ...]:
    # The last of each kind and asker: `requests.last_asked`. That of a run that is on waits again where it is cut off.
    last = sa.select(sa.func.max(RequestRow.id)).group_by(RequestRow.kind, RequestRow.requested_by)
    running = JobRun.job == RequestRow.kind, JobRun.outcome == JobOutcome.RUNNING
    on = sa.exists().where(*running, JobRun.started_at == RequestRow.taken_at)
    return RequestRow.taken_at < moment, RequestRow.created_at < moment, RequestRow.id.not_in(last), ~on
