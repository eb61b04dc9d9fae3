"""A pushed round on a Label Studio in memory, and people who annotate it: for tests of what pull makes of their work."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import sqlalchemy as sa

from activeseg.core.labels import Mask
from activeseg.db import truth
from activeseg.db.models import Annotation, AnnotationStatus, Image, Prediction, Query, Task
from activeseg.labelstudio.regions import mask_to_result
from activeseg.records import StageReport
from activeseg.stages.pull import pull_annotations
from activeseg.workspace import Workspace
from tests.memory_label_studio import MemoryLabelStudio, push, section

HEIGHT, WIDTH = 48, 64


def plain(value: int, height: int = HEIGHT, width: int = WIDTH) -> Mask:
    """A mask of one class."""
    return np.full((height, width), value, np.uint8)


def halves(left: int, right: int) -> Mask:
    """A mask of two classes side by side."""
    mask = plain(left)
    mask[:, WIDTH // 2 :] = right
    return mask


@dataclass
class Site:
    """A workspace whose first round was pushed. tasks: the numbers of its tasks."""

    make: Callable[..., Workspace]
    sections: Mapping[str, Any] = field(default_factory=dict)
    images: int = 3
    server: MemoryLabelStudio = field(default_factory=MemoryLabelStudio)

    def __post_init__(self) -> None:
        self.workspace = self.with_settings()
        push(self.workspace, self.server)
        self.tasks = self.server.task_ids(1)
        self.clock = datetime.now(UTC).replace(microsecond=0) - timedelta(hours=1)
        for task in self.tasks:
            self.server.tasks[task]["updated"] = self.clock

    def with_settings(self, **labelstudio: Any) -> Workspace:
        """The same site with other settings of [labelstudio]; used from now on."""
        selection = {"bootstrap_size": self.images, "query_size": self.images, "refill_below": 1, "control_share": 0.0}
        tables = {"selection": selection} | dict(self.sections)
        tables["labelstudio"] = section("pulled") | dict(tables.get("labelstudio", {})) | labelstudio
        self.workspace = self.make(pool=self.images, **tables)
        return self.workspace

    def result(self, mask: Mask, origin: str = "manual") -> list[dict[str, Any]]:
        """The regions of a mask, as a person's page sends them."""
        regions = mask_to_result(mask, self.workspace.label_set, kind="bitmask")
        return [region | {"origin": origin} for region in regions]

    def tick(self) -> datetime:
        """The next moment, a minute later."""
        self.clock += timedelta(minutes=1)
        return self.clock

    def submit(self, task: int, result: Any, person: Any = 1, **fields: Any) -> dict[str, Any]:
        """A person submits an annotation; it may be changed later by `edit`."""
        item = {"id": next(self.server._numbers), "completed_by": person, "was_cancelled": False, "result": result}
        self.server.tasks[task]["annotations"].append(item)
        return self.edit(task, item, **fields)

    def edit(self, task: int, item: dict[str, Any], **fields: Any) -> dict[str, Any]:
        """An annotation of a task is changed."""
        moment = self.tick()
        item |= {"updated_at": moment.isoformat()} | fields
        self.server.tasks[task]["updated"] = moment
        return item

    def delete(self, task: int, item: dict[str, Any]) -> None:
        """An annotation of a task is deleted."""
        self.server.tasks[task]["annotations"].remove(item)
        self.server.tasks[task]["updated"] = self.tick()

    def show(self, task: int, mask: Mask, shown: tuple[int, int] | None = None) -> None:
        """Say that a task was shown with this prediction, at this size (height, width)."""
        stored = self.workspace.store_mask(mask)
        with self.workspace.database.write() as session:
            row = session.scalars(sa.select(Task).where(Task.external_task_id == task)).one()
            query = session.get_one(Query, row.query_id)
            prediction = Prediction(
                image_id=query.image_id, source="test", mask_location=stored.location, mask_sha256=stored.sha256
            )
            session.add(prediction)
            session.flush()
            row.prediction_id = prediction.id
            if shown is not None:
                row.shown_height, row.shown_width = shown

    def resize(self, task: int, height: int, width: int) -> None:
        """Say that a task's image has another size."""
        with self.workspace.database.write() as session:
            row = session.scalars(sa.select(Task).where(Task.external_task_id == task)).one()
            image = session.get_one(Image, session.get_one(Query, row.query_id).image_id)
            image.height, image.width = height, width
            row.shown_height = row.shown_width = None

    def pull(self, *, full: bool = False) -> StageReport:
        """Collect what was submitted."""
        return pull_annotations(self.workspace, self.server, full=full)  # type: ignore[arg-type]

    def rows(self, *statuses: AnnotationStatus) -> list[Annotation]:
        """The rows of annotations by id, of all or some statuses."""
        with self.workspace.database.read() as session:
            found = session.scalars(sa.select(Annotation).order_by(Annotation.id)).all()
        return [row for row in found if not statuses or row.status in statuses]

    def counting(self) -> list[Mask]:
        """The masks that count, by image."""
        with self.workspace.database.read() as session:
            return [self.workspace.read_mask(item.mask_location, item.mask_sha256) for item in truth.current(session)]

    def mask_of(self, row: Annotation) -> Mask:
        """The mask of a row."""
        return self.workspace.read_mask(row.mask_location or "", row.mask_sha256)


def reasons(rows: Sequence[Annotation]) -> list[str]:
    """Why rows were quarantined."""
    return [row.reason or "" for row in rows]
