"""What is known of images that may be asked about: columns, not rows, as there may be a million."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from typing import Any

import numpy as np
import sqlalchemy as sa
from sqlalchemy.orm import Session

from activeseg.core.acquisition import READS, READS_CLASSES, PoolStatistics, Values, Whole
from activeseg.db.candidates import free_pool
from activeseg.db.models import ClassScoreRow, Image, Score

_ROWS = 20_000


def statistics(
    session: Session, scoring_config_id: int, acquisition: str, *, which: sa.ColumnElement[bool] | None = None
) -> PoolStatistics:
    """What an acquisition function reads, and no more, of every image that may be queried and has a score; by image id.

    which: other images than those that may be queried. A statistic that is NULL comes as NaN.
    """
    names = sorted(READS[acquisition])
    statement = (
        sa.select(Score.image_id, *(getattr(Score, name) for name in names))
        .join(Image, Image.id == Score.image_id)
        .where(Score.scoring_config_id == scoring_config_id, free_pool() if which is None else which)
        .order_by(Score.image_id)
    )
    table = _columns(session, statement, 1 + len(names))
    ids = table[0].astype(np.int64)
    columns = dict(zip(names, table[1:], strict=True))
    if acquisition not in READS_CLASSES:
        return PoolStatistics(ids, columns)
    return PoolStatistics(ids, columns, *_by_class(session, scoring_config_id, ids))


def _by_class(session: Session, config: int, ids: Whole) -> tuple[Whole, Values, Values]:
    """Class indices (C,), predicted pixels (N, C) and their summed entropy (N, C) of the images `ids` (N,), ascending."""
    row = ClassScoreRow
    statement = sa.select(row.image_id, row.class_index, row.region_pixels, row.region_entropy_sum)
    found: Values = np.zeros((3, len(ids), 0))  # whether there is a row, pixels, entropy
    for images, classes, pixels, entropy in _blocks(session, statement.where(row.scoring_config_id == config), 4):
        if (missing := int(classes.max()) + 1 - found.shape[2]) > 0:
            found = np.pad(found, ((0, 0), (0, 0), (0, missing)))
        at = np.searchsorted(ids, images)
        ours = at < len(ids)
        ours[ours] = ids[at[ours]] == images[ours]
        found[:, at[ours], classes[ours].astype(np.int64)] = np.ones(int(ours.sum())), pixels[ours], entropy[ours]
    scored = np.flatnonzero(found[0].any(axis=0))
    return scored, found[1][:, scored], found[2][:, scored]


def _columns(session: Session, statement: Any, width: int) -> Values:
    """(width, N) numbers of all rows; NULL is NaN."""
    found = list(_blocks(session, statement, width))
    return np.concatenate(found, axis=1) if found else np.empty((width, 0))


def _blocks(session: Session, statement: Any, width: int) -> Iterator[Values]:
    """The same in blocks, so that rows never stand in memory as objects all at once."""
    # The connection's rows take less than half the time of the session's.
    session.flush()
    rows: Iterable[Sequence[Any]] = session.connection().execute(statement, execution_options={"yield_per": _ROWS})
    numbers = chain.from_iterable(rows)
    # NULL comes as None, which numpy takes for NaN.
    while len(block := np.fromiter(islice(numbers, width * _ROWS), dtype=np.float64)):
        yield block.reshape(-1, width).T
