"""Scoring runs that found the pool changed, and what waits for a person until a later one finds it as it was.

`scoring_runs.drift` holds which limit of [drift] a run passed. A person who accepts it clears the sentence; the figure stays,
an alert says who it was, and from then on the run's images count as the pool that later ones are compared with.
"""

from __future__ import annotations

from datetime import datetime
from typing import Literal

import sqlalchemy as sa
from sqlalchemy.orm import Session

from activeseg.config import DriftSection
from activeseg.db import alerts
from activeseg.db.alerts import AlertKind
from activeseg.db.models import Checkpoint, ScoringConfig, ScoringRun
from activeseg.wording import counted

ACCEPTED = "accepted"
"""What the alert of an acceptance is about."""
ACCEPT = "activeseg drift accept"
REMEDY = f": look at the new images; if they belong to the pool, `{ACCEPT}`"
"""How the sentence of a run that passed a limit ends."""

_JUDGED = sa.or_(ScoringRun.drift.is_not(None), ScoringRun.shift.is_not(None))


def standing(session: Session) -> ScoringRun | None:
    """The last run that could be judged, where it passed a limit and nobody has accepted that; else None.

    A run with too few images to judge, or with none scored before to compare with, ends nothing.
    """
    last = session.scalar(sa.select(ScoringRun).where(_JUDGED).order_by(ScoringRun.id.desc()).limit(1))
    return last if last is not None and last.drift is not None else None


def held(session: Session, rules: DriftSection, what: Literal["push", "promotion"]) -> str | None:
    """Why a push or a promotion waits for a person, and what to do; None where it does not."""
    if rules.blocks not in (what, "both") or (run := standing(session)) is None:
        return None
    return f"waits since scoring run {run.id}: {run.drift}"


def problem(session: Session, rules: DriftSection) -> str | None:
    """What `status` says of it."""
    if (run := standing(session)) is None:
        return None
    waiting = {"nothing": "", "both": "; pushes and promotions wait"}.get(rules.blocks, f"; {rules.blocks} waits")
    return f"drift in scoring run {run.id}: {run.drift}{waiting}"


def within_limits_since(session: Session, moment: datetime) -> bool:
    """Whether a run after a moment could be judged and passed no limit."""
    good = sa.exists().where(ScoringRun.drift.is_(None), ScoringRun.shift.is_not(None), ScoringRun.ended_at > moment)
    return bool(session.scalar(sa.select(good)))


def model_version(session: Session, run: ScoringRun) -> str:
    """The checkpoint a run scored with."""
    statement = sa.select(Checkpoint.model_version).join(ScoringConfig, ScoringConfig.checkpoint_id == Checkpoint.id)
    return str(session.scalar(statement.where(ScoringConfig.id == run.scoring_config_id)))


def accept(session: Session, *, accepted_by: str, reason: str | None = None) -> list[tuple[int, str]]:
    """Say that the pool may be as it is: clears the sentence of every run and notes an alert.

    Returns the runs and what they said, oldest first. Writes nothing where no drift stands.
    """
    if standing(session) is None:
        return []
    alerts.lock(session)
    rows = list(session.scalars(sa.select(ScoringRun).where(ScoringRun.drift.is_not(None)).order_by(ScoringRun.id)))
    said = [(row.id, row.drift or "") for row in rows]
    because = f" ({reason})" if reason else ""
    last = said[-1][1].removesuffix(REMEDY)
    message = f"{accepted_by} accepted the drift of {counted(len(rows), 'scoring run')}{because}; the last said: {last}"
    alerts.note(session, AlertKind.DRIFT, ACCEPTED, message)
    for row in rows:
        row.drift = None
    session.flush()
    return said
