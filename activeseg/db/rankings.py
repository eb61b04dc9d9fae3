"""Ranking queries for people and programs: the champion's, a past checkpoint's, or by the entropy of some classes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from activeseg.config.strategies import BASES
from activeseg.db.candidates import IN_POOL
from activeseg.db.images import blocks
from activeseg.db.models import Checkpoint, ClassScoreRow, Image, Score, ScoringConfig, ScoringRun
from activeseg.errors import ConfigError
from activeseg.records import STORED


@dataclass(frozen=True, slots=True)
class RankingRow:
    """One line of a ranking. score: nats, the summed entropy (of the asked classes), or the function that was asked for."""

    rank: int
    image_id: int
    uri: str
    score: float
    entropy_mean: float
    valid_pixels: int
    model_version: str


@dataclass(frozen=True, slots=True)
class Cursor:
    """Where a page ended: the next one starts after it, however the ranking grows meanwhile."""

    rank: int
    score: float
    image_id: int

    def __str__(self) -> str:
        return f"{self.rank}:{self.score.hex()}:{self.image_id}"

    @classmethod
    def parse(cls, text: str) -> Cursor:
        """Raises ConfigError for a text that `str()` of a cursor cannot have made."""
        try:
            rank, score, image_id = text.split(":")
            cursor = cls(int(rank), float.fromhex(score), int(image_id))
        except (ValueError, OverflowError):
            cursor = None
        # NaN and infinity compare differently on each database, and neither takes integers of any size.
        if cursor is None or not math.isfinite(cursor.score) or not 0 < cursor.image_id < 2**63 or str(cursor) != text:
            raise ConfigError(f"cursor: expected the 'next' value of a former page, got {text[:80]!r}")
        return cursor


def latest_scoring_config(session: Session, checkpoint_id: int) -> int | None:
    """The configuration of this checkpoint that was scored with last."""
    found: int | None = session.scalar(_by_last_run(checkpoint_id, ScoringRun.scoring_config_id).limit(1))
    return found


def _config_with(session: Session, checkpoint_id: int, by: str) -> int | None:
    """The same, of those that took the statistic `by` besides the usual ones; where none says so, of all."""
    # A strategy that is set again finds its pool scored and runs nothing: then another configuration was the last.
    found = session.execute(_by_last_run(checkpoint_id, ScoringConfig.id, ScoringConfig.definition))
    return next((row.id for row in found if by in row.definition), None) or latest_scoring_config(session, checkpoint_id)


def _by_last_run(checkpoint_id: int, *columns: Any) -> Any:
    statement = sa.select(*columns).select_from(ScoringRun)
    statement = statement.join(ScoringConfig, ScoringConfig.id == ScoringRun.scoring_config_id)
    return statement.where(ScoringConfig.checkpoint_id == checkpoint_id).order_by(ScoringRun.id.desc())


def ranking(
    session: Session,
    checkpoint: Checkpoint,
    *,
    limit: int,
    class_indices: Sequence[int] = (),
    after: Cursor | None = None,
    pool_only: bool = True,
    by: str = "entropy_sum",
) -> list[RankingRow]:
    """A page of the ranking, highest score first, ties by image id.

    class_indices: rank by the sum of these classes' channel entropies instead of all.
    after: continue behind this row.
    pool_only: leave out images that are labelled, superseded or quarantined by now (history keeps them).
    by: the acquisition function; only `entropy_sum` has an index, others sort all. What is no stored statistic has no
    pages. Images whose statistic was not taken are left out.
    Raises ConfigError for an unknown function, and for one other than entropy_sum of some classes.
    """
    if by not in BASES:
        raise ConfigError(f"unknown acquisition function {by!r}; known: {', '.join(BASES)}")
    if class_indices and by != "entropy_sum":
        raise ConfigError(f"{by} has no value for a class alone: name classes with entropy_sum")
    extra = by in ("bald", "tta_jsd")
    config = _config_with(session, checkpoint.id, by) if extra else latest_scoring_config(session, checkpoint.id)
    if config is None:
        return []
    if by not in STORED:
        if after is not None:
            raise ConfigError(f"{by} is worked out of all images at once: there are no pages of it")
        return _worked_out(session, checkpoint, config, by, limit=limit, pool_only=pool_only)
    score, source = _score_of(config, class_indices, by)
    statement = sa.select(Image.id, Image.uri, score, Score.entropy_mean, Score.valid_pixels).select_from(source)
    statement = statement.join(Image, Image.id == Score.image_id).where(Score.scoring_config_id == config)
    if not class_indices and by == "entropy_sum":
        statement = in_ranking_order(statement)
    if by != "entropy_sum":
        statement = statement.where(score.is_not(None))
    if pool_only:
        statement = statement.where(IN_POOL)
    if after is not None:
        statement = statement.where(after_row(score, after.score, after.image_id))
    statement = statement.order_by(score.desc(), Score.image_id).limit(limit)
    first = after.rank + 1 if after else 1
    rows = session.execute(statement)
    return [
        RankingRow(rank, image_id, uri, value, mean, pixels, checkpoint.model_version)
        for rank, (image_id, uri, value, mean, pixels) in enumerate(rows, first)
    ]


def _worked_out(
    session: Session, checkpoint: Checkpoint, config: int, by: str, *, limit: int, pool_only: bool
) -> list[RankingRow]:
    """The top of a ranking by a function of all images' statistics."""
    # numpy is loaded only here: a ranking's page starts at once.
    from activeseg.core.acquisition import acquisition_values
    from activeseg.core.ranking import Ranking
    from activeseg.db.statistics import statistics

    pool = statistics(session, config, by, which=IN_POOL if pool_only else sa.true())
    best = Ranking.of(pool.image_ids, acquisition_values(by, pool), by)
    found: dict[int, Any] = {}
    for block in blocks(best.image_ids[:limit].tolist()):
        statement = sa.select(Image.id, Image.uri, Score.entropy_mean, Score.valid_pixels)
        statement = statement.join(Score, Score.image_id == Image.id).where(Score.scoring_config_id == config)
        found |= {row.id: row for row in session.execute(statement.where(Image.id.in_(block)))}
    top = zip(best.image_ids[:limit].tolist(), best.scores.tolist(), strict=False)
    return [
        RankingRow(rank, number, row.uri, score, row.entropy_mean, row.valid_pixels, checkpoint.model_version)
        for rank, (number, score) in enumerate(top, 1)
        for row in [found[number]]
    ]


