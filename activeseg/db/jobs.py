"""Claims of planned times and records of what ran. A slot's row is the claim: who inserts it runs the job.

While a run is on, its process renews `beat_at`. One that was not heard of for its time to live is abandoned, whatever its
row says: readers tell it so, and a scheduler's next look writes it down. All of that is on the database's clock.

That clock may have run ahead and been put right, and a host's may run ahead of it. So a time of the database that lies in its
future is none: such a beat counts as silence, and such a claim was made now, at the latest. A claim made long before its
planned time gives way to one at that time: a night that a wrong clock had begun is not lost to the right one.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from activeseg.db.lease import CLOCK, TTL_SECONDS
from activeseg.db.models import JobOutcome, JobRun, RequestRow, ScheduleSlot
from activeseg.db.processes import this_host

MESSAGE_LENGTH = 1000
LOG_LENGTH = 500

STOPPED = "stopped by a signal; the next run goes on from here"
"""What a run says that ended because the scheduler was asked to: cut off, and nothing that people need to be told."""

MOST_TRIES = 3
"""A run that was cut off goes on by itself until this many of a job in a row were cut off: what kills it (memory, say) would
kill it all night."""

RECENT = 1000
"""Runs among which those that are on, or ended a moment ago, are looked for every second."""

EARLY = timedelta(hours=1)
"""A claim made so long before its planned time is no claim of it. One made less early is: the job has just run."""


@dataclass(frozen=True, slots=True)
class RunRecord:
    """A run as people are told of it. outcome: 'abandoned' also where that is not written down yet.

    asked_by: whose request it serves; None for one that was planned or begun by hand, and for one that was cut off and gave
    its request back.
    """

    run: int
    job: str
    planned_at: datetime | None
    started_at: datetime
    ended_at: datetime | None
    outcome: JobOutcome
    message: str | None
    host: str
    pid: int
    log: str | None
    asked_by: str | None


def claim_slot(session: Session, job: str, planned_at: datetime, *, at: datetime, catching_up: bool = False) -> JobRun | None:
    """Claim a planned time and open its run; None where the time is not ours to run.

    catching_up: claim only what lies behind the moment the job was first planned (`plan_from`).
    """
    if catching_up and not _planned_before(session, job, planned_at):
        return None
    # Of two schedulers the second waits here for the first one's commit, then inserts nothing.
    if not take_slot(session, job, planned_at, at=at):
        return None
    return start_run(session, job, planned_at, at=at)


def take_slot(session: Session, job: str, planned_at: datetime, *, at: datetime) -> bool:
    """Insert a slot's row, or renew one that was claimed EARLY; whether it is ours now. at: by this host's clock."""
    insert = postgresql.insert if session.get_bind().dialect.name == "postgresql" else sqlite.insert
    claimed_at = min(at, _now(session))  # so that a time in the future was written before the database's clock was put back
    claim = insert(ScheduleSlot).values(job=job, planned_at=planned_at, claimed_at=claimed_at)
    if claimed_at >= planned_at - EARLY:
        key = [ScheduleSlot.job, ScheduleSlot.planned_at]
        was_early = ScheduleSlot.claimed_at < planned_at - EARLY
        claim = claim.on_conflict_do_update(index_elements=key, set_={"claimed_at": claimed_at}, where=was_early)
    else:
        claim = claim.on_conflict_do_nothing()
    return session.scalar(claim.returning(ScheduleSlot.job)) is not None


def plan_from(session: Session, job: str, *, at: datetime) -> bool:
    """Write down that a job is planned from now on, unless that is known; whether it was written.

    A slot that nothing runs in stands for it: times before it were never missed, times after it are.
    """
    if session.scalar(sa.select(sa.exists().where(ScheduleSlot.job == job, ScheduleSlot.planned_at <= at))):
        return False
    return take_slot(session, job, at, at=at)


def release_slot(session: Session, job: str, planned_at: datetime) -> None:
    """Give a planned time back, so that it may be claimed again."""
    session.execute(sa.delete(ScheduleSlot).where(ScheduleSlot.job == job, ScheduleSlot.planned_at == planned_at))


def start_run(session: Session, job: str, planned_at: datetime | None, *, at: datetime) -> JobRun:
    """Record that this process runs a job now (planned_at None: asked for)."""
    row = JobRun(job=job, planned_at=planned_at, host=this_host(), pid=os.getpid(), outcome=JobOutcome.RUNNING, started_at=at)
    session.add(row)
    session.flush()
    beat(session, row.id, at)
    return row


def beat(session: Session, run_id: int, started_at: datetime) -> bool:
    """Say that a run is on; False where it was ended meanwhile, by whomever, or a restore gave its number to another."""
    same = JobRun.id == run_id, JobRun.started_at == started_at
    on = sa.update(JobRun).where(*same, JobRun.outcome == JobOutcome.RUNNING)
    renewed = on.values(beat_at=_clock(session)).returning(JobRun.id)
    return session.execute(renewed, execution_options={"synchronize_session": False}).first() is not None


def end_run(session: Session, run_id: int, outcome: JobOutcome, message: str, *, at: datetime) -> bool:
    """Record how a run ended; False where it was taken for abandoned meanwhile.

    Then what it did all the same counts: a run that came to an end is no abandoned one. One that did not stays as it is.
    """
    row = session.get_one(JobRun, run_id, with_for_update=True)
    was_on = row.outcome is JobOutcome.RUNNING
    if was_on or outcome in (JobOutcome.DONE, JobOutcome.FAILED):
        row.outcome, row.message, row.ended_at = outcome, message[:MESSAGE_LENGTH], at
    return was_on


def has_dead(session: Session, *, ttl: float = TTL_SECONDS) -> bool:
    """Whether `abandon_dead` finds something to do."""
    dead = _dead(session, ttl).with_only_columns(JobRun.id)
    ahead = sa.select(JobRun.id).where(_recent(), _ahead(session, ttl))
    return session.scalar(dead.union_all(ahead).limit(1)) is not None


def abandon_dead(session: Session, *, at: datetime, ttl: float = TTL_SECONDS) -> list[JobRun]:
    """Mark runs that were not heard of for `ttl` seconds as abandoned; returns them, oldest first. Each is returned once,
    however many look.

    Where the database's clock was put back, the beats and claims that it left in the future come to the present: only until
    that future is here can they be told from others.
    """
    dead = list(session.scalars(_dead(session, ttl).order_by(JobRun.id).with_for_update()))
    for row in dead:
        row.outcome, row.ended_at = JobOutcome.ABANDONED, at
        row.message = f"process {row.pid} on {row.host} was not heard of any more in the middle of it"
    if session.scalar(sa.select(JobRun.id).where(_recent(), _ahead(session, ttl)).limit(1)) is not None:
        _bring_to_present(session, ttl)
    return dead


def _bring_to_present(session: Session, ttl: float) -> None:
    moment = _now(session)
    claimed = sa.update(ScheduleSlot).where(ScheduleSlot.claimed_at > moment + timedelta(seconds=ttl))
    beaten = sa.update(JobRun).where(_ahead(session, ttl))
    for change in (claimed.values(claimed_at=moment), beaten.values(beat_at=_clock(session))):
        session.execute(change, execution_options={"synchronize_session": False})


def may_go_on(session: Session, job: str) -> bool:
    """Whether a run that was cut off should go on by itself: see MOST_TRIES. Runs that are on do not count, nor do those that
    a person stopped."""
    latest = sa.select(JobRun.outcome).where(JobRun.job == job, JobRun.outcome.not_in([JobOutcome.RUNNING, JobOutcome.BUSY]))
    latest = latest.where(JobRun.message.is_distinct_from(STOPPED))
    outcomes = list(session.scalars(latest.order_by(JobRun.id.desc()).limit(MOST_TRIES)))
    return len(outcomes) < MOST_TRIES or any(outcome is not JobOutcome.ABANDONED for outcome in outcomes)


def request_of(session: Session, row: JobRun) -> RequestRow | None:
    """The request a run was begun for; None for a planned run or one asked for by hand."""
    taken = sa.select(RequestRow).where(RequestRow.kind == row.job, RequestRow.taken_at == row.started_at)
    return None if row.planned_at is not None else session.scalar(taken.order_by(RequestRow.id).limit(1))


def history(session: Session, *, limit: int, after: int | None = None, ttl: float = TTL_SECONDS) -> list[RunRecord]:
    """The last runs, youngest first. after: only those before the run of this number."""
    page = sa.select(JobRun).order_by(JobRun.id.desc()).limit(limit)
    return _told(session, page if after is None else page.where(JobRun.id < after), ttl)


def last_of_each(session: Session, *, ttl: float = TTL_SECONDS) -> list[RunRecord]:
    """The last run of each job, by the job's name. Runs that found another process at work are passed over."""
    last = sa.select(sa.func.max(JobRun.id)).where(JobRun.outcome != JobOutcome.BUSY).group_by(JobRun.job)
    return _told(session, sa.select(JobRun).where(JobRun.id.in_(last)).order_by(JobRun.job), ttl)


