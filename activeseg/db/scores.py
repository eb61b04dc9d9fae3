"""Scoring configurations, runs and scores: written in chunks, resumed by what is missing."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from activeseg.db.images import blocks
from activeseg.db.models import (
    ClassScoreRow,
    Image,
    ImageStatus,
    Query,
    QueryStatus,
    Score,
    ScoringConfig,
    ScoringRun,
    Split,
)
from activeseg.db.models.columns import now
from activeseg.records import ImageRef, ImageScore, RankedImage


def find_config(session: Session, checkpoint_id: int, definition: Mapping[str, Any]) -> int | None:
    """The configuration of this checkpoint with this definition (resize, precision, ...), if it exists."""
    statement = sa.select(ScoringConfig.id).where(
        ScoringConfig.checkpoint_id == checkpoint_id, ScoringConfig.fingerprint == _fingerprint(definition)
    )
    return session.scalar(statement)


def ensure_config(session: Session, checkpoint_id: int, definition: Mapping[str, Any]) -> int:
    """The same, inserted at first sight."""
    found = find_config(session, checkpoint_id, definition)
    if found is not None:
        return found
    row = ScoringConfig(checkpoint_id=checkpoint_id, fingerprint=_fingerprint(definition), definition=dict(definition))
    session.add(row)
    session.flush()
    return row.id


def _fingerprint(definition: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(definition, sort_keys=True).encode()).hexdigest()


def unscored(session: Session, scoring_config_id: int) -> list[ImageRef]:
    """Active pool images without a score under this configuration, by id: the work list, also after a kill."""
    scored = sa.exists().where(Score.scoring_config_id == scoring_config_id, Score.image_id == Image.id)
    statement = (
        sa.select(Image.id, Image.uri, Image.sha256)
        .where(Image.split == Split.POOL, Image.status == ImageStatus.ACTIVE, ~scored)
        .order_by(Image.id)
    )
    return [ImageRef(*row) for row in session.execute(statement)]


def insert_scores(session: Session, run: ScoringRun, scores: Sequence[ImageScore]) -> None:
    """Append a chunk of scores and their class scores."""
    if not scores:
        return
    config, when = run.scoring_config_id, now()
    session.execute(sa.insert(Score), [_score_row(score, config, run.id, when) for score in scores])
    rows = [_class_row(score.image_id, config, part) for score in scores for part in score.classes]
    session.execute(sa.insert(ClassScoreRow), rows)


def _score_row(score: ImageScore, config: int, run_id: int, when: Any) -> dict[str, Any]:
    return {
        "scoring_config_id": config,
        "image_id": score.image_id,
        "scoring_run_id": run_id,
        "entropy_sum": score.entropy_sum,
        "entropy_mean": score.entropy_mean,
        "valid_pixels": score.valid_pixels,
        "entropy_share": score.entropy_share,
        "margin_mean": score.margin_mean,
        "least_confidence_mean": score.least_confidence_mean,
        "grid": list(score.grid),
        "scored_at": when,
    }


def _class_row(image_id: int, config: int, part: Any) -> dict[str, Any]:
    return {
        "scoring_config_id": config,
        "image_id": image_id,
        "class_index": part.class_index,
        "channel_entropy_sum": part.channel_entropy_sum,
        "region_pixels": part.region_pixels,
        "region_entropy_sum": part.region_entropy_sum,
        "mean_confidence": part.mean_confidence,
    }


def coverage(session: Session, scoring_config_id: int) -> float:
    """Share of the active pool that has a score under this configuration; 1.0 for an empty pool."""
    pool = sa.and_(Image.split == Split.POOL, Image.status == ImageStatus.ACTIVE)
    total = session.scalar(sa.select(sa.func.count()).select_from(Image).where(pool)) or 0
    done = session.scalar(
        sa.select(sa.func.count())
        .select_from(Score)
        .join(Image, Image.id == Score.image_id)
        .where(Score.scoring_config_id == scoring_config_id, pool)
    )
    return (done or 0) / total if total else 1.0


def _free_pool() -> sa.ColumnElement[bool]:
    """Pool images that may be asked about: not in a query that is open, answered or skipped."""
    taken = sa.exists().where(Query.image_id == Image.id, Query.status != QueryStatus.WITHDRAWN)
    # A clip or site with validation images stays out altogether, and so does a copy of one: they would leak.
    validation = sa.select(Image).where(Image.split == Split.VAL)
    groups = validation.with_only_columns(Image.group_name).where(Image.group_name.is_not(None)).distinct()
    copies = validation.with_only_columns(Image.sha256)
    return sa.and_(
        Image.split == Split.POOL,
        Image.status == ImageStatus.ACTIVE,
        ~taken,
        sa.or_(Image.group_name.is_(None), Image.group_name.not_in(groups)),
        Image.sha256.not_in(copies),
    )


def candidates(session: Session, scoring_config_id: int) -> list[RankedImage]:
    """(image, summed entropy) of every image that may be queried, in no particular order."""
    statement = (
        sa.select(Score.image_id, Score.entropy_sum)
        .join(Image, Image.id == Score.image_id)
        .where(Score.scoring_config_id == scoring_config_id, _free_pool())
    )
    return [RankedImage(image_id, score) for image_id, score in session.execute(statement)]


def has_candidates(session: Session, scoring_config_id: int | None) -> bool:
    """Whether any image may be queried: scored under this configuration, or (None) at all."""
    statement = sa.select(Image.id).where(_free_pool())
    if scoring_config_id is not None:
        statement = statement.join(Score, Score.image_id == Image.id).where(Score.scoring_config_id == scoring_config_id)
    return session.scalar(statement.limit(1)) is not None


def unscored_candidates(session: Session) -> dict[int, str | None]:
    """image id -> group of every image that may be queried, for a first query without a model."""
    statement = sa.select(Image.id, Image.group_name).where(_free_pool()).order_by(Image.id)
    return {row.id: row.group_name for row in session.execute(statement)}


def doubtful_classes(
    session: Session, scoring_config_id: int, image_ids: Sequence[int], limit: int = 3
) -> dict[int, list[int]]:
    """image id -> the class indices that carry most of its entropy, most first; images without a score are absent."""
    found: dict[int, list[int]] = {}
    for block in blocks(image_ids):
        statement = (
            sa.select(ClassScoreRow.image_id, ClassScoreRow.class_index)
            .where(ClassScoreRow.scoring_config_id == scoring_config_id, ClassScoreRow.image_id.in_(block))
            .order_by(ClassScoreRow.image_id, ClassScoreRow.channel_entropy_sum.desc(), ClassScoreRow.class_index)
        )
        for image_id, class_index in session.execute(statement):
            found.setdefault(image_id, []).append(class_index)
    return {image_id: indices[:limit] for image_id, indices in found.items()}
