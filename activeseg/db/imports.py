"""Labelled images from outside become rows: an image in its split, and an annotation that counts from then on."""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.orm import Session

from activeseg.core.labels import LabelSet
from activeseg.db import images, truth
from activeseg.db.models import Image, ImageStatus, Query, QueryStatus, Split
from activeseg.errors import DataError


@dataclass(frozen=True, slots=True)
class ImportedMask:
    """A mask as it was stored. import_sha256: of its file or files as they came, so that the same ones write nothing."""

    location: str
    sha256: str
    import_sha256: str
    annotator: str | None = None


def find_image(session: Session, uri: str, sha256: str) -> Image | None:
    """The row of a file with this very content."""
    return session.scalar(sa.select(Image).where(Image.uri == uri, Image.sha256 == sha256))


def contents(session: Session) -> dict[str, int]:
    """sha256 -> id of the usable images that nothing else has the content of, wherever they lie."""
    statement = sa.select(Image.sha256, sa.func.min(Image.id)).where(Image.status == ImageStatus.ACTIVE)
    rows = session.execute(statement.group_by(Image.sha256).having(sa.func.count() == 1))
    return {row[0]: row[1] for row in rows}


def add_image(session: Session, image: Image) -> Image:
    """Register an image. What the same file held before can be read no more, and must not be asked for."""
    former = [row for row in images.by_uri(session, [image.uri]).get(image.uri, []) if row.status == ImageStatus.ACTIVE]
    for row in former:
        if row.split != image.split:
            _check_move(row, image.split)
    images.retire(session, [row.id for row in former], ImageStatus.SUPERSEDED)
    session.add(image)
    session.flush()
    return image


def move(session: Session, image: Image, split: Split) -> None:
    """Put an image into a split. Raises DataError where it is in another than the pool already."""
    if image.split != split:
        _check_move(image, split)
        images.set_split(session, [image.id], split)


def _check_move(image: Image, split: Split) -> None:
    """A validation image may never become a training image, nor the other way round: figures would lie from then on."""
    if image.split != Split.POOL:
        raise DataError(f"already in the split {image.split.value!r}; it cannot move to {split.value!r}")


def counts_already(session: Session, image: Image, mask_sha256: str) -> bool:
    """Whether the mask that counts for this image is this very one."""
    return session.scalar(sa.select(truth.CURRENT.c.mask_sha256).where(truth.CURRENT.c.image_id == image.id)) == mask_sha256


def record_mask(session: Session, image: Image, mask: ImportedMask, label_set: LabelSet) -> None:
    """A new annotation of an image; it answers the image's latest query, if there is one."""
    query = sa.select(Query.id).where(Query.image_id == image.id, Query.status != QueryStatus.WITHDRAWN)
    truth.record(
        session,
        truth.from_import(
            image_id=image.id,
            label_set_id=images.label_set_row(session, label_set).id,
            location=mask.location,
            sha256=mask.sha256,
            import_sha256=mask.import_sha256,
            query_id=session.scalar(query.order_by(Query.id.desc()).limit(1)),
            annotator=mask.annotator,
        ),
    )
