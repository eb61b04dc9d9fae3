"""What people are shown of an image beside its pixels: the mask that was predicted, the one that was annotated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.orm import Session

from activeseg.core.labels import LabelSet
from activeseg.db import checkpoints
from activeseg.db.models import Annotation, Checkpoint, ClassScoreRow, Image, ImageStatus, LabelSetRow, Prediction
from activeseg.db.rankings import class_scores, latest_scoring_config
from activeseg.db.truth import CURRENT


@dataclass(frozen=True, slots=True)
class StoredMask:
    """A stored mask and the classes it was drawn for; None: nobody wrote down which, so today's."""

    location: str
    sha256: str
    label_set: LabelSet | None


@dataclass(frozen=True, slots=True)
class StoredPrediction:
    """What a machine drew of an image. model_version: None where no checkpoint did, but a pre-annotator.

    confidences: mean probability of each class over the pixels predicted as it, by class index, as the checkpoint scored it.
    """

    source: str
    model_version: str | None
    of_champion: bool
    created_at: datetime
    mask: StoredMask
    entropy_location: str | None
    confidences: dict[int, float]


@dataclass(frozen=True, slots=True)
class Answered:
    """An image that was asked about and has an annotation that counts. changed_share: of the prediction, 0..1."""

    image_id: int
    uri: str
    received_at: datetime
    changed_share: float | None


def prediction_of(session: Session, image_id: int) -> StoredPrediction | None:
    """The champion's stored prediction of an image, else the youngest there is; None where there is none."""
    champion = checkpoints.champion(session)
    statement = sa.select(Prediction).where(Prediction.image_id == image_id)
    if champion is not None:
        statement = statement.order_by(sa.case((Prediction.checkpoint_id == champion.id, 0), else_=1))
    row = session.scalar(statement.order_by(Prediction.id.desc()).limit(1))
    if row is None:
        return None
    checkpoint = session.get(Checkpoint, row.checkpoint_id) if row.checkpoint_id is not None else None
    return StoredPrediction(
        source=row.source,
        model_version=checkpoint.model_version if checkpoint else None,
        of_champion=checkpoint is not None and checkpoint is champion,
        created_at=row.created_at,
        mask=StoredMask(
            row.mask_location, row.mask_sha256, _label_set(session, checkpoint.label_set_id) if checkpoint else None
        ),
        entropy_location=row.entropy_location,
        confidences=_confidences(session, checkpoint, image_id) if checkpoint else {},
    )


def annotation_of(session: Session, image_id: int) -> StoredMask | None:
    """The annotated mask of an image that counts today; None where there is none."""
    statement = sa.select(CURRENT.c.mask_location, CURRENT.c.mask_sha256, CURRENT.c.label_set_id)
    row = session.execute(statement.where(CURRENT.c.image_id == image_id)).first()
    return None if row is None else StoredMask(row.mask_location, row.mask_sha256, _label_set(session, row.label_set_id))


def with_entropy_map(session: Session, checkpoint: Checkpoint, image_ids: Sequence[int]) -> set[int]:
    """Those of these images (a page of them) of which the checkpoint's entropy map is stored."""
    here = sa.and_(Prediction.checkpoint_id == checkpoint.id, Prediction.image_id.in_(image_ids))
    statement = sa.select(Prediction.image_id).where(here, Prediction.entropy_location.is_not(None))
    return set(session.scalars(statement))


def mean_confidences(session: Session, checkpoint: Checkpoint, image_ids: Sequence[int]) -> dict[int, float]:
    """image id -> mean probability of what the checkpoint predicts, where it predicts a class: of a page of images."""
    pixels = sa.func.sum(ClassScoreRow.region_pixels)
    confidence = sa.func.sum(ClassScoreRow.mean_confidence * ClassScoreRow.region_pixels) / sa.func.nullif(pixels, 0)
    statement = (
        sa.select(ClassScoreRow.image_id, confidence)
        .where(ClassScoreRow.scoring_config_id == latest_scoring_config(session, checkpoint.id))
        .where(ClassScoreRow.image_id.in_(image_ids), ClassScoreRow.mean_confidence.is_not(None))
        .group_by(ClassScoreRow.image_id)
    )
    return {image_id: float(value) for image_id, value in session.execute(statement) if value is not None}


def last_answered(session: Session, *, limit: int) -> list[Answered]:
    """Images whose annotation came back last, in answer to a query; youngest first."""
    statement = (
        sa.select(Image.id, Image.uri, Annotation.received_at, Annotation.changed_share)
        .join(CURRENT, CURRENT.c.image_id == Image.id)
        .join(Annotation, Annotation.id == CURRENT.c.annotation_id)
        .where(Annotation.query_id.is_not(None), Image.status == ImageStatus.ACTIVE)
        .order_by(Annotation.id.desc())
        .limit(limit)
    )
    return [Answered(*row) for row in session.execute(statement)]


def _label_set(session: Session, label_set_id: int) -> LabelSet:
    return LabelSet.from_dict(session.get_one(LabelSetRow, label_set_id).definition)


def _confidences(session: Session, checkpoint: Checkpoint, image_id: int) -> dict[int, float]:
    config = latest_scoring_config(session, checkpoint.id)
    rows = class_scores(session, config, image_id) if config is not None else []
    return {row.class_index: row.mean_confidence for row in rows if row.mean_confidence is not None}
