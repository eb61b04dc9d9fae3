"""Labelled images from outside become rows: an image in its split, and an annotation that counts from then on."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.orm import Session

from activeseg.core.labels import LabelSet
from activeseg.db import images, truth
from activeseg.db.models import Annotation, Image, ImageStatus, Query, QueryStatus, Split
from activeseg.db.models.columns import now
from activeseg.errors import DataError


@dataclass(frozen=True, slots=True)
class ImportedFile:
    """An image file that was read and decodes. width, height: upright, in pixels."""

    uri: str
    sha256: str
    size_bytes: int
    width: int
    height: int
    group: str | None = None


@dataclass(frozen=True, slots=True)
class ImportedMask:
    """A mask as it was stored.

    import_sha256: of its file or files as they came, so that the same ones write nothing. updated_at: when it was drawn, aware,
    where the import says so: then it does not count before newer ones. None: now.
    """

    location: str
    sha256: str
    import_sha256: str
    annotator: str | None = None
    updated_at: datetime | None = None


def take(
    session: Session,
    file: ImportedFile,
    mask: ImportedMask,
    label_set: LabelSet,
    *,
    split: Split | None,
    known: Image | None = None,
) -> str:
    """Register an image where it is not known, put it into its split, and record its mask.

    split: None: only an image that is known already; POOL: a known image stays in its split. known: its row, if it was found
    otherwise than by its place. Returns 'written', 'unchanged' where this mask was imported or counts already, 'older' where
    a newer one counts. Raises DataError.
    """
    image = known or find_image(session, file.uri, file.sha256)
    reason = None if image is None else _needless(session, image, mask)
    if reason == "older":
        return reason
    if image is None:
        if split is None:
            raise DataError("not in the pool: run `activeseg pool sync` first, or name a split")
        image = add_image(session, _row(file, split))
    elif split is not None and split != Split.POOL:
        move(session, image, split)
    if image.status != ImageStatus.ACTIVE:
        _revive(session, image)
    if file.group is not None and image.group_name is None:
        image.group_name = file.group
    if reason is None:
        record_mask(session, image, mask, label_set)
    return reason or "written"


def _row(file: ImportedFile, split: Split) -> Image:
    return Image(
        uri=file.uri, sha256=file.sha256, size_bytes=file.size_bytes, width=file.width, height=file.height,
        group_name=file.group, split=split, status=ImageStatus.ACTIVE,
    )  # fmt: skip


def _needless(session: Session, image: Image, mask: ImportedMask) -> str | None:
    if mask.updated_at is None:
        return "unchanged" if truth.known_import(session, image.id, mask.import_sha256) else None
    statement = sa.select(Annotation).join(truth.CURRENT, truth.CURRENT.c.annotation_id == Annotation.id)
    current = session.scalar(statement.where(truth.CURRENT.c.image_id == image.id))
    if current is None:
        return None
    if current.mask_sha256 == mask.sha256:
        return "unchanged"
    return "older" if truth.moment_of(current) > mask.updated_at else None


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
    _supersede_others(session, image)
    session.add(image)
    session.flush()
    return image


def _revive(session: Session, image: Image) -> None:
    """Its bytes were just read: it is there, and what else the same file held is not."""
    _supersede_others(session, image)
    image.status, image.reason = ImageStatus.ACTIVE, None


def _supersede_others(session: Session, image: Image) -> None:
    """Retire what the same file held otherwise. Raises DataError where that would carry an image into another split."""
    others = [row for row in images.by_uri(session, [image.uri]).get(image.uri, []) if row.status == ImageStatus.ACTIVE]
    for row in others:
        if row.split != image.split:
            _check_move(row, image.split)
    images.retire(session, [row.id for row in others], ImageStatus.SUPERSEDED)


def move(session: Session, image: Image, split: Split) -> None:
    """Put an image into a split. Raises DataError where it is in another than the pool already."""
    if image.split != split:
        _check_move(image, split)
        images.set_split(session, [image.id], split)


def _check_move(image: Image, split: Split) -> None:
    """A validation image may never become a training image, nor the other way round: figures would lie from then on."""
    if image.split != Split.POOL:
        raise DataError(f"already in the split {image.split.value!r}; it cannot move to {split.value!r}")


def record_mask(session: Session, image: Image, mask: ImportedMask, label_set: LabelSet) -> None:
    """A new annotation of an image; it answers the image's latest query, if there is one."""
    query = sa.select(Query.id).where(Query.image_id == image.id, Query.status != QueryStatus.WITHDRAWN)
    annotation = truth.from_import(
        image_id=image.id,
        label_set_id=images.label_set_row(session, label_set).id,
        location=mask.location,
        sha256=mask.sha256,
        import_sha256=mask.import_sha256,
        query_id=session.scalar(query.order_by(Query.id.desc()).limit(1)),
        annotator=mask.annotator,
    )
    if mask.updated_at is not None:
        # Of several masks the one drawn last counts. A time to come would hide every correction until then.
        annotation.external_updated_at = min(mask.updated_at, now())
    truth.record(session, annotation)
