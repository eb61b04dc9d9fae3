"""What annotated images are used for, and what those without a split wait for."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.orm import Session

from activeseg.config import Settings
from activeseg.db import images, rounds, truth
from activeseg.db.models import Image, ImageStatus, Split


def annotated(session: Session) -> dict[Split, int]:
    """How many images of each split have a mask that counts; POOL: those that have no split yet."""
    statement = (
        sa.select(Image.split, sa.func.count())
        .join(truth.CURRENT, truth.CURRENT.c.image_id == Image.id)
        .where(Image.status == ImageStatus.ACTIVE)
        .group_by(Image.split)
    )
    counts = {row[0]: row[1] for row in session.execute(statement)}
    return {split: counts.get(split, 0) for split in Split}


def wait_ends_at(session: Session, settings: Settings) -> int | None:
    """How many annotated images end the wait for a split, unless the last open task does; None where nobody waits.

    Answers of the first round come in handfuls: divided one by one, all would train and none validate.
    """
    counts = annotated(session)
    wanted = settings.training.min_train + settings.selection.val_size
    validation = images.count_by_status(session).get((Split.VAL, ImageStatus.ACTIVE), 0)
    begun = validation or counts[Split.TRAIN] or counts[Split.POOL] >= wanted or not counts[Split.POOL]
    if begun or not settings.selection.val_size or not rounds.open_tasks(session):
        return None
    return wanted
