"""rounds, queries, predictions and annotations: what was asked, what was shown, what came back."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum

import sqlalchemy as sa
from sqlalchemy.orm import Mapped, mapped_column

from activeseg.db.models.columns import ErrorText, Json, Model, UtcDateTime, created, text_enum


class RoundStatus(StrEnum):
    """How far a round got; a killed process goes on from here."""

    OPEN = "open"
    """the row exists, its images are not chosen yet"""
    SELECTED = "selected"
    """queries are written, tasks not all pushed"""
    PUSHED = "pushed"
    """every query has a task (or stands offline for its annotator)"""
    CLOSED = "closed"
    """every query is annotated, skipped or withdrawn"""


class QueryStatus(StrEnum):
    """What became of one image of a query."""

    SELECTED = "selected"
    PUSHED = "pushed"
    ANNOTATED = "annotated"
    SKIPPED = "skipped"
    WITHDRAWN = "withdrawn"
    """the image vanished, changed or its task was deleted before anybody annotated it"""


class Arm(StrEnum):
    """Why an image is in a query."""

    CHOSEN = "chosen"
    CONTROL = "control"


class AnnotationSource(StrEnum):
    """Where a mask drawn by a person came in."""

    LABELSTUDIO = "labelstudio"
    IMPORT = "import"


class AnnotationStatus(StrEnum):
    """Whether an annotation may be used."""

    VALID = "valid"
    SKIPPED = "skipped"
    """the annotator cancelled the task; there is no mask"""
    QUARANTINED = "quarantined"
    """size, labels or content do not fit; `reason` says why"""
    DELETED = "deleted"
    """deleted in Label Studio after it was pulled"""


class Round(Model):
    """One query and what became of it."""

    __tablename__ = "rounds"

    id: Mapped[int] = mapped_column(primary_key=True)
    number: Mapped[int] = mapped_column(unique=True)
    status: Mapped[RoundStatus] = mapped_column(text_enum(RoundStatus))
    scoring_config_id: Mapped[int | None] = mapped_column(sa.ForeignKey("scoring_configs.id"))
    """None: a bootstrap round, chosen without a model"""
    acquisition: Mapped[str] = mapped_column(sa.String(50))
    query_size: Mapped[int]
    control_share: Mapped[float]
    seed: Mapped[int] = mapped_column(sa.BigInteger)
    error: Mapped[str | None] = mapped_column(ErrorText(1000))
    opened_at: Mapped[datetime] = created()
    pushed_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    closed_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    selection: Mapped[Json | None] = mapped_column(sa.JSON(none_as_null=True))
    """how images are chosen, as it was set when the round was opened; None: opened by a version that did not write it"""


OPEN_QUERY = sa.text("status IN ('selected', 'pushed')")


class Query(Model):
    """One image of a round."""

    __tablename__ = "queries"
    __table_args__ = (
        sa.UniqueConstraint("round_id", "image_id"),
        sa.Index("uq_queries_open_image", "image_id", unique=True, sqlite_where=OPEN_QUERY, postgresql_where=OPEN_QUERY),
        sa.Index("ix_queries_status", "status"),
        sa.Index("ix_queries_image_id", "image_id"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    round_id: Mapped[int] = mapped_column(sa.ForeignKey("rounds.id"))
    image_id: Mapped[int] = mapped_column(sa.ForeignKey("images.id"))
    rank: Mapped[int | None]
    score: Mapped[float | None] = mapped_column(sa.Double)
    arm: Mapped[Arm] = mapped_column(text_enum(Arm))
    shown_order: Mapped[int]
    reason: Mapped[str] = mapped_column(sa.String(200))
    status: Mapped[QueryStatus] = mapped_column(text_enum(QueryStatus))
    cells: Mapped[list[int] | None] = mapped_column(sa.JSON(none_as_null=True))
    """the cells of the score's grid that are to be labelled, row-major from 0; None: the whole image"""


class Prediction(Model):
    """A mask drawn by a machine, as it was shown to the annotator. Never training data."""

    __tablename__ = "predictions"
    __table_args__ = (sa.UniqueConstraint("image_id", "source"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    image_id: Mapped[int] = mapped_column(sa.ForeignKey("images.id"))
    source: Mapped[str] = mapped_column(sa.String(120))
    """'checkpoint:<model_version>' or 'graphcut:<classifier>@<digest>'"""
    checkpoint_id: Mapped[int | None] = mapped_column(sa.ForeignKey("checkpoints.id"))
    mask_location: Mapped[str] = mapped_column(sa.String(500))
    mask_sha256: Mapped[str] = mapped_column(sa.String(64))
    entropy_location: Mapped[str | None] = mapped_column(sa.String(500))
    """the entropy map shown beside the image, a PNG"""
    created_at: Mapped[datetime] = created()


class Annotation(Model):
    """A mask drawn by a person, one row per version of it, or what several persons' masks come to (`consensus_of`).

    Append-only but for the mark that it was deleted, the star (`ground_truth`) and the agreement with others.
    """

    __tablename__ = "annotations"
    __table_args__ = (
        # Named by hand: the convention's name would be longer than PostgreSQL's 63 bytes.
        sa.UniqueConstraint(
            "labeling_project_id", "external_annotation_id", "external_updated_at", name="uq_annotations_version"
        ),
        sa.Index("ix_annotations_image_id", "image_id"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    image_id: Mapped[int] = mapped_column(sa.ForeignKey("images.id"))
    query_id: Mapped[int | None] = mapped_column(sa.ForeignKey("queries.id"), index=True)
    source: Mapped[AnnotationSource] = mapped_column(text_enum(AnnotationSource))
    status: Mapped[AnnotationStatus] = mapped_column(text_enum(AnnotationStatus))
    reason: Mapped[str | None] = mapped_column(sa.String(500))
    label_set_id: Mapped[int] = mapped_column(sa.ForeignKey("label_sets.id"))
    mask_location: Mapped[str | None] = mapped_column(sa.String(500))
    mask_sha256: Mapped[str | None] = mapped_column(sa.String(64))
    labeling_project_id: Mapped[int | None] = mapped_column(sa.ForeignKey("labeling_projects.id"))
    external_task_id: Mapped[int | None] = mapped_column(sa.BigInteger)
    external_annotation_id: Mapped[int | None] = mapped_column(sa.BigInteger)
    external_updated_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    import_sha256: Mapped[str | None] = mapped_column(sa.String(64))
    """of the imported mask file: importing the same mask again writes nothing"""
    annotator: Mapped[str | None] = mapped_column(sa.String(255))
    lead_time: Mapped[float | None]
    """seconds the annotator took, as Label Studio measured them"""
    changed_share: Mapped[float | None]
    """share of pixels that differ from the prediction that was shown"""
    overlap_share: Mapped[float | None]
    """share of pixels under more than one region"""
    agreement: Mapped[float | None]
    """mean share of pixels on which this mask and each other annotator's agree; None: nobody else annotated the image"""
    ground_truth: Mapped[bool] = mapped_column(default=False, server_default=sa.false())
    """starred as ground truth in Label Studio"""
    rubber_stamp: Mapped[bool] = mapped_column(default=False, server_default=sa.false())
    """unchanged on an uncertain image, and submitted implausibly fast"""
    consensus_of: Mapped[list[int] | None] = mapped_column(sa.JSON(none_as_null=True))
    """ids of the annotations this row is the outcome of, by [labelstudio] consensus; None: drawn by one person"""
    received_at: Mapped[datetime] = created()
    deleted_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
