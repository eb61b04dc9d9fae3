"""Rounds and their queries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from activeseg.db.models import Arm, Image, Query, QueryStatus, Round, RoundStatus
from activeseg.db.models.columns import now
from activeseg.records import ImageRef, QueryItem

OPEN = (QueryStatus.SELECTED, QueryStatus.PUSHED)


def open_tasks(session: Session) -> int:
    """Queries nobody has answered yet."""
    return session.scalar(sa.select(sa.func.count()).select_from(Query).where(Query.status.in_(OPEN))) or 0


def tasks_with_annotators(session: Session) -> int:
    """Queries that were handed out and that nobody has answered yet: without those of a round that is not sent yet."""
    handed_out = sa.select(sa.func.count()).select_from(Query).where(Query.status == QueryStatus.PUSHED)
    return session.scalar(handed_out) or 0


def unfinished(session: Session, *statuses: RoundStatus) -> list[Round]:
    """Rounds that stand at one of these statuses, oldest first."""
    return list(session.scalars(sa.select(Round).where(Round.status.in_(statuses)).order_by(Round.number)))


def stopped(session: Session) -> list[Round]:
    """Begun rounds that stand still with an error, oldest first. A closed one keeps its reason, and waits for nothing."""
    return [row for row in unfinished(session, RoundStatus.OPEN, RoundStatus.SELECTED) if row.error is not None]


def latest(session: Session) -> Round | None:
    """The youngest round."""
    return session.scalar(sa.select(Round).order_by(Round.number.desc()).limit(1))


def plan_round(
    session: Session,
    *,
    scoring_config_id: int | None,
    acquisition: str,
    query_size: int,
    control_share: float,
    seed: int,
    selection: Mapping[str, Any] | None = None,
) -> Round:
    """The next round, not yet written. Its seed is derived from `seed` and its number: a replay draws the same.

    selection: further parameters of the choice, see `stages.rank.CHOICE`.
    """
    number = (session.scalar(sa.select(sa.func.max(Round.number))) or 0) + 1
    return Round(
        number=number,
        status=RoundStatus.OPEN,
        scoring_config_id=scoring_config_id,
        acquisition=acquisition,
        query_size=query_size,
        control_share=control_share,
        seed=seed * 1_000_003 + number,
        selection=None if selection is None else dict(selection),
    )


def insert_queries(
    session: Session, round_row: Round, items: Sequence[QueryItem], cells: Mapping[int, Sequence[int]] | None = None
) -> None:
    """Write a round's query and mark the round as selected.

    cells: image id -> the cells of it that are to be labelled; images that are not in it are asked about as a whole.
    """
    for item in items:
        session.add(
            Query(
                round_id=round_row.id,
                image_id=item.image_id,
                rank=item.rank,
                score=item.score,
                arm=Arm(item.arm),
                shown_order=item.shown_order,
                reason=item.reason,
                status=QueryStatus.SELECTED,
                cells=list(cells[item.image_id]) if cells and item.image_id in cells else None,
            )
        )
    session.merge(round_row).status = RoundStatus.SELECTED
    session.flush()


def queries(session: Session, round_id: int, status: QueryStatus | None = None) -> list[tuple[Query, ImageRef]]:
    """A round's queries with their images, in shown order."""
    statement = sa.select(Query, Image).join(Image, Image.id == Query.image_id).where(Query.round_id == round_id)
    if status is not None:
        statement = statement.where(Query.status == status)
    rows = session.execute(statement.order_by(Query.shown_order))
    return [(query, ImageRef(image.id, image.uri, image.sha256)) for query, image in rows]


def finish_pushing(session: Session, round_id: int) -> None:
    """Mark a round pushed, unless a query of it still waits to be sent."""
    if queries(session, round_id, QueryStatus.SELECTED):
        return
    row = session.get_one(Round, round_id)
    row.status, row.pushed_at, row.error = RoundStatus.PUSHED, now(), None


def close_answered(session: Session) -> list[int]:
    """Close pushed rounds without open queries; returns their numbers."""
    still_open = sa.exists().where(Query.round_id == Round.id, Query.status.in_(OPEN))
    rows = list(session.scalars(sa.select(Round).where(Round.status == RoundStatus.PUSHED, ~still_open)))
    for row in rows:
        row.status, row.closed_at = RoundStatus.CLOSED, now()
    session.flush()
    return [row.number for row in rows]


def skip_unanswered(session: Session, round_id: int) -> int:
    """Mark what is still open of a round as skipped; returns how many queries that were."""
    waiting = queries(session, round_id, QueryStatus.PUSHED)
    for query, _ in waiting:
        session.get_one(Query, query.id).status = QueryStatus.SKIPPED
    session.flush()
    return len(waiting)


def close_empty(session: Session, round_id: int) -> None:
    """Close a round for which there was nothing left to ask."""
    row = session.get_one(Round, round_id)
    row.status, row.closed_at, row.error = RoundStatus.CLOSED, now(), "no image was left to ask about"
