"""checkpoints, scoring configurations, runs and scores; embeddings."""

from __future__ import annotations

from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.orm import Mapped, mapped_column

from activeseg.db.models.columns import Json, Model, PackedFloats, UtcDateTime, created, now

# NaN passes `score = score` on PostgreSQL, and sorts first under DESC there; it does not pass `< 1e300`.
FINITE = "{0} >= 0 AND {0} < 1e300"
SCORES = ("entropy_sum", "entropy_mean", "entropy_share", "margin_mean", "least_confidence_mean", "bald", "tta_jsd")


class Checkpoint(Model):
    """Trained weights; `model_version` is the string Label Studio sees."""

    __tablename__ = "checkpoints"

    id: Mapped[int] = mapped_column(primary_key=True)
    model_version: Mapped[str] = mapped_column(sa.String(100), unique=True)
    location: Mapped[str] = mapped_column(sa.String(500))
    sha256: Mapped[str] = mapped_column(sa.String(64))
    architecture: Mapped[str] = mapped_column(sa.String(100))
    spec: Mapped[Json] = mapped_column(sa.JSON)
    label_set_id: Mapped[int] = mapped_column(sa.ForeignKey("label_sets.id"))
    parent_id: Mapped[int | None] = mapped_column(sa.ForeignKey("checkpoints.id"))
    created_at: Mapped[datetime] = created()
    temperature: Mapped[float | None] = mapped_column(sa.Double)
    """what logits are divided by before they are scored; set once, None: never fitted"""


class ScoringConfig(Model):
    """Everything that decides a score besides the image: checkpoint, resize, precision. One change is a new row."""

    __tablename__ = "scoring_configs"
    __table_args__ = (sa.UniqueConstraint("checkpoint_id", "fingerprint"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    checkpoint_id: Mapped[int] = mapped_column(sa.ForeignKey("checkpoints.id"))
    fingerprint: Mapped[str] = mapped_column(sa.String(64))
    definition: Mapped[Json] = mapped_column(sa.JSON)
    created_at: Mapped[datetime] = created()


class ScoringRun(Model):
    """One pass, or what was left of one."""

    __tablename__ = "scoring_runs"

    id: Mapped[int] = mapped_column(primary_key=True)
    scoring_config_id: Mapped[int] = mapped_column(sa.ForeignKey("scoring_configs.id"), index=True)
    device: Mapped[str] = mapped_column(sa.String(100))
    images_planned: Mapped[int]
    images_done: Mapped[int] = mapped_column(default=0)
    images_failed: Mapped[int] = mapped_column(default=0)
    images_per_second: Mapped[float | None]
    coverage: Mapped[float | None]
    """share of the active pool that has a score under this configuration after the run"""
    started_at: Mapped[datetime] = created()
    ended_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    compile_seconds: Mapped[float | None]
    """what compiling the network took; None where nothing was compiled"""
    compiled_images: Mapped[int] = mapped_column(default=0)
    waiting_decode: Mapped[float | None]
    """share of the run's wall seconds, 0..1, as are the two below"""
    waiting_device: Mapped[float | None]
    waiting_database: Mapped[float | None]
    batch_size: Mapped[int | None]
    work_order: Mapped[str | None] = mapped_column(sa.String(50))
    """'id' or 'previous ranking'"""
    budget: Mapped[str | None] = mapped_column(sa.String(100))
    """what the run was allowed, as it was asked for"""
    shift: Mapped[float | None] = mapped_column(sa.Double)
    """population stability index of the run's scores against those before it; None where there were too few"""
    drift: Mapped[str | None] = mapped_column(sa.String(500))
    """which limit of [drift] was passed, in a sentence; None: none"""


class Score(Model):
    """An image's statistics under one configuration. Append-only: a new champion makes old scores history."""

    __tablename__ = "scores"
    __table_args__ = (
        *(sa.CheckConstraint(FINITE.format(name), name=f"{name}_finite") for name in SCORES),
        # Created with DESC so that the first page and every keyset page are index range scans.
        sa.Index("ix_scores_ranking", "scoring_config_id", sa.text("entropy_sum DESC"), "image_id"),
        sa.Index("ix_scores_image_id", "image_id"),
    )

    scoring_config_id: Mapped[int] = mapped_column(sa.ForeignKey("scoring_configs.id"), primary_key=True)
    image_id: Mapped[int] = mapped_column(sa.ForeignKey("images.id"), primary_key=True)
    scoring_run_id: Mapped[int] = mapped_column(sa.ForeignKey("scoring_runs.id"))
    entropy_sum: Mapped[float] = mapped_column(sa.Double)
    entropy_mean: Mapped[float] = mapped_column(sa.Double)
    valid_pixels: Mapped[int]
    entropy_share: Mapped[float] = mapped_column(sa.Double)
    margin_mean: Mapped[float] = mapped_column(sa.Double)
    least_confidence_mean: Mapped[float] = mapped_column(sa.Double)
    grid: Mapped[list[float]] = mapped_column(PackedFloats)
    scored_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now)
    bald: Mapped[float | None] = mapped_column(sa.Double)
    tta_jsd: Mapped[float | None] = mapped_column(sa.Double)
    """nats, mean over pixels; None where the configuration does not ask for it, as in the column above"""


class ClassScoreRow(Model):
    """One class's part of a score; see records.ClassScore."""

    __tablename__ = "class_scores"
    __table_args__ = tuple(
        sa.CheckConstraint(FINITE.format(name), name=f"{name}_finite") for name in ("channel_entropy_sum", "region_entropy_sum")
    )

    scoring_config_id: Mapped[int] = mapped_column(sa.ForeignKey("scoring_configs.id"), primary_key=True)
    image_id: Mapped[int] = mapped_column(sa.ForeignKey("images.id"), primary_key=True)
    class_index: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    channel_entropy_sum: Mapped[float] = mapped_column(sa.Double)
    region_pixels: Mapped[int]
    region_entropy_sum: Mapped[float] = mapped_column(sa.Double)
    mean_confidence: Mapped[float | None] = mapped_column(sa.Double)


class Embedder(Model):
    """What made embeddings: the features or the gradients of a scoring configuration, or a network's start weights."""

    __tablename__ = "embedders"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(sa.String(200), unique=True)
    scoring_config_id: Mapped[int | None] = mapped_column(sa.ForeignKey("scoring_configs.id"))
    created_at: Mapped[datetime] = created()


class Embedding(Model):
    """Where an image lies for an embedder; packed by `core.embedding.pack`. Only those of one embedder can be compared."""

    __tablename__ = "embeddings"

    embedder_id: Mapped[int] = mapped_column(sa.ForeignKey("embedders.id"), primary_key=True)
    image_id: Mapped[int] = mapped_column(sa.ForeignKey("images.id"), primary_key=True)
    vector: Mapped[bytes] = mapped_column(sa.LargeBinary)