def in_ranking_order(statement: Any) -> Any:
    """Make SQLite walk the ranking's index: it plans without regard to LIMIT and may rather sort everything."""
    return statement.with_hint(Score, "INDEXED BY ix_scores_ranking", "sqlite")


def after_row(score: Any, value: float, image_id: int) -> sa.ColumnElement[bool]:
    """Rows of `scores` behind this one in the ranking by `score`."""
    # The leading score <= s makes the whole predicate an index range.
    return sa.and_(score <= value, sa.or_(score < value, Score.image_id > image_id))


def _score_of(config: int, class_indices: Sequence[int], by: str) -> tuple[Any, sa.FromClause]:
    table: sa.FromClause = Score.__table__
    if not class_indices:
        return getattr(Score, STORED[by]), table
    parts = (
        sa.select(ClassScoreRow.image_id, sa.func.sum(ClassScoreRow.channel_entropy_sum).label("entropy"))
        .where(ClassScoreRow.scoring_config_id == config, ClassScoreRow.class_index.in_(class_indices))
        .group_by(ClassScoreRow.image_id)
        .subquery()
    )
    return parts.c.entropy, table.join(parts, parts.c.image_id == Score.image_id)


def class_scores(session: Session, scoring_config_id: int, image_id: int) -> list[ClassScoreRow]:
    """One image's scores by class, by class index."""
    statement = sa.select(ClassScoreRow).where(
        ClassScoreRow.scoring_config_id == scoring_config_id, ClassScoreRow.image_id == image_id
    )
    return list(session.scalars(statement.order_by(ClassScoreRow.class_index)))
