from __future__ import annotations

import os
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from activeseg.config import Settings
from activeseg.db.database import Database
from activeseg.db.models import Checkpoint, Decision, Model, Prediction, Task, TaskStatus
from activeseg.db.models.columns import now
from activeseg.workspace import Workspace
from tests.db.rows import Rows
from tests.factories import CLASSES

DAY = 24 * 3600.0


class Store(Rows):
    """Rows whose files are there, as old as a test says."""

    def __init__(self, workspace: Workspace) -> None:
        super().__init__(workspace.database)
        self.workspace, self.artifacts = workspace, workspace.artifacts

    def file(self, kind: Any, *, days: float = 60, suffix: str = ".png") -> str:
        """A stored file; returns its location."""
        location = self.artifacts.put(f"bytes {self.next()}".encode(), kind, suffix).location
        self.age(self.artifacts.path(location), days)
        return location

    def age(self, path: Path, days: float) -> None:
        """Make a file that many days old."""
        moment = time.time() - days * DAY
        os.utime(path, (moment, moment))

    def has(self, location: str) -> bool:
        return self.artifacts.path(location).exists()

    def _set(self, kind: type[Model], row: int, **columns: Any) -> None:
        with self.database.write() as session:
            found = session.get_one(kind, row)
            for name, value in columns.items():
                setattr(found, name, value)

    def trained(self, decision: Decision | None = Decision.REFUSED, *, days: float = 60) -> tuple[int, str]:
        """A checkpoint with its file: (id, location)."""
        row, location = self.checkpoint(decision=decision), self.file("checkpoint", days=days, suffix=".safetensors")
        self._set(Checkpoint, row, location=location, sha256=Path(location).stem, created_at=now() - timedelta(days=days))
        return row, location

    def predicted(self, image: int, source: str = "checkpoint:m", *, days: float = 60) -> tuple[int, str, str]:
        """A prediction with its files: (id, mask, map)."""
        mask, entropy = self.file("mask", days=days), self.file("picture", days=days)
        row = Prediction(image_id=image, source=source, mask_location=mask, mask_sha256=Path(mask).stem,
                         entropy_location=entropy, created_at=now() - timedelta(days=days))  # fmt: skip
        return self.add(row), mask, entropy

    def task(self, query: int, prediction: int | None) -> int:
        """A task that was sent."""
        return self.add(Task(labeling_project_id=self.project(self.next()), query_id=query, prediction_id=prediction,
                             key=str(self.next()), external_task_id=self.next(), status=TaskStatus.PUSHED))  # fmt: skip

    def annotated(self, image: int, *, days: float = 60, **columns: Any) -> str:
        """An annotation with its mask."""
        location = self.file("mask", days=days)
        self.annotation(image, mask=location, received_at=now() - timedelta(days=days), **columns)
        return location

    def annotation(self, image: int, *, mask: str | None = None, received_at: Any = None, **columns: Any) -> int:
        from activeseg.db.models import Annotation

        row = super().annotation(image, **columns)
        changes = {"mask_location": mask, "mask_sha256": Path(mask).stem} if mask else {}
        self._set(Annotation, row, **changes, **({"received_at": received_at} if received_at else {}))
        return row


@pytest.fixture
def make_house(tmp_path: Path, database: Database) -> Callable[..., Store]:
    """A workspace without a network: rows, and files of any age. Runs on both databases."""

    def make(**sections: Any) -> Store:
        (tmp_path / "classes.txt").write_text(CLASSES.to_text(), encoding="utf-8")
        url = database.url.render_as_string(hide_password=False)
        tables = {"housekeeping": {"min_free_gb": 0}, "database": {"url": url}} | sections
        store = Store(Workspace(Settings(root=tmp_path, **tables), database))
        store.label_set()
        return store

    return make


@pytest.fixture
def house(make_house: Callable[..., Store]) -> Store:
    """One whose folder has been claimed for long."""
    return claimed(make_house())


def claimed(store: Store, days: float = 90) -> Store:
    """The artifacts folder has been this database's for so many days."""
    import json

    from activeseg.housekeeping import owners

    owner = owners.claim(store.workspace)
    assert owner is not None
    since = now() - timedelta(days=days)
    owner.file.write_text(json.dumps(json.loads(owner.file.read_text()) | {"since": since.isoformat()}))
    return store
