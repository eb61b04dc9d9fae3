"""Tasks that wait for annotators, and what they show."""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.orm import Session

from activeseg.db.labeling import count_tasks_before
from activeseg.db.models import Arm, Image, ImageStatus, Prediction, Query, QueryStatus, Round, Task, TaskStatus
from activeseg.records import ImageRef


@dataclass(frozen=True, slots=True)
class OpenTask:
    """A task nobody's answer was pulled of yet.

    place: 0-based place in the project's shown order that it was sent with. size, shown: (height, width) of the image and of
    the picture people draw on. source: whose prediction it shows, None where it shows none.
    """

    task: Task
    image: ImageRef
    arm: Arm
    place: int
    size: tuple[int, int]
    shown: tuple[int, int]
    source: str | None


def open_tasks(session: Session, labeling_project_id: int) -> list[OpenTask]:
    """A project's tasks that wait for annotators, by id."""
    statement = (
        sa.select(Task, Query, Round.number, Image, Prediction.source)
        .join(Query, Query.id == Task.query_id)
        .join(Round, Round.id == Query.round_id)
        .join(Image, Image.id == Query.image_id)
        .outerjoin(Prediction, Prediction.id == Task.prediction_id)
        .where(Task.labeling_project_id == labeling_project_id, *_waiting())
        .order_by(Task.id)
    )
    rows = session.execute(statement).all()
    before = {number: count_tasks_before(session, labeling_project_id, number) for number in {row.number for row in rows}}
    return [_open_task(task, query, before[number], image, source) for task, query, number, image, source in rows]


def _open_task(task: Task, query: Query, before: int, image: Image, source: str | None) -> OpenTask:
    size = (image.height or 0, image.width or 0)
    shown = (task.shown_height or size[0], task.shown_width or size[1])
    ref = ImageRef(image.id, image.uri, image.sha256)
    return OpenTask(task, ref, query.arm, before + query.shown_order, size, shown, source)


def any_without(session: Session, source: str) -> bool:
    """Whether a task that waits for annotators, in whatever project, shows another prediction than one of `source`'s."""
    shown = sa.select(Prediction.source).where(Prediction.id == Task.prediction_id).scalar_subquery()
    statement = (
        sa.select(Task.id)
        .join(Query, Query.id == Task.query_id)
        .join(Image, Image.id == Query.image_id)
        .where(*_waiting(), sa.func.coalesce(shown, "") != source)
    )
    return session.scalar(statement.limit(1)) is not None


def _waiting() -> tuple[sa.ColumnElement[bool], ...]:
    return (Task.status == TaskStatus.PUSHED, Query.status == QueryStatus.PUSHED, Image.status == ImageStatus.ACTIVE)
