"""Which files rows still need: the tables' side of `activeseg gc` and of backups."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.orm import Session

from activeseg.db import checkpoints
from activeseg.db.images import blocks
from activeseg.db.models import (
    Annotation,
    Checkpoint,
    LabelSetRow,
    Prediction,
    Query,
    Round,
    RoundStatus,
    ScoringConfig,
    Task,
    TrainingRun,
    TrainingStatus,
)
from activeseg.db.rounds import OPEN


@dataclass(frozen=True, slots=True)
class Done:
    """Stored predictions nothing asks for any more.

    rows: ids of those no task was ever shown with, or not any more: the next one who needs such a prediction draws it anew.
    maps: ids of those whose task is answered: the mask stays, since an edited annotation is compared with it, the entropy map
    does not.
    """

    rows: frozenset[int] = frozenset()
    maps: frozenset[int] = frozenset()

    def parts(self, size: int) -> Iterator[Done]:
        """The same in handfuls of at most `size`."""
        yield from (Done(rows=frozenset(block)) for block in blocks(sorted(self.rows), size))
        yield from (Done(maps=frozenset(block)) for block in blocks(sorted(self.maps), size))


def identity(session: Session) -> str | None:
    """What tells this database from all others, also after it was moved, backed up or restored; None before anything is in it.

    A copy of it has the same.
    """
    first = session.execute(
        sa.select(LabelSetRow.fingerprint, LabelSetRow.created_at).order_by(LabelSetRow.id).limit(1)
    ).first()
    if first is None:
        return None
    return hashlib.sha256(f"{first.fingerprint} {first.created_at.isoformat()}".encode()).hexdigest()[:16]


def checkpoints_to_keep(session: Session, *, newest: int, rollbacks: int, since: datetime) -> dict[int, str]:
    """id -> why, of every checkpoint whose file must stay.

    newest, rollbacks: how many of the youngest ones and of the former champions stay; since: none younger than this goes.
    """
    kept: dict[int, str] = {}
    line = checkpoints.champion_line(session)
    kept |= dict.fromkeys(line[-1 - rollbacks : -1], "a rollback goes there")
    kept |= dict.fromkeys(line[-1:], "champion")
    for row_id in session.scalars(sa.select(Checkpoint.id).where(Checkpoint.created_at >= since)):
        kept.setdefault(row_id, "young")
    for row_id in session.scalars(sa.select(Checkpoint.id).order_by(Checkpoint.id.desc()).limit(newest)):
        kept.setdefault(row_id, "among the newest")
    for row in checkpoints.undecided(session):
        kept.setdefault(row.id, "the gate has not seen it")
    at_work = sa.select(TrainingRun.parent_id).where(TrainingRun.status == TrainingStatus.RUNNING)
    resumable = checkpoints.resumable(session)
    for parent in [*session.scalars(at_work), resumable.parent_id if resumable else None]:
        if parent is not None:
            kept.setdefault(parent, "a training goes on from it")
    begun = sa.select(ScoringConfig.checkpoint_id).join(Round, Round.scoring_config_id == ScoringConfig.id)
    for row_id in session.scalars(begun.where(Round.status != RoundStatus.CLOSED)):
        kept.setdefault(row_id, "its round is not closed")
    return kept


def done_predictions(session: Session, *, before: datetime) -> Done:
    """Predictions older than `before` of images that are in no open query and that nobody answered about since then."""
    asked = sa.exists().where(
        Query.image_id == Prediction.image_id,
        Round.id == Query.round_id,
        sa.or_(
            Query.status.in_(OPEN), Round.status != RoundStatus.CLOSED, Round.closed_at.is_(None), Round.closed_at >= before
        ),
    )
    answered = sa.exists().where(Annotation.image_id == Prediction.image_id, Annotation.received_at >= before)
    old = (Prediction.created_at < before, ~asked, ~answered)
    shown = sa.exists().where(Task.prediction_id == Prediction.id)
    rows = session.scalars(sa.select(Prediction.id).where(*old, ~shown))
    maps = session.scalars(sa.select(Prediction.id).where(*old, shown, Prediction.entropy_location.is_not(None)))
    return Done(frozenset(rows), frozenset(maps))


def forget_predictions(session: Session, done: Done) -> None:
    """Let go of them, a handful in one transaction (`Done.parts`). Where one is needed again it is drawn again
    (`labeling.drawn`)."""
    if done.rows:
        session.execute(sa.delete(Prediction).where(Prediction.id.in_(done.rows)))
    if done.maps:
        session.execute(sa.update(Prediction).where(Prediction.id.in_(done.maps)).values(entropy_location=None))


def named_files(session: Session, done: Done | None = None) -> set[str]:
    """Locations of the masks and pictures that rows name, those of every version of every annotation among them.

    done: as if these were forgotten already. Checkpoints are not among them.
    """
    named = {location for location in session.scalars(sa.select(Annotation.mask_location).distinct()) if location}
    rows, maps = (done.rows, done.maps) if done else (frozenset[int](), frozenset[int]())
    for row in session.execute(sa.select(Prediction.id, Prediction.mask_location, Prediction.entropy_location)):
        if row.id not in rows:
            named.add(row.mask_location)
            if row.entropy_location and row.id not in maps:
                named.add(row.entropy_location)
    return named


def checkpoint_files(session: Session) -> Iterator[tuple[int, str]]:
    """(id, location) of every checkpoint."""
    yield from ((row.id, row.location) for row in session.execute(sa.select(Checkpoint.id, Checkpoint.location)))
