"""What our tables say was sent to a Label Studio project: the side that `reconciliation` compares with the server."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.orm import Session, aliased

from activeseg.db import truth
from activeseg.db.images import blocks
from activeseg.db.labeling import UNSETTLED
from activeseg.db.models import (
    Annotation,
    AnnotationStatus,
    Image,
    ImageStatus,
    LabelingProject,
    PushJournal,
    Query,
    QueryStatus,
    Round,
    RoundStatus,
    Split,
    Task,
    TaskStatus,
)
from activeseg.db.models.columns import now
from activeseg.db.rounds import OPEN


@dataclass(frozen=True, slots=True)
class SentTask:
    """One tasks row: its key and its image's sha256 say which task on the server is its own.

    number: the task's on the server, as far as we know. wanted: it should have a task; not so where it was given up, unless
    its image still waits for one that may come back. forgotten: an image waits for it, and no push is going to send it.
    stranded: it was given up, and its query waits all the same.
    """

    id: int
    key: str
    sha256: str
    number: int | None
    status: TaskStatus
    wanted: bool
    forgotten: bool
    stranded: bool


def tasks_of(session: Session, labeling_project_id: int, keys: Sequence[str] | None = None) -> dict[str, SentTask]:
    """key -> the task row of a project, all of them or those of some keys."""
    sending = sa.and_(Query.status == QueryStatus.SELECTED, Round.status == RoundStatus.SELECTED)
    forgotten = sa.and_(Task.status == TaskStatus.PLANNED, Query.status.in_(OPEN), sa.not_(sending))
    stranded = sa.and_(Task.status == TaskStatus.DELETED, Query.status == QueryStatus.PUSHED)
    wanted = sa.or_(Task.status != TaskStatus.DELETED, stranded, _answered(), _may_return())
    statement = (
        sa.select(Task.id, Task.key, Image.sha256, Task.external_task_id, Task.status, wanted, forgotten, stranded)
        .join(Query, Query.id == Task.query_id)
        .join(Round, Round.id == Query.round_id)
        .join(Image, Image.id == Query.image_id)
        .where(Task.labeling_project_id == labeling_project_id)
        .order_by(Task.id)
    )
    chosen = [statement] if keys is None else [statement.where(Task.key.in_(block)) for block in blocks(list(keys))]
    rows = (row for one in chosen for row in session.execute(one))
    return {row[1]: SentTask(*row[:5], *map(bool, row[5:])) for row in rows}


def _answered() -> sa.ColumnElement[bool]:
    """Whether an annotation counts that was made on a task of this row: then that task is there."""
    return sa.exists().where(
        Annotation.query_id == Task.query_id,
        Annotation.labeling_project_id == Task.labeling_project_id,
        Annotation.status != AnnotationStatus.DELETED,
        Annotation.external_task_id.is_not(None),
        Query.status.in_([QueryStatus.ANNOTATED, QueryStatus.SKIPPED]),
    )


def _may_return() -> sa.ColumnElement[bool]:
    """Whether the image of a withdrawn query would still have its mask of this query, and of no other one."""
    other = aliased(Query)
    later = sa.and_(other.status == QueryStatus.WITHDRAWN, other.id > Query.id)
    taken = sa.exists().where(
        other.image_id == Query.image_id,
        other.id != Query.id,
        sa.or_(other.status.in_([*OPEN, QueryStatus.ANNOTATED]), later),
    )
    waits = sa.and_(Image.status == ImageStatus.ACTIVE, Image.split.in_([Split.POOL, Split.VAL]))
    return sa.and_(Query.status == QueryStatus.WITHDRAWN, waits, sa.not_(taken))


def journal_keys(session: Session, labeling_project_id: int) -> set[str]:
    """Every key a creating call to a project was ever made for."""
    statement = sa.select(PushJournal.keys).where(PushJournal.labeling_project_id == labeling_project_id)
    return {key for keys in session.scalars(statement) for key in keys}


def projects(session: Session, *, unsettled: bool = False) -> list[LabelingProject]:
    """Every project tasks were sent to, or those with calls nobody knows the end of; oldest first."""
    statement = sa.select(LabelingProject).order_by(LabelingProject.id)
    if unsettled:
        statement = statement.where(
            sa.exists().where(PushJournal.labeling_project_id == LabelingProject.id, PushJournal.state.in_(UNSETTLED))
        )
    return list(session.scalars(statement))


def mark_pushed(session: Session, labeling_project_id: int, numbers: Mapping[str, int]) -> int:
    """Planned tasks of these keys become pushed under these numbers; rows of others stay. Returns how many they were."""
    planned: list[str] = []
    for block in blocks(list(numbers)):
        mine = sa.select(Task.key).where(Task.labeling_project_id == labeling_project_id, Task.key.in_(block))
        planned += session.scalars(mine.where(Task.status == TaskStatus.PLANNED))
    return point(session, labeling_project_id, {key: numbers[key] for key in planned})


def point(session: Session, labeling_project_id: int, numbers: Mapping[str, int]) -> int:
    """Let the rows of these keys name these tasks; all become pushed. Returns how many were not pushed before.

    Given up ones that are there again wait again. Numbers are cleared first: after a restored backup two rows may have to
    swap theirs, and a row of another key that names one of them is wrong: that task carries this key.
    """
    moved: list[Task] = []
    for block in blocks(list(numbers)):
        mine = sa.select(Task).where(Task.labeling_project_id == labeling_project_id, Task.key.in_(block))
        found = session.scalars(mine.order_by(Task.id)).all()
        moved += [row for row in found if row.status != TaskStatus.PUSHED or row.external_task_id != numbers[row.key]]
    _free(session, labeling_project_id, [numbers[row.key] for row in moved])
    fresh = [row for row in moved if row.status == TaskStatus.PLANNED]
    back = [row for row in moved if row.status == TaskStatus.DELETED]
    for row in moved:
        row.external_task_id, row.status, row.pushed_at = numbers[row.key], TaskStatus.PUSHED, row.pushed_at or now()
    session.flush()
    _wait(session, [row.query_id for row in fresh], QueryStatus.SELECTED)
    returned = [row.query_id for row in back]
    _wait(session, returned, QueryStatus.WITHDRAWN)
    truth.refresh_queries(session, returned)
    return len(fresh) + len(back)


def _free(session: Session, labeling_project_id: int, numbers: Sequence[int]) -> None:
    for block in blocks(numbers):
        here = sa.and_(Task.labeling_project_id == labeling_project_id, Task.external_task_id.in_(block))
        for row in session.scalars(sa.select(Task).where(here)).all():
            row.external_task_id = None
    session.flush()


def _wait(session: Session, query_ids: Sequence[int], status: QueryStatus) -> None:
    """Queries of this status wait for annotators; their rounds too, where they count as answered."""
    for block in blocks(query_ids):
        for query in session.scalars(sa.select(Query).where(Query.id.in_(block), Query.status == status)).all():
            query.status = QueryStatus.PUSHED
        session.flush()
        truth.reopen_rounds(session, block)


def give_up(session: Session, labeling_project_id: int, keys: Iterable[str]) -> int:
    """Mark tasks deleted that are gone from the server: unless a mask of it counts, the image returns to the pool.

    Those that are marked already, and whose query waits all the same, are given up as well.
    """
    changed = 0
    for block in blocks(list(keys)):
        statement = sa.select(Task, Query).join(Query, Query.id == Task.query_id)
        mine = statement.where(Task.labeling_project_id == labeling_project_id, Task.key.in_(block))
        gone = sa.or_(
            Task.status == TaskStatus.PUSHED, sa.and_(Task.status == TaskStatus.DELETED, Query.status == QueryStatus.PUSHED)
        )
        for task, query in session.execute(mine.where(gone)).all():
            task.status, task.external_task_id = TaskStatus.DELETED, None
            session.flush()
            _withdraw(session, query)
            changed += 1
    return changed


def _withdraw(session: Session, query: Query) -> None:
    if query.status != QueryStatus.PUSHED:
        return
    query.status = QueryStatus.WITHDRAWN
    image = session.get_one(Image, query.image_id)
    session.flush()
    # A validation image stays: the split is frozen, with or without a mask.
    still_counts = sa.select(truth.CURRENT.c.image_id).where(truth.CURRENT.c.image_id == image.id)
    if image.split == Split.TRAIN and session.scalar(still_counts) is None:
        image.split = Split.POOL
    session.flush()


def open_keys(session: Session, labeling_project_id: int) -> list[str]:
    """Keys of the tasks nobody has answered."""
    statement = (
        sa.select(Task.key)
        .join(Query, Query.id == Task.query_id)
        .where(Task.labeling_project_id == labeling_project_id, Query.status == QueryStatus.PUSHED)
    )
    return list(session.scalars(statement.order_by(Task.id)))


def annotated_numbers(session: Session, labeling_project_id: int) -> set[int]:
    """Tasks on which annotations were made that are not marked deleted."""
    known = sa.select(Annotation.external_task_id).where(
        Annotation.labeling_project_id == labeling_project_id,
        Annotation.external_task_id.is_not(None),
        Annotation.status != AnnotationStatus.DELETED,
    )
    return {number for number in session.scalars(known.distinct()) if number is not None}


def mark_annotations_deleted(session: Session, labeling_project_id: int, there: Iterable[int]) -> int:
    """Mark annotations deleted whose task is not `there` any more; returns how many.

    By the task an annotation was made on, not by the one our row names: of two tasks with a key each has its own.
    """
    gone = sorted(annotated_numbers(session, labeling_project_id) - set(there))
    return truth.mark_deleted(session, labeling_project_id, gone, set())


def reopen(session: Session, labeling_project_id: int, keys: Iterable[str]) -> int:
    """Let rounds push again that count as pushed although these tasks were never sent; returns how many tasks."""
    changed = 0
    for block in blocks(list(keys)):
        statement = (
            sa.select(Query, Round)
            .join(Task, Task.query_id == Query.id)
            .join(Round, Round.id == Query.round_id)
            .where(Task.labeling_project_id == labeling_project_id, Task.key.in_(block))
            .where(Query.status.in_(OPEN))
        )
        for query, round_row in session.execute(statement).all():
            query.status, round_row.status = QueryStatus.SELECTED, RoundStatus.SELECTED
            round_row.closed_at = None
            changed += 1
    session.flush()
    return changed
