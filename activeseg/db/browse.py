"""What the API answers with, read from the database. Functions take a Session and know nothing of HTTP."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.orm import Session

from activeseg.core.labels import LabelSet
from activeseg.db import checkpoints
from activeseg.db.models import Annotation, Checkpoint, Image, LabelSetRow, Query, Round, Score
from activeseg.db.models.columns import UtcDateTime
from activeseg.db.rankings import class_scores, latest_scoring_config
from activeseg.db.shown import prediction_of
from activeseg.db.truth import CURRENT

PROGRESS = sa.table(
    "annotation_progress",
    *(sa.column(name, sa.Integer) for name in ("round", "images", "annotated", "skipped", "withdrawn", "open")),
    *(sa.column(name, sa.String) for name in ("status", "acquisition")),
    *(sa.column(name, UtcDateTime()) for name in ("opened_at", "pushed_at", "closed_at")),
)


@dataclass(frozen=True, slots=True)
class ClassFigures:
    """One class's part of a score, in nats; see records.ClassScore."""

    channel_entropy_sum: float
    region_pixels: int
    region_entropy_sum: float
    mean_confidence: float | None


@dataclass(frozen=True, slots=True)
class ScoreFigures:
    """An image's score under one checkpoint; see records.ImageScore. classes: by class name."""

    model_version: str
    scored_at: datetime
    entropy_sum: float
    entropy_mean: float
    valid_pixels: int
    entropy_share: float
    margin_mean: float
    least_confidence_mean: float
    grid: list[float]
    classes: dict[str, ClassFigures]


@dataclass(frozen=True, slots=True)
class ImageQuery:
    """One time the image was put to annotators."""

    round: int
    rank: int | None
    score: float | None
    arm: str
    shown_order: int
    reason: str
    status: str


@dataclass(frozen=True, slots=True)
class ImageAnnotation:
    """One version of an annotation. counts: it is the mask that training and evaluation use today."""

    id: int
    counts: bool
    source: str
    status: str
    reason: str | None
    annotator: str | None
    lead_time: float | None
    changed_share: float | None
    received_at: datetime
    deleted_at: datetime | None


@dataclass(frozen=True, slots=True)
class ImagePrediction:
    """The stored prediction that is shown: the champion's, else the youngest. model_version: null for a pre-annotator's.

    entropy_map: whether one is stored with it. confidences: mean probability of each class over the pixels predicted as it.
    """

    source: str
    model_version: str | None
    of_champion: bool
    entropy_map: bool
    confidences: dict[str, float]
    created_at: datetime


@dataclass(frozen=True, slots=True)
class ImageDetail:
    """All that is known of one image. reason: why it is quarantined. score: under the champion, where it has one.

    prediction: only images that were asked about have one.
    """

    id: int
    uri: str
    sha256: str
    size_bytes: int
    width: int | None
    height: int | None
    group: str | None
    split: str
    status: str
    reason: str | None
    created_at: datetime
    score: ScoreFigures | None
    prediction: ImagePrediction | None
    queries: list[ImageQuery]
    annotations: list[ImageAnnotation]


@dataclass(frozen=True, slots=True)
class RoundRow:
    """One round and how far its annotators are (the view `annotation_progress`)."""

    round: int
    status: str
    acquisition: str
    opened_at: datetime
    pushed_at: datetime | None
    closed_at: datetime | None
    images: int
    annotated: int
    skipped: int
    withdrawn: int
    open: int


def label_set_of(session: Session, checkpoint: Checkpoint) -> LabelSet:
    """The classes this checkpoint was trained on, whatever the configured ones are today."""
    return LabelSet.from_dict(session.get_one(LabelSetRow, checkpoint.label_set_id).definition)


def image_detail(session: Session, image_id: int) -> ImageDetail | None:
    """Everything about one image; None where there is no such image."""
    row = session.get(Image, image_id)
    if row is None:
        return None
    return ImageDetail(
        id=row.id,
        uri=row.uri,
        sha256=row.sha256,
        size_bytes=row.size_bytes,
        width=row.width,
        height=row.height,
        group=row.group_name,
        split=row.split,
        status=row.status,
        reason=row.reason,
        created_at=row.created_at,
        score=_score(session, image_id),
        prediction=_prediction(session, image_id),
        queries=_queries(session, image_id),
        annotations=_annotations(session, image_id),
    )


def _score(session: Session, image_id: int) -> ScoreFigures | None:
    champion = checkpoints.champion(session)
    config = latest_scoring_config(session, champion.id) if champion else None
    row = session.get(Score, (config, image_id)) if config is not None else None
    if champion is None or row is None:
        return None
    names = label_set_of(session, champion).names
    return ScoreFigures(
        model_version=champion.model_version,
        scored_at=row.scored_at,
        entropy_sum=row.entropy_sum,
        entropy_mean=row.entropy_mean,
        valid_pixels=row.valid_pixels,
        entropy_share=row.entropy_share,
        margin_mean=row.margin_mean,
        least_confidence_mean=row.least_confidence_mean,
        grid=row.grid,
        classes={
            names[part.class_index]: ClassFigures(
                part.channel_entropy_sum, part.region_pixels, part.region_entropy_sum, part.mean_confidence
            )
            for part in class_scores(session, row.scoring_config_id, image_id)
        },
    )


def _prediction(session: Session, image_id: int) -> ImagePrediction | None:
    stored = prediction_of(session, image_id)
    if stored is None:
        return None
    names = stored.mask.label_set.names if stored.mask.label_set else ()
    return ImagePrediction(
        source=stored.source,
        model_version=stored.model_version,
        of_champion=stored.of_champion,
        entropy_map=stored.entropy_location is not None,
        confidences={names[index]: value for index, value in stored.confidences.items()},
        created_at=stored.created_at,
    )


def _queries(session: Session, image_id: int) -> list[ImageQuery]:
    columns = (Query.rank, Query.score, Query.arm, Query.shown_order, Query.reason, Query.status)
    statement = sa.select(Round.number, *columns).join(Round, Round.id == Query.round_id)
    rows = session.execute(statement.where(Query.image_id == image_id).order_by(Round.number))
    return [ImageQuery(*row) for row in rows]


def _annotations(session: Session, image_id: int) -> list[ImageAnnotation]:
    counting = session.scalar(sa.select(CURRENT.c.annotation_id).where(CURRENT.c.image_id == image_id))
    statement = sa.select(Annotation).where(Annotation.image_id == image_id).order_by(Annotation.id)
    return [
        ImageAnnotation(
            id=row.id,
            counts=row.id == counting,
            source=row.source,
            status=row.status,
            reason=row.reason,
            annotator=row.annotator,
            lead_time=row.lead_time,
            changed_share=row.changed_share,
            received_at=row.received_at,
            deleted_at=row.deleted_at,
        )
        for row in session.scalars(statement)
    ]


def rounds_page(session: Session, *, limit: int, after: int | None = None) -> Sequence[RoundRow]:
    """At most `limit` rounds, youngest first, from below number `after` on."""
    statement = sa.select(PROGRESS).order_by(PROGRESS.c.round.desc()).limit(limit)
    if after is not None:
        statement = statement.where(PROGRESS.c.round < after)
    return [RoundRow(**row) for row in session.execute(statement).mappings()]
