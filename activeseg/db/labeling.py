"""Label Studio projects, tasks, predictions and the push journal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.orm import Session

from activeseg.core.labels import LabelSet
from activeseg.db.images import blocks
from activeseg.db.models import (
    Image,
    JournalState,
    LabelingProject,
    LabelSetRow,
    Prediction,
    PushJournal,
    Query,
    QueryStatus,
    Round,
    Task,
    TaskStatus,
)
from activeseg.db.models.columns import now
from activeseg.records import ImageRef

UNSETTLED = (JournalState.INTENDED, JournalState.DOUBT)
"""Calls nobody knows the end of: intended (killed meanwhile) or in doubt (answer lost)."""


@dataclass(frozen=True, slots=True)
class KnownTask:
    """A task of ours as pull needs it: which image, which query, which prediction was shown.

    cells: what of the image was asked about; None for all of it.
    """

    task: Task
    image: ImageRef
    width: int
    height: int
    prediction_location: str | None
    cells: list[int] | None = None


def project(session: Session, instance_key: str, external_id: int) -> LabelingProject | None:
    """Our row of a Label Studio project, wherever the server is reached now."""
    statement = sa.select(LabelingProject).where(
        LabelingProject.instance_key == instance_key, LabelingProject.external_project_id == external_id
    )
    return session.scalar(statement)


def others_with_open_tasks(session: Session, labeling_project_id: int) -> list[LabelingProject]:
    """Former projects (another title, a rebuilt server) whose tasks still wait for annotators."""
    waiting = sa.exists().where(
        Task.labeling_project_id == LabelingProject.id, Query.id == Task.query_id, Query.status == QueryStatus.PUSHED
    )
    statement = sa.select(LabelingProject).where(LabelingProject.id != labeling_project_id, waiting)
    return list(session.scalars(statement.order_by(LabelingProject.id)))


def store_prediction(session: Session, prediction: Prediction, *, anew: bool = False) -> Prediction:
    """Insert a prediction, or return the one of the same image and source, with the entropy map where it had lost that.

    anew: with the mask and map of this one, because the file of its own is damaged. A GPU may draw it a little otherwise.
    """
    statement = sa.select(Prediction).where(Prediction.image_id == prediction.image_id, Prediction.source == prediction.source)
    found = session.scalar(statement)
    if found is not None:
        found.entropy_location = found.entropy_location or prediction.entropy_location
        if anew:
            found.mask_location, found.mask_sha256 = prediction.mask_location, prediction.mask_sha256
            found.entropy_location = prediction.entropy_location
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


def drawn(session: Session, source: str, image_ids: Sequence[int]) -> set[int]:
    """Images whose prediction from this source is there with all that it came with.

    Housekeeping takes the entropy map of a checkpoint's prediction away: one that is needed again is drawn again.
    """
    found = predictions_of(session, source, image_ids)
    return {image for image, row in found.items() if row.checkpoint_id is None or row.entropy_location is not None}


def latest_pre_annotation(session: Session, image_ids: Sequence[int]) -> str | None:
    """The source of the youngest prediction of these images that no checkpoint made."""
    youngest: tuple[int, str] | None = None
    for block in blocks(image_ids):
        statement = sa.select(Prediction.id, Prediction.source).where(
            Prediction.checkpoint_id.is_(None), Prediction.image_id.in_(block)
        )
        row = session.execute(statement.order_by(Prediction.id.desc()).limit(1)).first()
        if row is not None and (youngest is None or row.id > youngest[0]):
            youngest = (row.id, row.source)
    return youngest[1] if youngest else None


def leave_without_prediction(session: Session, task_id: int) -> None:
    """A task is sent without the prediction that was planned for it."""
    session.get_one(Task, task_id).prediction_id = None


def shown_sources(session: Session, labeling_project_id: int) -> set[str]:
    """Whose predictions the tasks that a project has were sent with."""
    statement = (
        sa.select(Prediction.source)
        .join(Task, Task.prediction_id == Prediction.id)
        .where(Task.labeling_project_id == labeling_project_id, Task.status == TaskStatus.PUSHED)
    )
    return set(session.scalars(statement.distinct()))


def label_set_of(session: Session, labeling_project: LabelingProject) -> LabelSet:
    """The classes a project was made for."""
    return LabelSet.from_dict(session.get_one(LabelSetRow, labeling_project.label_set_id).definition)


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
    """Calls to a project nobody knows the end of, oldest first."""
    statement = sa.select(PushJournal).where(
        PushJournal.labeling_project_id == labeling_project_id,
        PushJournal.state.in_(UNSETTLED),
    )
    return list(session.scalars(statement.order_by(PushJournal.id)))


def known_tasks(session: Session, labeling_project_id: int, keys: Iterable[str]) -> dict[str, KnownTask]:
    """key -> our task, with its image and the prediction that was shown."""
    found: dict[str, KnownTask] = {}
    for block in blocks(list(keys)):
        statement = (
            sa.select(Task, Image, Prediction.mask_location, Query.cells)
            .join(Query, Query.id == Task.query_id)
            .join(Image, Image.id == Query.image_id)
            .outerjoin(Prediction, Prediction.id == Task.prediction_id)
            .where(Task.labeling_project_id == labeling_project_id, Task.key.in_(block))
        )
        for task, image, location, cells in session.execute(statement):
            ref = ImageRef(image.id, image.uri, image.sha256)
            found[task.key] = KnownTask(task, ref, image.width or 0, image.height or 0, location, cells)
    return found


def task_of_image(session: Session, key: str, sha256: str) -> tuple[Task, ImageRef, list[int] | None] | None:
    """The task of ours that carries this key and shows the image of this checksum, in whatever project.

    With its image and the cells of it that are asked about.
    """
    statement = (
        sa.select(Task, Image, Query.cells)
        .join(Query, Query.id == Task.query_id)
        .join(Image, Image.id == Query.image_id)
        .where(Task.key == key, Image.sha256 == sha256)
        .order_by(Task.id.desc())
        .limit(1)
    )
    found = session.execute(statement).first()
    if found is None:
        return None
    task, image, cells = found
    return task, ImageRef(image.id, image.uri, image.sha256), cells


def move_cursor(session: Session, labeling_project_id: int, until: datetime) -> None:
    """Remember how far pulling got; never backwards."""
    row = session.get_one(LabelingProject, labeling_project_id)
    if row.pulled_until is None or until > row.pulled_until:
        row.pulled_until = until


def largest_picture(session: Session, labeling_project_id: int) -> int:
    """Pixels of the largest picture that a project shows; 0 where it has no task of a known size."""
    shown = Task.shown_width * Task.shown_height
    statement = (
        sa.select(sa.func.max(sa.func.coalesce(shown, Image.width * Image.height)))
        .select_from(Task)
        .join(Query, Query.id == Task.query_id)
        .join(Image, Image.id == Query.image_id)
        .where(Task.labeling_project_id == labeling_project_id)
    )
    return session.scalar(statement) or 0


def count_open_tasks(session: Session, labeling_project_id: int) -> int:
    """Tasks of a project whose images wait for an answer."""
    statement = (
        sa.select(sa.func.count())
        .select_from(Task)
        .join(Query, Query.id == Task.query_id)
        .where(Task.labeling_project_id == labeling_project_id, Query.status == QueryStatus.PUSHED)
    )
    return session.scalar(statement) or 0


def count_tasks_before(session: Session, labeling_project_id: int, round_number: int) -> int:
    """Tasks a project has from earlier rounds: where the shown order of this round's starts."""
    statement = (
        sa.select(sa.func.count())
        .select_from(Task)
        .join(Query, Query.id == Task.query_id)
        .join(Round, Round.id == Query.round_id)
        .where(Task.labeling_project_id == labeling_project_id, Round.number < round_number)
    )
    return session.scalar(statement) or 0
