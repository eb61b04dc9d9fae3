"""Annotators: who did how much, and who may have submitted without looking."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from activeseg.config.strategies import Strategy
from activeseg.db.models import Query, Round, Score
from activeseg.records import STORED

ANNOTATORS = sa.table(
    "annotators",
    *(
        sa.column(name)
        for name in (
            "annotator", "annotations", "skipped", "quarantined", "unchanged", "rubber_stamps", "mean_lead_time",
            "mean_changed_share", "mean_agreement",
        )
    ),
)  # fmt: skip


def overview(session: Session) -> list[dict[str, Any]]:
    """The rows of the view `annotators`, by name."""
    rows = session.execute(sa.select(ANNOTATORS).order_by(ANNOTATORS.c.annotator)).mappings()
    return [{name: _number(value) for name, value in row.items()} for row in rows]


def _number(value: Any) -> Any:
    """PostgreSQL's sums are decimals."""
    return value if value is None or isinstance(value, str | int | float) else float(value)


def is_uncertain(session: Session, query_id: int) -> bool:
    """Whether a query's image stood in the upper half of all images scored when its round was opened.

    By the round's scoring configuration and acquisition function, summed entropy where that is no stored statistic; never
    for a round without a model. Images that came to the pool later shift nothing.
    """
    rounds = sa.select(Round, Query.image_id).join(Query, Query.round_id == Round.id)
    asked, image_id = session.execute(rounds.where(Query.id == query_id)).one()
    if asked.scoring_config_id is None:
        return False
    columns = Score.__table__.c
    value = columns[STORED.get(Strategy.parse(asked.acquisition).base, "entropy_sum")]
    then = (columns.scoring_config_id == asked.scoring_config_id, columns.scored_at <= asked.opened_at)
    own = session.scalar(sa.select(value).where(*then, columns.image_id == image_id))
    if own is None:
        return False
    counts = sa.select(sa.func.count(), sa.func.count(sa.case((value > own, 1)))).where(*then)
    scored, above = session.execute(counts).one()
    return bool(2 * (above + 1) <= scored)
