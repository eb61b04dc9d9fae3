"""What our tables say was sent to a Label Studio project: the side that `reconciliation` compares with the server."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.orm import Session

from activeseg.db import labeling, truth
from activeseg.db.images import blocks
from activeseg.db.models import (
    Annotation,
    AnnotationStatus,
    Image,
    JournalState,
    LabelingProject,
    PushJournal,
    Query,
    QueryStatus,
    Round,
    RoundStatus,
    Task,
    TaskStatus,
)

_OPEN = (QueryStatus.SELECTED, QueryStatus.PUSHED)


@dataclass(frozen=True, slots=True)
class SentTask:
    """One tasks row: its key and its image's sha256 say which task on the server is its own.

    number: the task's on the server, as far as we know. forgotten: an image waits for it, and no push is going to send it.
    """

    id: int
    key: str
    sha256: str
    number: int | None
    status: TaskStatus
    forgotten: bool


def tasks_of(session: Session, labeling_project_id: int, keys: Sequence[str] | None = None) -> dict[str, SentTask]:
    """key -> the task row of a project, all of them or those of some keys."""
    sending = sa.and_(Query.status == QueryStatus.SELECTED, Round.status == RoundStatus.SELECTED)
    never = sa.and_(Task.status == TaskStatus.PLANNED, Query.status.in_(_OPEN), sa.not_(sending))
    statement = (
        sa.select(Task.id, Task.key, Image.sha256, Task.external_task_id, Task.status, never.label("never"))
        .join(Query, Query.id == Task.query_id)
        .join(Round, Round.id == Query.round_id)
        .join(Image, Image.id == Query.image_id)
        .where(Task.labeling_project_id == labeling_project_id)
        .order_by(Task.id)
    )
    chosen = [statement] if keys is None else [statement.where(Task.key.in_(block)) for block in blocks(list(keys))]
    rows = (row for one in chosen for row in session.execute(one))
    return {
        key: SentTask(number, key, sha, outside, status, bool(waiting)) for number, key, sha, outside, status, waiting in rows
    }


def journal_keys(session: Session, labeling_project_id: int) -> set[str]:
    """Every key a creating call to a project was ever made for."""
    statement = sa.select(PushJournal.keys).where(PushJournal.labeling_project_id == labeling_project_id)
    return {key for keys in session.scalars(statement) for key in keys}


def projects(session: Session, *, unsettled: bool = False) -> list[LabelingProject]:
    """Every project tasks were sent to, or those with calls nobody knows the end of; oldest first."""
    statement = sa.select(LabelingProject).order_by(LabelingProject.id)
    if unsettled:
        open_states = [JournalState.INTENDED, JournalState.DOUBT]
        statement = statement.where(
            sa.exists().where(PushJournal.labeling_project_id == LabelingProject.id, PushJournal.state.in_(open_states))
        )
    return list(session.scalars(statement))


def point(session: Session, labeling_project_id: int, numbers: Mapping[str, int]) -> int:
    """Let the rows of these keys name these tasks; planned ones become pushed. Returns how many were not pushed before.

    Numbers are cleared first: after a restored backup two rows may have to swap theirs, and each may be named once only.
    """
    with session.no_autoflush:
        for block in blocks(list(numbers)):
            mine = sa.select(Task).where(Task.labeling_project_id == labeling_project_id, Task.key.in_(block))
            for task in session.scalars(mine.where(Task.status != TaskStatus.PLANNED)).all():
                if task.external_task_id != numbers[task.key]:
                    task.external_task_id = None
    session.flush()
    _free(session, labeling_project_id, numbers)
    changed = labeling.mark_pushed(session, labeling_project_id, numbers)
    for block in blocks(list(numbers)):
        mine = sa.select(Task).where(Task.labeling_project_id == labeling_project_id, Task.key.in_(block))
        for task in session.scalars(mine.where(Task.external_task_id.is_(None))).all():
            task.external_task_id = numbers[task.key]
    session.flush()
    return changed


def _free(session: Session, labeling_project_id: int, numbers: Mapping[str, int]) -> None:
    """Rows of other keys that name one of these numbers are wrong: that task carries another key."""
    for block in blocks(list(numbers.values())):
        statement = sa.select(Task).where(Task.labeling_project_id == labeling_project_id, Task.external_task_id.in_(block))
        for task in session.scalars(statement).all():
            if numbers.get(task.key) != task.external_task_id:
                task.external_task_id = None
    session.flush()


def give_up(session: Session, labeling_project_id: int, keys: Iterable[str]) -> int:
    """Mark tasks deleted that are gone from the server: unless a mask of it counts, the image returns to the pool."""
    changed = 0
    for block in blocks(list(keys)):
        statement = sa.select(Task).where(Task.labeling_project_id == labeling_project_id, Task.key.in_(block))
        for task in session.scalars(statement.where(Task.status == TaskStatus.PUSHED)).all():
            labeling.mark_task_deleted(session, task)
            changed += 1
    return changed


def open_keys(session: Session, labeling_project_id: int) -> list[str]:
    """Keys of the pushed tasks nobody has answered."""
    statement = (
        sa.select(Task.key)
        .join(Query, Query.id == Task.query_id)
        .where(Task.labeling_project_id == labeling_project_id, Task.status == TaskStatus.PUSHED)
        .where(Query.status == QueryStatus.PUSHED)
    )
    return list(session.scalars(statement.order_by(Task.id)))


def mark_annotations_deleted(session: Session, labeling_project_id: int, there: Iterable[int]) -> int:
    """Mark annotations deleted whose task is not `there` any more; returns how many.

    By the task an annotation was made on, not by the one our row names: of two tasks with a key each has its own.
    """
    known = sa.select(Annotation.external_task_id).where(
        Annotation.labeling_project_id == labeling_project_id,
        Annotation.external_task_id.is_not(None),
        Annotation.status != AnnotationStatus.DELETED,
    )
    gone = sorted({number for number in session.scalars(known.distinct()) if number is not None} - set(there))
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
            .where(Query.status.in_(_OPEN))
        )
        for query, round_row in session.execute(statement).all():
            query.status, round_row.status = QueryStatus.SELECTED, RoundStatus.SELECTED
            round_row.closed_at = None
            changed += 1
    session.flush()
    return changed
