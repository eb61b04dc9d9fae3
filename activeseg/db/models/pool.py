"""label_sets and images: what there is to look at and what can be seen in it."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum

import sqlalchemy as sa
from sqlalchemy.orm import Mapped, mapped_column

from activeseg.db.models.columns import Json, Model, created, text_enum


class Split(StrEnum):
    """What an image may be used for."""

    POOL = "pool"
    """unlabelled: scored and queried"""
    TRAIN = "train"
    VAL = "val"
    """frozen at first use; decides promotions; never trained on"""
    TEST = "test"


class ImageStatus(StrEnum):
    """Whether an image can be used at all."""

    ACTIVE = "active"
    QUARANTINED = "quarantined"
    """unreadable or over a limit; `reason` says why"""
    SUPERSEDED = "superseded"
    """the file's bytes changed: a newer row has the same uri"""
    MISSING = "missing"
    """the file is gone; comes back to active when it returns with the same bytes"""


class LabelSetRow(Model):
    """An immutable version of the classes."""

    __tablename__ = "label_sets"

    id: Mapped[int] = mapped_column(primary_key=True)
    fingerprint: Mapped[str] = mapped_column(sa.String(64), unique=True)
    definition: Mapped[Json] = mapped_column(sa.JSON)
    created_at: Mapped[datetime] = created()


class Image(Model):
    """One image with one content; a file whose bytes change becomes a new row."""

    __tablename__ = "images"
    __table_args__ = (
        sa.UniqueConstraint("uri", "sha256"),
        sa.Index("ix_images_split_status", "split", "status", "id"),
        sa.Index("ix_images_group_name", "group_name"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    uri: Mapped[str] = mapped_column(sa.String(2048))
    sha256: Mapped[str] = mapped_column(sa.String(64))
    size_bytes: Mapped[int] = mapped_column(sa.BigInteger)
    width: Mapped[int | None]
    height: Mapped[int | None]
    group_name: Mapped[str | None] = mapped_column(sa.String(255))
    split: Mapped[Split] = mapped_column(text_enum(Split))
    status: Mapped[ImageStatus] = mapped_column(text_enum(ImageStatus))
    reason: Mapped[str | None] = mapped_column(sa.String(500))
    created_at: Mapped[datetime] = created()
    stamp: Mapped[str | None] = mapped_column(sa.String(100))
    """what the storage says of the file's version (time of change in ns, or etag); None where nobody asked yet"""
