"""Scoring configurations, runs and scores: written in chunks, resumed by what is missing."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from operator import attrgetter
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session, aliased

from activeseg.core.idset import IdSet
from activeseg.db.bulk import insert_rows
from activeseg.db.candidates import IN_POOL
from activeseg.db.database import Database
from activeseg.db.images import blocks
from activeseg.db.models import (
    ClassScoreRow,
    Image,
    ImageStatus,
    Score,
    ScoringConfig,
    ScoringRun,
    Split,
)
from activeseg.db.models.columns import now
from activeseg.db.rankings import after_row, in_ranking_order
from activeseg.errors import NonFiniteScoreError
from activeseg.records import ClassScore, ImageRef, ImageScore

_MOST = 0.5
"""Share of the pool from which on a configuration's scores are a ranking of it."""


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


def count_unscored(session: Session, scoring_config_id: int) -> int:
    """How many active pool images have no score under this configuration."""
    scored = sa.exists().where(Score.scoring_config_id == scoring_config_id, Score.image_id == Image.id)
    return session.scalar(sa.select(sa.func.count()).select_from(Image).where(IN_POOL, ~scored)) or 0


def previous_config(session: Session, scoring_config_id: int) -> int | None:
    """The other configuration, of any checkpoint, that last scored most of the pool; where none did, the one that scored
    the largest share of it. None where none ever wrote a score.

    One that a budget cut short knows little, and what it did not come to is not new.
    """
    wrote = sa.exists().where(Score.scoring_config_id == ScoringRun.scoring_config_id)
    statement = sa.select(ScoringRun.scoring_config_id).where(ScoringRun.scoring_config_id != scoring_config_id, wrote)
    share = sa.case((ScoringRun.coverage >= _MOST, 1.0), else_=sa.func.coalesce(ScoringRun.coverage, 0.0))
    return session.scalar(statement.order_by(share.desc(), ScoringRun.id.desc()).limit(1))


def work_pages(
    database: Database, scoring_config_id: int, *, previous: int | None = None, page: int = 1024
) -> Iterator[list[ImageRef]]:
    """Active pool images without a score under this configuration, at most `page` at a time.

    With `previous`, another configuration: images it never scored first, by id, then the others by its summed entropy,
    highest first, ties by id. Without: all by id. Every page is read when it is asked for, in a transaction of its own
    that begins where the one before ended: what was scored or set aside meanwhile is left out, nothing comes twice, and
    memory does not grow with the pool but by a bit an image.
    """
    handed_out = IdSet()
    after = 0
    while rows := _page(database, _by_id(scoring_config_id, previous, after).limit(page)):
        after = rows[-1].id
        handed_out.update(row.id for row in rows)
        yield [ImageRef(row.id, row.uri, row.sha256) for row in rows]
    last: tuple[float, int] | None = None
    while previous is not None and (rows := _page(database, _by_previous(scoring_config_id, previous, last).limit(page))):
        last = (rows[-1].entropy_sum, rows[-1].id)
        # The previous configuration may have gone on while new images were handed out.
        fresh = [ImageRef(row.id, row.uri, row.sha256) for row in rows if row.id not in handed_out]
        if fresh:
            yield fresh


def _page(database: Database, statement: Any) -> Sequence[Any]:
    with database.read() as session:
        return session.execute(statement).all()


def _by_id(config: int, previous: int | None, after: int) -> Any:
    statement = sa.select(Image.id, Image.uri, Image.sha256).where(IN_POOL, Image.id > after, _lacks(config))
    if previous is not None:
        statement = statement.where(_lacks(previous))
    return statement.order_by(Image.id)


def _by_previous(config: int, previous: int, last: tuple[float, int] | None) -> Any:
    statement = sa.select(Image.id, Image.uri, Image.sha256, Score.entropy_sum).select_from(Score)
    statement = statement.join(Image, Image.id == Score.image_id)
    statement = statement.where(Score.scoring_config_id == previous, IN_POOL, _lacks(config))
    if last is not None:
        statement = statement.where(after_row(Score.entropy_sum, *last))
    return in_ranking_order(statement.order_by(Score.entropy_sum.desc(), Score.image_id))


def _lacks(config: int) -> sa.ColumnElement[bool]:
    """No score under this configuration: one look-up a row, which neither planner turns into a join of everything."""
    other = aliased(Score)
    found = sa.select(sa.true()).where(other.scoring_config_id == config, other.image_id == Image.id)
    return found.scalar_subquery().is_not(sa.true())


def insert_scores(session: Session, run: ScoringRun, scores: Sequence[ImageScore]) -> None:
    """Append a chunk of scores and their class scores, in bulk. Raises NonFiniteScoreError before anything is written."""
    for score in scores:
        _require_finite(score)
    session.flush()
    config, run_id, when = run.scoring_config_id, run.id, now()
    rows = ((config, run_id, when, *_statistics(score)) for score in scores)
    insert_rows(session, Score, ("scoring_config_id", "scoring_run_id", "scored_at", *_STATISTICS), rows)
    parts = ((config, score.image_id, *_class_statistics(part)) for score in scores for part in score.classes)
    insert_rows(session, ClassScoreRow, ("scoring_config_id", "image_id", *_CLASS_STATISTICS), parts)


_ELSEWHERE = {"classes", "feature", "gradient"}  # tables of their own
_STATISTICS = tuple(field.name for field in fields(ImageScore) if field.name not in _ELSEWHERE)
_CLASS_STATISTICS = tuple(field.name for field in fields(ClassScore))
_statistics, _class_statistics = attrgetter(*_STATISTICS), attrgetter(*_CLASS_STATISTICS)
_single = attrgetter("entropy_sum", "entropy_mean", "entropy_share", "margin_mean", "least_confidence_mean")


def _require_finite(score: ImageScore) -> None:
    by_class = [part.channel_entropy_sum + part.region_entropy_sum + (part.mean_confidence or 0.0) for part in score.classes]
    # A sum is finite only where all its parts are; SQLite would store NaN as NULL.
    disagreement = (score.bald or 0.0) + (score.tta_jsd or 0.0)
    if not math.isfinite(sum(_single(score)) + disagreement + sum(score.grid) + sum(by_class)):
        raise NonFiniteScoreError(f"image {score.image_id}: expected finite scores, got {score}; nothing was written")


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


def grids(session: Session, scoring_config_id: int, image_ids: Sequence[int]) -> dict[int, list[float]]:
    """image id -> the entropy of its regions, row-major (`ImageScore.grid`); images without a score are absent."""
    found: dict[int, list[float]] = {}
    for block in blocks(image_ids):
        statement = sa.select(Score.image_id, Score.grid).where(Score.scoring_config_id == scoring_config_id)
        found |= dict(session.execute(statement.where(Score.image_id.in_(block))).all())
    return found


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
