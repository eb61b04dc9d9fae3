"""training runs, evaluations and promotions: how a model came to be and why it serves."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Mapped, mapped_column

from activeseg.db.models.columns import ErrorText, Json, Model, UtcDateTime, created, now, text_enum
from activeseg.db.models.pool import Split


class TrainingStatus(StrEnum):
    """How far a training got."""

    RUNNING = "running"
    """found at start-up it means: killed; it is trained again on the very same annotations"""
    DONE = "done"
    FAILED = "failed"


class Decision(StrEnum):
    """What happened to a challenger."""

    PROMOTED = "promoted"
    REFUSED = "refused"
    ROLLED_BACK = "rolled_back"
    """a person moved the pointer back to this checkpoint"""


class TrainingRun(Model):
    """One training: its configuration, its annotations (training_run_annotations) and its result."""

    __tablename__ = "training_runs"

    id: Mapped[int] = mapped_column(primary_key=True)
    status: Mapped[TrainingStatus] = mapped_column(text_enum(TrainingStatus))
    reason: Mapped[str] = mapped_column(sa.String(200))
    configuration: Mapped[Json] = mapped_column(sa.JSON)
    code_version: Mapped[str] = mapped_column(sa.String(50))
    label_set_id: Mapped[int] = mapped_column(sa.ForeignKey("label_sets.id"))
    parent_id: Mapped[int | None] = mapped_column(sa.ForeignKey("checkpoints.id"))
    checkpoint_id: Mapped[int | None] = mapped_column(sa.ForeignKey("checkpoints.id"))
    num_images: Mapped[int]
    history: Mapped[list[Any]] = mapped_column(sa.JSON, default=list)
    error: Mapped[str | None] = mapped_column(ErrorText(1000))
    started_at: Mapped[datetime] = created()
    ended_at: Mapped[datetime | None] = mapped_column(UtcDateTime)


class TrainingRunAnnotation(Model):
    """Exactly which annotations a training saw."""

    __tablename__ = "training_run_annotations"

    training_run_id: Mapped[int] = mapped_column(sa.ForeignKey("training_runs.id"), primary_key=True)
    # Looked up for each annotation, with every pull: has a training seen it?
    annotation_id: Mapped[int] = mapped_column(sa.ForeignKey("annotations.id"), primary_key=True, index=True)


ALL_CLASSES = "*"
"""evaluations.class_name of a figure over all classes."""


class Evaluation(Model):
    """One figure of one checkpoint on one split; class_name is '*' for figures over all classes."""

    __tablename__ = "evaluations"

    checkpoint_id: Mapped[int] = mapped_column(sa.ForeignKey("checkpoints.id"), primary_key=True)
    split: Mapped[Split] = mapped_column(text_enum(Split), primary_key=True)
    metric: Mapped[str] = mapped_column(sa.String(50), primary_key=True)
    class_name: Mapped[str] = mapped_column(sa.String(255), primary_key=True)
    value: Mapped[float] = mapped_column(sa.Double)
    num_images: Mapped[int]
    evaluated_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now)


class Promotion(Model):
    """A decision about a checkpoint. The champion is the checkpoint of the last row that was not a refusal."""

    __tablename__ = "promotions"

    id: Mapped[int] = mapped_column(primary_key=True)
    checkpoint_id: Mapped[int] = mapped_column(sa.ForeignKey("checkpoints.id"))
    previous_id: Mapped[int | None] = mapped_column(sa.ForeignKey("checkpoints.id"))
    decision: Mapped[Decision] = mapped_column(text_enum(Decision))
    reason: Mapped[str] = mapped_column(sa.String(500))
    statistics: Mapped[Json] = mapped_column(sa.JSON, default=dict)
    decided_by: Mapped[str] = mapped_column(sa.String(100))
    created_at: Mapped[datetime] = created()
