"""What needs telling: jobs that fail and work again, open tasks nobody annotates, nothing to do, a pool that changed."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import datetime, timedelta

from sqlalchemy.orm import Session

from activeseg.alerts.delivery import deliver
from activeseg.config import Settings
from activeseg.db import alerts, candidates, drift, jobs, rounds
from activeseg.db.alerts import AlertKind
from activeseg.db.database import Database
from activeseg.db.models import JobOutcome
from activeseg.db.models.columns import now
from activeseg.db.standstill import why_no_round
from activeseg.wording import counted, moment

MOST_INCIDENTS = 3
"""A job that fails and works by turns is told so often within [alerts] repeat_hours, then not before they are over."""
ANNOTATIONS, POOL = "annotations", "pool"
"""What an idle alert is about: tasks nobody annotates, a pool with nothing left to ask about."""
_RECENT = timedelta(days=1)

_log = logging.getLogger(__name__)


def watch(
    settings: Settings, database: Database, *, job: str | None = None, outcome: str | None = None, message: str | None = None
) -> None:
    """Note what needs telling and deliver what waits. Never raises: what goes wrong is logged, and the next call goes on.

    job, outcome ('done', 'failed', 'abandoned', ...), message: a run that has just ended; all None at a look back.
    """
    _guarded("alerts could not be noted", lambda: _note(settings, database, job, outcome, message))
    _guarded("alerts could not be delivered", lambda: deliver(settings, database))


def _guarded(what: str, step: Callable[[], object]) -> None:
    try:
        step()
    except Exception:
        _log.exception("%s", what)


def _note(settings: Settings, database: Database, job: str | None, outcome: str | None, message: str | None) -> None:
    with database.write() as session:
        alerts.lock(session)
        at = now()
        if job is not None and outcome is not None:
            note_run(session, settings, job, outcome, message or "", at=at)
        _note_runs_nobody_told_of(session, settings, at)
        note_idleness(session, settings, at=at)
        note_nothing_to_do(session, settings, at=at)
        note_drift(session, settings, at=at)


def note_run(session: Session, settings: Settings, job: str, outcome: str, message: str, *, at: datetime) -> None:
    """One alert for a job that begins to fail, however often it then fails, and one when it works again.

    A job that goes on failing is told again after [alerts] repeat_hours. A scheduler that was asked to stop is no failure, nor
    one of the MOST_INCIDENTS: restarts of a service must not use up what tells of a night that went wrong.
    """
    if message == jobs.STOPPED:
        return
    wait = timedelta(hours=settings.alerts.repeat_hours)
    last = alerts.latest(session, (AlertKind.FAILURE, AlertKind.RECOVERY), job)
    failing = last is not None and last.kind == AlertKind.FAILURE
    incidents = alerts.count(session, AlertKind.FAILURE, job, since=at - wait)
    if outcome in (JobOutcome.FAILED, JobOutcome.ABANDONED):
        if last is not None and failing and at - last.created_at < wait:
            return
        still = "still " if failing else ""
        calm = f" (it comes and goes: nothing more is told of it for {settings.alerts.repeat_hours:g} hours)"
        told = f"{job} {still}{outcome}: {message}{'' if incidents + 1 < MOST_INCIDENTS else calm}"
        alerts.note(session, AlertKind.FAILURE, job, told, at=at)
    elif outcome == JobOutcome.DONE and failing and incidents < MOST_INCIDENTS:
        alerts.note(session, AlertKind.RECOVERY, job, f"{job} works again: {message}", at=at)


def _note_runs_nobody_told_of(session: Session, settings: Settings, at: datetime) -> None:
    """The process that ran a job may have ended before it said so."""
    for run in jobs.last_of_each(session):
        if run.ended_at is None or run.ended_at < at - _RECENT:
            continue
        last = alerts.latest(session, (AlertKind.FAILURE, AlertKind.RECOVERY), run.job)
        if last is None or last.created_at < run.ended_at:
            note_run(session, settings, run.job, run.outcome, run.message or "", at=at)


def note_idleness(session: Session, settings: Settings, *, at: datetime) -> None:
    """Tasks are open and nobody annotated for [alerts] idle_days; again after as many days."""
    days = settings.alerts.idle_days
    if not days or (found := alerts.idle_since(session)) is None:
        return
    since, tasks = found
    if _idle_is_news(session, settings, ANNOTATIONS, since, at):
        alone = f"and nobody annotated since {moment(since, settings.zone)} ([alerts] idle_days = {days:g})"
        alerts.note(session, AlertKind.IDLE, ANNOTATIONS, f"{counted(tasks, 'open task')}, {alone}", at=at)


def note_nothing_to_do(session: Session, settings: Settings, *, at: datetime) -> None:
    """No image is left to ask about, and nothing came or was annotated for [alerts] idle_days; again after as many days.

    Once that was told, it is told once that there is something to do again.
    """
    if not (days := settings.alerts.idle_days):
        return
    since = alerts.nothing_to_do_since(session)
    last = alerts.latest(session, (AlertKind.IDLE, AlertKind.RECOVERY), POOL)
    told = last is not None and last.kind == AlertKind.IDLE
    if not told and (since is None or at - since < timedelta(days=days)):
        return
    if since is None or candidates.has_candidates(session, None):
        if told:
            tasks = rounds.open_tasks(session)
            what = counted(tasks, "open task") if tasks else "images to ask about"
            alerts.note(session, AlertKind.RECOVERY, POOL, f"there is something to do again: {what}", at=at)
    elif _idle_is_news(session, settings, POOL, since, at):
        nothing = f"nothing to do since {moment(since, settings.zone)} ([alerts] idle_days = {days:g})"
        alerts.note(session, AlertKind.IDLE, POOL, f"{nothing}: {why_no_round(session, settings)}", at=at)


def _idle_is_news(session: Session, settings: Settings, about: str, since: datetime, at: datetime) -> bool:
    """Whether it goes on for [alerts] idle_days and was not told since, or not for as many days."""
    idle = timedelta(days=settings.alerts.idle_days)
    wait = max(idle, timedelta(hours=settings.alerts.repeat_hours))
    last = alerts.latest(session, (AlertKind.IDLE,), about)
    return at - since >= idle and (last is None or last.created_at <= since or at - last.created_at >= wait)


def note_drift(session: Session, settings: Settings, *, at: datetime) -> None:
    """A scoring run passed a limit of [drift]: told again by a later run after repeat_hours, or after one within the limits."""
    run = drift.standing(session)
    if run is None or run.ended_at is None:
        return
    last = alerts.latest(session, (AlertKind.DRIFT,))
    if last is not None:
        # Of one moment, too: the acceptance of this very run came after it.
        told = last.created_at >= run.ended_at
        over = last.about == drift.ACCEPTED or drift.within_limits_since(session, last.created_at)
        if told or (at - last.created_at < timedelta(hours=settings.alerts.repeat_hours) and not over):
            return
    message = drift.problem(session, settings.drift) or ""
    alerts.note(session, AlertKind.DRIFT, drift.model_version(session, run), message, at=at)
