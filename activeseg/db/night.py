"""What happened since a moment, counted: for the morning report."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.orm import Session

from activeseg.db import alerts, rounds
from activeseg.db.alerts import AlertKind
from activeseg.db.models import (
    Alert,
    Annotation,
    AnnotationStatus,
    Checkpoint,
    Decision,
    JobOutcome,
    JobRun,
    Promotion,
    ScoringRun,
)

_TOLD_OF_A_JOB = 300


@dataclass(frozen=True, slots=True)
class JobNight:
    """One job's runs by outcome, and the last failure with its reason (None where all went well)."""

    job: str
    outcomes: dict[str, int]
    trouble: str | None


@dataclass(frozen=True, slots=True)
class DecisionMade:
    """A decision about a checkpoint, with its reason."""

    model_version: str
    decision: Decision
    reason: str


@dataclass(frozen=True, slots=True)
class Night:
    """scored, failed: images. annotated, skipped, quarantined: new versions of annotations. alerts: youngest first,
    without reports."""

    jobs: list[JobNight]
    decisions: list[DecisionMade]
    scored: int
    failed: int
    annotated: int
    skipped: int
    quarantined: int
    open_tasks: int
    alerts: list[Alert]


def read_night(session: Session, since: datetime) -> Night:
    """All of it. Rounds that found another process at work are no runs."""
    decided = sa.select(Checkpoint.model_version, Promotion.decision, Promotion.reason).join_from(
        Promotion, Checkpoint, Checkpoint.id == Promotion.checkpoint_id
    )
    scored = sa.select(sa.func.sum(ScoringRun.images_done), sa.func.sum(ScoringRun.images_failed))
    done, failed = session.execute(scored.where(ScoringRun.started_at > since)).one()
    answers = sa.select(Annotation.status, sa.func.count()).where(
        Annotation.received_at > since, Annotation.consensus_of.is_(sa.null())
    )
    counts = {row[0]: row[1] for row in session.execute(answers.group_by(Annotation.status))}
    return Night(
        jobs=_jobs(session, since),
        decisions=[
            DecisionMade(*row) for row in session.execute(decided.where(Promotion.created_at > since).order_by(Promotion.id))
        ],
        scored=int(done or 0),
        failed=int(failed or 0),
        annotated=counts.get(AnnotationStatus.VALID, 0),
        skipped=counts.get(AnnotationStatus.SKIPPED, 0),
        quarantined=counts.get(AnnotationStatus.QUARANTINED, 0),
        open_tasks=rounds.tasks_with_annotators(session),
        alerts=[row for row in alerts.newest(session, since=since) if row.kind != AlertKind.REPORT],
    )


def _jobs(session: Session, since: datetime) -> list[JobNight]:
    counted = sa.select(JobRun.job, JobRun.outcome, sa.func.count(), sa.func.max(JobRun.id)).where(
        JobRun.started_at > since, JobRun.outcome.not_in([JobOutcome.BUSY, JobOutcome.RUNNING])
    )
    found: dict[str, dict[str, int]] = {}
    troubled: dict[str, int] = {}
    for job, outcome, count, last in session.execute(counted.group_by(JobRun.job, JobRun.outcome).order_by(JobRun.job)):
        found.setdefault(job, {})[outcome.value] = count
        if outcome is not JobOutcome.DONE:
            troubled[job] = max(troubled.get(job, 0), last)
    reasons = {job: session.get_one(JobRun, number).message for job, number in troubled.items()}
    return [JobNight(job, outcomes, (reasons.get(job) or "")[:_TOLD_OF_A_JOB] or None) for job, outcomes in found.items()]