def _told(session: Session, statement: sa.Select[JobRun], ttl: float) -> list[RunRecord]:
    dead = set(session.scalars(_dead(session, ttl).with_only_columns(JobRun.id)))
    rows = list(session.scalars(statement))
    asked = _asked_by(session, rows)
    return [_record(row, asked.get((row.job, row.started_at)), dead=row.id in dead) for row in rows]


def _asked_by(session: Session, rows: Sequence[JobRun]) -> dict[tuple[str, datetime], str]:
    """Who asked for the runs that are not planned, by job and start: a run begins at the moment its request is taken."""
    starts = [row.started_at for row in rows if row.planned_at is None]
    if not starts:
        return {}
    between = RequestRow.taken_at.between(min(starts), max(starts))
    found = sa.select(RequestRow.kind, RequestRow.taken_at, RequestRow.requested_by).where(between)
    return {(kind, taken_at): by for kind, taken_at, by in session.execute(found) if taken_at is not None}


def _record(row: JobRun, asked_by: str | None, *, dead: bool) -> RunRecord:
    outcome = JobOutcome.ABANDONED if dead else row.outcome
    message = "not heard of any more" if dead else row.message
    whole = (row.id, row.job, row.planned_at, row.started_at, row.ended_at)
    return RunRecord(*whole, outcome, message, row.host, row.pid, row.log, asked_by)


