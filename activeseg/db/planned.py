"""Tasks on their way to Label Studio: planned, with an address for their pictures, not sent yet. In blocks, however many."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.orm import Session

from activeseg.db.images import blocks
from activeseg.db.models import Image, Prediction, Query, QueryStatus, Task, TaskStatus
from activeseg.records import ImageRef


@dataclass(frozen=True, slots=True)
class Waiting:
    """A query whose image waits to be sent. size: (height, width) of the image, 0 where it is not known."""

    query_id: int
    image: ImageRef
    size: tuple[int, int]


@dataclass(frozen=True, slots=True)
class PlannedTask:
    """A planned task and what it shows.

    size, shown: (height, width) of the image and of the picture people draw on. cells: what of it is asked about; None for
    all of it.
    """

    task: Task
    image: ImageRef
    size: tuple[int, int]
    shown: tuple[int, int]
    shown_order: int
    prediction: Prediction | None
    cells: list[int] | None = None


def waiting(session: Session, round_id: int) -> list[Waiting]:
    """A round's queries that wait to be sent, in shown order."""
    statement = (
        sa.select(Query.id, Image.id, Image.uri, Image.sha256, Image.height, Image.width)
        .join(Image, Image.id == Query.image_id)
        .where(Query.round_id == round_id, Query.status == QueryStatus.SELECTED)
        .order_by(Query.shown_order)
    )
    return [
        Waiting(query_id, ImageRef(image_id, uri, sha256), (height or 0, width or 0))
        for query_id, image_id, uri, sha256, height, width in session.execute(statement)
    ]


def plan(session: Session, tasks: Sequence[Task]) -> None:
    """Insert the planned tasks of queries that have none.

    A query's task that is not sent yet shows the new one's prediction and moves to its project; the size its picture is
    shown at stays, because the picture may be on the server already.
    """
    found = {row.query_id: row for row in _of_queries(session, [task.query_id for task in tasks])}
    for task in tasks:
        known = found.get(task.query_id)
        if known is None:
            session.add(task)
        elif known.status == TaskStatus.PLANNED:
            known.prediction_id = task.prediction_id
            if known.labeling_project_id != task.labeling_project_id:
                known.labeling_project_id, known.key = task.labeling_project_id, task.key
                known.image_url = known.entropy_url = None
                known.shown_height, known.shown_width = task.shown_height, task.shown_width
    session.flush()


def _of_queries(session: Session, query_ids: Sequence[int]) -> Iterator[Task]:
    for block in blocks(query_ids):
        yield from session.scalars(sa.select(Task).where(Task.query_id.in_(block)))


def page(
    session: Session, labeling_project_id: int, round_id: int, *, after: int, limit: int, without_image: bool = False
) -> list[PlannedTask]:
    """The next planned tasks of a round behind the shown order `after`; with without_image those without an address only."""
    statement = (
        sa.select(Task, Query.shown_order, Query.cells, Image, Prediction)
        .join(Query, Query.id == Task.query_id)
        .join(Image, Image.id == Query.image_id)
        .outerjoin(Prediction, Prediction.id == Task.prediction_id)
        .where(Task.labeling_project_id == labeling_project_id, Task.status == TaskStatus.PLANNED)
        .where(Query.round_id == round_id, Query.status == QueryStatus.SELECTED, Query.shown_order > after)
        .order_by(Query.shown_order)
        .limit(limit)
    )
    if without_image:
        statement = statement.where(Task.image_url.is_(None))
    return [_planned(*row) for row in session.execute(statement)]


def _planned(task: Task, shown_order: int, cells: list[int] | None, image: Image, prediction: Prediction | None) -> PlannedTask:
    size = (image.height or 0, image.width or 0)
    ref = ImageRef(image.id, image.uri, image.sha256)
    return PlannedTask(task, ref, size, size_shown(task, size), shown_order, prediction, cells)


def size_shown(task: Task, size: tuple[int, int]) -> tuple[int, int]:
    """(height, width) of the picture people draw on, for an image of this size."""
    return task.shown_height or size[0], task.shown_width or size[1]


def deliver(session: Session, urls: Mapping[int, tuple[str, str | None]]) -> None:
    """Record the addresses of tasks' images and entropy maps (None: no map), by the id of the task's row."""
    rows = [{"id": number, "image_url": image, "entropy_url": entropy} for number, (image, entropy) in urls.items()]
    if rows:
        session.execute(sa.update(Task), rows)
