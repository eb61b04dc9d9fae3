"""The figures a monitoring system asks for again and again: few, cheap, read in one transaction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.orm import Session

from activeseg.db import alerts, images, jobs, lease, rounds
from activeseg.db.jobs import RunRecord
from activeseg.db.models import ImageStatus, JobOutcome, ScoringRun, Split
from activeseg.db.models.columns import UtcDateTime, now


@dataclass(frozen=True, slots=True)
class Figures:
    """Where the loop stands.

    scored, failed: images of all scoring runs together. runs: how many there were.
    last_run: the youngest run that has ended, None before the first.
    champion: its model version, and since when; None where there is none.
    annotated: images with a mask that counts. open_tasks: images that wait for annotators.
    job_runs: (job, outcome) -> how many ended so. last_of_job: the last run of each job. last_success: when it last ended well.
    lease_held: whether a process moves the loop on now. alerts_waiting: alerts still to be sent.
    """

    images: Mapping[tuple[Split, ImageStatus], int]
    scored: int
    failed: int
    runs: int
    last_run: ScoringRun | None
    champion: tuple[str, datetime] | None
    annotated: int
    open_tasks: int
    job_runs: Mapping[tuple[str, JobOutcome], int]
    last_of_job: Sequence[RunRecord]
    last_success: Mapping[str, datetime]
    lease_held: bool
    alerts_waiting: int


def read_figures(session: Session) -> Figures:
    """What the tables say now; the scores, which may be many millions, are not touched."""
    totals = sa.select(sa.func.sum(ScoringRun.images_done), sa.func.sum(ScoringRun.images_failed), sa.func.count())
    scored, failed, runs = session.execute(totals.select_from(ScoringRun)).one()
    since = sa.text("SELECT model_version, since FROM champion").columns(model_version=sa.Text, since=UtcDateTime)
    ended = sa.select(ScoringRun).where(ScoringRun.ended_at.is_not(None)).order_by(ScoringRun.id.desc()).limit(1)
    champion = session.execute(since).one_or_none()
    return Figures(
        images=images.count_by_status(session),
        scored=int(scored or 0),
        failed=int(failed or 0),
        runs=runs,
        last_run=session.scalar(ended),
        champion=None if champion is None else (champion.model_version, champion.since),
        annotated=session.scalar(sa.text("SELECT count(*) FROM current_annotations")) or 0,
        open_tasks=rounds.tasks_with_annotators(session),
        job_runs={(job, outcome): count for job, outcome, count in jobs.counts(session)},
        last_of_job=jobs.last_of_each(session),
        last_success=dict(jobs.last_successes(session)),
        lease_held=lease.is_held(session),
        alerts_waiting=alerts.waiting(session, now()),
    )
