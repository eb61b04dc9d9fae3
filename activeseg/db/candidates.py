"""Which images may be asked about, and which were."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import NamedTuple

import sqlalchemy as sa
from sqlalchemy.orm import Session

from activeseg.db.images import blocks
from activeseg.db.models import Image, ImageStatus, Query, QueryStatus, Score, Split

IN_POOL = sa.and_(Image.split == Split.POOL, Image.status == ImageStatus.ACTIVE)
_ROWS = 20_000
ASKED = (QueryStatus.SELECTED, QueryStatus.PUSHED, QueryStatus.ANNOTATED)


class Place(NamedTuple):
    """Where an image is: its file, and the clip or site it belongs to."""

    image_id: int
    uri: str
    group: str | None


def free_pool() -> sa.ColumnElement[bool]:
    """Pool images that may be asked about: not in a query that is open, answered or skipped."""
    taken = sa.exists().where(Query.image_id == Image.id, Query.status != QueryStatus.WITHDRAWN)
    # A clip or site with validation images stays out altogether, and so does a copy of one: they would leak.
    validation = sa.select(Image).where(Image.split == Split.VAL)
    groups = validation.with_only_columns(Image.group_name).where(Image.group_name.is_not(None)).distinct()
    copies = validation.with_only_columns(Image.sha256)
    return sa.and_(
        IN_POOL,
        ~taken,
        sa.or_(Image.group_name.is_(None), Image.group_name.not_in(groups)),
        Image.sha256.not_in(copies),
    )


def has_candidates(session: Session, scoring_config_id: int | None) -> bool:
    """Whether any image may be queried: scored under this configuration, or (None) at all."""
    statement = sa.select(Image.id).where(free_pool())
    if scoring_config_id is not None:
        statement = statement.join(Score, Score.image_id == Image.id).where(Score.scoring_config_id == scoring_config_id)
    return session.scalar(statement.limit(1)) is not None


def all_free(session: Session, image_ids: Collection[int]) -> bool:
    """Whether every one of these images may still be asked about."""
    free = sum(
        session.scalar(sa.select(sa.func.count()).select_from(Image).where(free_pool(), Image.id.in_(block))) or 0
        for block in blocks(list(image_ids))
    )
    return free == len(image_ids)


def any_grouped(session: Session) -> bool:
    """Whether the clip or site of any image of the pool is known."""
    return session.scalar(sa.select(Image.id).where(IN_POOL, Image.group_name.is_not(None)).limit(1)) is not None


def unscored_candidates(session: Session) -> dict[int, str | None]:
    """image id -> group of every image that may be queried, for a first query without a model."""
    statement = sa.select(Image.id, Image.group_name).where(free_pool()).order_by(Image.id)
    return {row.id: row.group_name for row in session.execute(statement)}


def places(session: Session, image_ids: Collection[int]) -> Iterator[Place]:
    """File and group of the images that may be queried and are among `image_ids`."""
    statement = sa.select(Image.id, Image.uri, Image.group_name).where(free_pool())
    for row in session.execute(statement, execution_options={"yield_per": _ROWS}):
        if row.id in image_ids:
            yield Place(*row)


def asked(session: Session) -> list[Place]:
    """Images of the training split, and those a query asks about, or asked about and got an answer; by id."""
    in_query = sa.exists().where(Query.image_id == Image.id, Query.status.in_(ASKED))
    statement = sa.select(Image.id, Image.uri, Image.group_name).where(
        sa.or_(Image.split == Split.TRAIN, sa.and_(Image.split == Split.POOL, in_query))
    )
    return [Place(*row) for row in session.execute(statement.order_by(Image.id))]
