"""The figures a monitoring system asks for again and again: few, cheap, read in one transaction."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.orm import Session

from activeseg.db import images, rounds
from activeseg.db.models import ImageStatus, ScoringRun, Split
from activeseg.db.models.columns import UtcDateTime


@dataclass(frozen=True, slots=True)
class Figures:
    """Where the loop stands.

    scored, failed: images of all scoring runs together. runs: how many there were.
    last_run: the youngest run that has ended, None before the first.
    champion: its model version, and since when; None where there is none.
    annotated: images with a mask that counts. open_tasks: images that wait for annotators.
    """

    images: Mapping[tuple[Split, ImageStatus], int]
    scored: int
    failed: int
    runs: int
    last_run: ScoringRun | None
    champion: tuple[str, datetime] | None
    annotated: int
    open_tasks: int


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
        open_tasks=rounds.open_tasks(session),
    )
