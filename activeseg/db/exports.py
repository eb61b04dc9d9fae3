"""Which masks are exported: those that count today, those that counted at a time, those a training saw.

Functions take a Session and never commit it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from activeseg.db import checkpoints, images
from activeseg.db.models import Annotation, AnnotationStatus, Image, ImageStatus, Split, TrainingRun
from activeseg.db.truth import CURRENT
from activeseg.errors import DataError, NotReadyError
from activeseg.records import ImageRef


@dataclass(frozen=True, slots=True)
class LabelledImage:
    """An image with one mask of it. split: where the mask was or is used; updated_at: of the annotation, aware UTC."""

    image: ImageRef
    size_bytes: int
    width: int | None
    height: int | None
    group: str | None
    split: Split
    status: ImageStatus
    reason: str | None
    label_set_id: int
    mask_location: str
    mask_sha256: str
    source: str
    annotator: str | None
    updated_at: datetime


_ALL = sa.select(Annotation, Image).join(Image, Image.id == Annotation.image_id).order_by(Image.id)


def counting(session: Session) -> list[LabelledImage]:
    """The masks that count today, by image id, also those of images that cannot be used now."""
    return _read(session, _ALL.join(CURRENT, CURRENT.c.annotation_id == Annotation.id))


def counted_at(session: Session, moment: datetime) -> list[LabelledImage]:
    """The masks that counted at an aware time, as far as was known then: the rule of the view current_annotations.

    Of each annotation the newest version received by then, if it was valid and not deleted; of these the newest of each
    image. Splits are those of today: when an image got its split is not recorded.
    """
    version = sa.func.row_number().over(
        partition_by=(
            Annotation.source,
            Annotation.labeling_project_id,
            sa.func.coalesce(Annotation.external_annotation_id, -Annotation.id),
        ),
        order_by=(Annotation.external_updated_at.desc(), Annotation.id.desc()),
    )
    known = (
        sa.select(
            Annotation.id,
            Annotation.image_id,
            _was_valid(moment).label("was_valid"),
            sa.func.coalesce(Annotation.external_updated_at, Annotation.received_at).label("moment"),
            version.label("version"),
        )
        .where(Annotation.received_at <= moment)
        .subquery()
    )
    recency = sa.func.row_number().over(partition_by=known.c.image_id, order_by=(known.c.moment.desc(), known.c.id.desc()))
    newest = sa.select(known.c.id, recency.label("recency")).where(known.c.version == 1, known.c.was_valid).subquery()
    return _read(session, _ALL.join(newest, newest.c.id == Annotation.id).where(newest.c.recency == 1))


def _was_valid(moment: datetime) -> sa.ColumnElement[bool]:
    """A row that is deleted now was valid before if it has a mask: skipped and quarantined ones never had one."""
    deleted_later = sa.and_(
        Annotation.status == AnnotationStatus.DELETED, Annotation.deleted_at > moment, Annotation.mask_location.is_not(None)
    )
    return sa.or_(Annotation.status == AnnotationStatus.VALID, deleted_later)


def require_training(session: Session, run_id: int) -> TrainingRun:
    """A training run by its number. Raises NotReadyError, naming the latest."""
    run = session.get(TrainingRun, run_id)
    if run is None:
        latest = session.scalar(sa.select(sa.func.max(TrainingRun.id)))
        known = f"the latest is {latest}" if latest else "there is none yet"
        raise NotReadyError(f"training run {run_id} does not exist; {known}: `activeseg checkpoints` lists what they made")
    return run


def seen_by(session: Session, run: TrainingRun) -> list[LabelledImage]:
    """Exactly the masks a training was given, whatever became of them since, in its splits: train, and val for those its
    looks at the validation split were measured with."""
    trained = _exactly(session, checkpoints.annotations_of(session, run.id), Split.TRAIN)
    return trained + _exactly(session, run.configuration.get("validation", []), Split.VAL)


def _exactly(session: Session, annotation_ids: Sequence[int], split: Split) -> list[LabelledImage]:
    found: list[LabelledImage] = []
    for block in images.blocks(annotation_ids):
        found += _read(session, _ALL.where(Annotation.id.in_(block)), split)
    if len(found) != len(set(annotation_ids)):
        raise DataError(f"{len(set(annotation_ids)) - len(found)} annotations of this training are gone from the database")
    return sorted(found, key=lambda item: item.image.image_id)


def _read(session: Session, statement: sa.Select[Any, Any], split: Split | None = None) -> list[LabelledImage]:
    return [_labelled(annotation, image, split or image.split) for annotation, image in session.execute(statement)]


def _labelled(annotation: Annotation, image: Image, split: Split) -> LabelledImage:
    if annotation.mask_location is None or annotation.mask_sha256 is None:
        raise DataError(f"annotation {annotation.id} counts but has no mask: the database was changed by hand")
    return LabelledImage(
        image=ImageRef(image.id, image.uri, image.sha256),
        size_bytes=image.size_bytes,
        width=image.width,
        height=image.height,
        group=image.group_name,
        split=split,
        status=image.status,
        reason=image.reason,
        label_set_id=annotation.label_set_id,
        mask_location=annotation.mask_location,
        mask_sha256=annotation.mask_sha256,
        source=annotation.source.value,
        annotator=annotation.annotator,
        updated_at=annotation.external_updated_at or annotation.received_at,
    )
