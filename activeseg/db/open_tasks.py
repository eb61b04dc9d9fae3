"""Tasks that wait for annotators, and what they show."""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.orm import Session

from activeseg.db.labeling import count_tasks_before
from activeseg.db.models import Arm, Image, ImageStatus, Prediction, Query, QueryStatus, Round, Task, TaskStatus
from activeseg.db.planned import size_shown
from activeseg.records import ImageRef


@dataclass(frozen=True, slots=True)
class OpenTask:
    """A task nobody's answer was pulled of yet.

    place: 0-based place in the project's shown order that it was sent with. size, shown: (height, width) of the image and of
    the picture people draw on. source: whose prediction it shows, None where it shows none. cells: what of the image is
    asked about, None for all of it.
    """

    task: Task
    image: ImageRef
    arm: Arm
    place: int
    size: tuple[int, int]
    shown: tuple[int, int]
    source: str | None
    cells: list[int] | None = None


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
    ref = ImageRef(image.id, image.uri, image.sha256)
    return OpenTask(task, ref, query.arm, before + query.shown_order, size, size_shown(task, size), source, query.cells)


def sources_shown(session: Session) -> set[str | None]:
    """Whose predictions the tasks that wait for annotators, in whatever project, show; None for those without any."""
    statement = (
        sa.select(Prediction.source)
        .select_from(Task)
        .join(Query, Query.id == Task.query_id)
        .join(Image, Image.id == Query.image_id)
        .outerjoin(Prediction, Prediction.id == Task.prediction_id)
        .where(*_waiting())
    )
    return set(session.scalars(statement.distinct()))


def _waiting() -> tuple[sa.ColumnElement[bool], ...]:
    return (Task.status == TaskStatus.PUSHED, Query.status == QueryStatus.PUSHED, Image.status == ImageStatus.ACTIVE)
