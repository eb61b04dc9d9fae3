"""The morning report: what the night did, in a text short enough to read on a telephone."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta, tzinfo
from typing import Any

from activeseg.alerts.delivery import deliver
from activeseg.config import Settings
from activeseg.db import alerts
from activeseg.db.alerts import AlertKind
from activeseg.db.database import Database
from activeseg.db.models import Alert, Decision
from activeseg.db.models.columns import now
from activeseg.db.night import Night, read_night
from activeseg.db.processes import this_host
from activeseg.db.status import read_status
from activeseg.wording import counted, moment

ABOUT = "night"
_FIRST = timedelta(days=1)
_MOST_LINES = 8
_DECIDED = {Decision.PROMOTED: "promoted", Decision.REFUSED: "refused", Decision.ROLLED_BACK: "went back to"}


def morning_report(settings: Settings, database: Database) -> str:
    """Note what happened since the last report, or in the last day, as an alert, and deliver it; one sentence about it."""
    number: int | None = None
    while number is None:
        number = _noted(settings, database)
    deliver(settings, database)
    with database.read() as session:
        row = session.get_one(Alert, number)
    return f"report {number} {_fate(row)}"


def _noted(settings: Settings, database: Database) -> int | None:
    """The number of the report as it was noted; None where another process noted one meanwhile, so that the time differs.

    Reading the status of a large pool takes seconds, in which others write.
    """
    with database.read() as session:
        last, at = alerts.latest(session, (AlertKind.REPORT,)), now()
        since = last.created_at if last else at - _FIRST
        text = report_text(read_status(session, settings), read_night(session, since), settings, since=since, at=at)
    with database.write() as session:
        alerts.lock(session)
        newest = alerts.latest(session, (AlertKind.REPORT,))
        if (newest and newest.id) != (last and last.id):
            return None
        return alerts.note(session, AlertKind.REPORT, ABOUT, text, at=at).id


def _fate(row: Alert) -> str:
    if row.sent_at is not None:
        return "sent"
    return f"not sent yet: {' '.join((row.error or 'another process sends it').splitlines())}"


def report_text(status: dict[str, Any], night: Night, settings: Settings, *, since: datetime, at: datetime) -> str:
    """The report. status: what `db.status.read_status` tells."""
    zone = settings.zone
    problems: list[str] = status["problems"]
    trouble = counted(len(problems), "problem") if problems else "no problem"
    open_tasks = counted(night.open_tasks, "open task")
    head = f"activeseg on {this_host()}: {trouble}, {counted(night.annotated, 'annotation')}, {open_tasks}"
    period = f"{moment(since, zone)} to {moment(at, zone)}"
    return "\n".join([head, period, "", *(f"{name:<12} {text}" for name, text in _lines(status, night, zone))])


def _lines(status: dict[str, Any], night: Night, zone: tzinfo) -> Iterator[tuple[str, str]]:
    yield "champion", _champion(status["champion"], zone)
    for one in night.decisions:
        yield "decision", f"{one.model_version} {_DECIDED[one.decision]}: {one.reason}"
    for job in night.jobs:
        outcomes = ", ".join(f"{count} {outcome}" for outcome, count in sorted(job.outcomes.items()))
        yield "job", f"{job.job}: {outcomes}{f' (last trouble: {job.trouble})' if job.trouble else ''}"
    if not night.jobs:
        yield "job", "no job ended"
    yield "scored", f"{counted(night.scored, 'image')}, {night.failed} could not be read"
    told = [f"{night.annotated} new"]
    told += [f"{count} {what}" for what, count in (("skipped", night.skipped), ("quarantined", night.quarantined)) if count]
    yield "annotations", f"{', '.join(told)}; {counted(night.open_tasks, 'task')} open"
    yield from (("problem", problem) for problem in _few(status["problems"]))
    yield from (("alert", _alert(row, zone)) for row in night.alerts[:_MOST_LINES])
    yield from (("next", line) for line in _few(status["next"]))


def _champion(champion: dict[str, Any] | None, zone: tzinfo) -> str:
    if champion is None:
        return "none yet"
    quality = "" if champion["mean_iou"] is None else f", mIoU {champion['mean_iou']:.3f}"
    return f"{champion['model_version']}{quality}, since {champion['since'].astimezone(zone):%Y-%m-%d}"


def _alert(row: Alert, zone: tzinfo) -> str:
    fate = "" if row.sent_at is not None else " (not sent)"
    first = (row.message.splitlines() or [""])[0]
    return f"{row.created_at.astimezone(zone):%H:%M %Z} {row.kind}: {first}{fate}"


def _few(lines: list[str]) -> list[str]:
    more = len(lines) - _MOST_LINES
    return lines if more <= 0 else [*lines[:_MOST_LINES], f"and {more} more: `activeseg status`"]
