"""Label Studio projects, tasks, predictions and the push journal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.orm import Session

from activeseg.db.images import blocks
from activeseg.db.models import (
    Image,
    JournalState,
    LabelingProject,
    Prediction,
    PushJournal,
    Query,
    QueryStatus,
    Task,
    TaskStatus,
)
from activeseg.db.models.columns import now
from activeseg.records import ImageRef


@dataclass(frozen=True, slots=True)
class KnownTask:
    """A task of ours as pull needs it: which image, which query, which prediction was shown."""

    task: Task
    image: ImageRef
    width: int
    height: int
    prediction_location: str | None


def project(session: Session, instance_key: str, external_id: int) -> LabelingProject | None:
    """Our row of a Label Studio project, wherever the server is reached now."""
    statement = sa.select(LabelingProject).where(
        LabelingProject.instance_key == instance_key, LabelingProject.external_project_id == external_id
    )
    return session.scalar(statement)


def latest_project(session: Session) -> LabelingProject | None:
    """The project pushed to last."""
    return session.scalar(sa.select(LabelingProject).order_by(LabelingProject.id.desc()).limit(1))


def store_prediction(session: Session, prediction: Prediction) -> Prediction:
    """Insert a prediction, or return the one of the same image and source."""
    statement = sa.select(Prediction).where(Prediction.image_id == prediction.image_id, Prediction.source == prediction.source)
    found = session.scalar(statement)
    if found is not None:
        return found
    session.add(prediction)
    session.flush()
    return prediction


def predictions_of(session: Session, source: str, image_ids: Sequence[int]) -> dict[int, Prediction]:
    """image id -> its prediction from this source."""
    found: dict[int, Prediction] = {}
    for block in blocks(image_ids):
        statement = sa.select(Prediction).where(Prediction.source == source, Prediction.image_id.in_(block))
        found.update({row.image_id: row for row in session.scalars(statement)})
    return found


def plan_task(session: Session, task: Task) -> Task:
    """Insert the planned task of a query, or return the one it has."""
    found = session.scalar(sa.select(Task).where(Task.query_id == task.query_id))
    if found is not None:
        return found
    session.add(task)
    session.flush()
    return task


def unsent(session: Session, labeling_project_id: int, round_id: int) -> list[tuple[Task, Query]]:
    """Planned tasks of a round, in shown order."""
    statement = (
        sa.select(Task, Query)
        .join(Query, Query.id == Task.query_id)
        .where(
            Task.labeling_project_id == labeling_project_id,
            Task.status == TaskStatus.PLANNED,
            Query.round_id == round_id,
            Query.status == QueryStatus.SELECTED,
        )
        .order_by(Query.shown_order)
    )
    return [(task, query) for task, query in session.execute(statement)]


def intend(session: Session, labeling_project_id: int, keys: Sequence[str]) -> int:
    """Write the journal row that precedes a creating call; returns its id."""
    row = PushJournal(labeling_project_id=labeling_project_id, keys=list(keys), state=JournalState.INTENDED)
    session.add(row)
    session.flush()
    return row.id


def journal(session: Session, journal_id: int, state: JournalState, note: str | None = None) -> None:
    """Record how a call ended."""
    row = session.get_one(PushJournal, journal_id)
    row.state, row.note, row.ended_at = state, note[:500] if note else None, now()


def unsettled(session: Session, labeling_project_id: int) -> list[PushJournal]:
    """Calls nobody knows the end of: intended (killed meanwhile) or in doubt (answer lost)."""
    statement = sa.select(PushJournal).where(
        PushJournal.labeling_project_id == labeling_project_id,
        PushJournal.state.in_([JournalState.INTENDED, JournalState.DOUBT]),
    )
    return list(session.scalars(statement.order_by(PushJournal.id)))


def mark_pushed(session: Session, labeling_project_id: int, task_ids: Mapping[str, int]) -> int:
    """Record outside ids by key; the queries become pushed. Returns how many tasks were not pushed before."""
    changed = 0
    for block in blocks(list(task_ids)):
        statement = sa.select(Task).where(Task.labeling_project_id == labeling_project_id, Task.key.in_(block))
        for task in session.scalars(statement).all():
            if task.status == TaskStatus.PLANNED:
                task.external_task_id, task.status, task.pushed_at = task_ids[task.key], TaskStatus.PUSHED, now()
                query = session.get_one(Query, task.query_id)
                if query.status == QueryStatus.SELECTED:
                    query.status = QueryStatus.PUSHED
                changed += 1
    session.flush()
    return changed


def known_tasks(session: Session, labeling_project_id: int, keys: Iterable[str]) -> dict[str, KnownTask]:
    """key -> our task, with its image and the prediction that was shown."""
    found: dict[str, KnownTask] = {}
    for block in blocks(list(keys)):
        statement = (
            sa.select(Task, Image, Prediction.mask_location)
            .join(Query, Query.id == Task.query_id)
            .join(Image, Image.id == Query.image_id)
            .outerjoin(Prediction, Prediction.id == Task.prediction_id)
            .where(Task.labeling_project_id == labeling_project_id, Task.key.in_(block))
        )
        for task, image, location in session.execute(statement):
            ref = ImageRef(image.id, image.uri, image.sha256)
            found[task.key] = KnownTask(task, ref, image.width or 0, image.height or 0, location)
    return found


def pushed_task_ids(session: Session, labeling_project_id: int) -> dict[int, Task]:
    """Outside id -> task, of every task we believe Label Studio has."""
    statement = sa.select(Task).where(Task.labeling_project_id == labeling_project_id, Task.status == TaskStatus.PUSHED)
    return {task.external_task_id: task for task in session.scalars(statement) if task.external_task_id is not None}


def mark_task_deleted(session: Session, task: Task) -> None:
    """A task is gone from Label Studio: unanswered, its image goes back to the pool."""
    held = session.get_one(Task, task.id)
    held.status = TaskStatus.DELETED
    query = session.get_one(Query, held.query_id)
    if query.status == QueryStatus.PUSHED:
        query.status = QueryStatus.WITHDRAWN
    session.flush()


def move_cursor(session: Session, labeling_project_id: int, until: datetime) -> None:
    """Remember how far pulling got; never backwards."""
    row = session.get_one(LabelingProject, labeling_project_id)
    if row.pulled_until is None or until > row.pulled_until:
        row.pulled_until = until


def count_tasks(session: Session, labeling_project_id: int, besides: Sequence[int]) -> int:
    """Tasks a project has besides these rows: where the shown order of the next ones starts."""
    total = sa.select(sa.func.count()).select_from(Task).where(Task.labeling_project_id == labeling_project_id)
    return (session.scalar(total) or 0) - len(besides)