def _dead(session: Session, ttl: float) -> sa.Select[JobRun]:
    unheard = sa.or_(JobRun.beat_at.is_(None), JobRun.beat_at < _clock(session) - ttl, _ahead(session, ttl))
    return sa.select(JobRun).where(_recent(), JobRun.outcome == JobOutcome.RUNNING, unheard)


def _recent() -> sa.ColumnElement[bool]:
    return JobRun.id > sa.select(sa.func.max(JobRun.id) - RECENT).scalar_subquery()


def _ahead(session: Session, ttl: float) -> sa.ColumnElement[bool]:
    """Beats before the clock was put back, by more than a beat may be old as well."""
    return JobRun.beat_at > _clock(session) + ttl


def _now(session: Session) -> datetime:
    return datetime.fromtimestamp(float(session.execute(sa.select(_clock(session))).scalar_one()), UTC)


def _clock(session: Session) -> sa.ColumnElement[float]:
    return sa.literal_column(CLOCK[session.get_bind().dialect.name], sa.Double)


def last_successes(session: Session) -> Sequence[tuple[str, datetime]]:
    """When each job last ended well, by the job's name."""
    done = sa.select(JobRun.job, sa.func.max(JobRun.ended_at)).where(JobRun.outcome == JobOutcome.DONE)
    return [(job, when) for job, when in session.execute(done.group_by(JobRun.job).order_by(JobRun.job)) if when is not None]


def worked_since(session: Session, job: str, run_id: int | None) -> bool:
    """Whether a run of a job that was begun after this one ended well."""
    later = sa.exists().where(JobRun.job == job, JobRun.id > run_id, JobRun.outcome == JobOutcome.DONE)
    return bool(session.scalar(sa.select(later)))


def counts(session: Session) -> Sequence[tuple[str, JobOutcome, int]]:
    """Runs that ended, by job and outcome."""
    ended = sa.select(JobRun.job, JobRun.outcome, sa.func.count()).where(JobRun.outcome != JobOutcome.RUNNING)
    grouped = ended.group_by(JobRun.job, JobRun.outcome).order_by(JobRun.job, JobRun.outcome)
    return [(job, outcome, count) for job, outcome, count in session.execute(grouped)]


def _planned_before(session: Session, job: str, planned_at: datetime) -> bool:
    """Whether a time was planned when it came: an earlier one is known, or a run of it was begun and cut off."""
    earlier = sa.exists().where(ScheduleSlot.job == job, ScheduleSlot.planned_at < planned_at)
    begun = sa.exists().where(JobRun.job == job, JobRun.planned_at == planned_at)
    return bool(session.scalar(sa.select(sa.or_(earlier, begun))))
