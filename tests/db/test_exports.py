"""What counted at a time is what the view current_annotations said then."""

from __future__ import annotations

import random
from datetime import datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from activeseg.db import exports
from activeseg.db.database import Database
from activeseg.db.models import Annotation, AnnotationStatus, Split, TrainingRun, TrainingRunAnnotation, TrainingStatus
from activeseg.db.truth import CURRENT
from activeseg.errors import DataError
from tests.db.rows import Rows, minutes

VALID, SKIPPED, QUARANTINED, DELETED = AnnotationStatus


def said_by_the_view(database: Database) -> set[tuple[int, str]]:
    with database.read() as session:
        statement = sa.select(CURRENT.c.image_id, Annotation.mask_location)
        return {
            (row[0], row[1]) for row in session.execute(statement.join(Annotation, Annotation.id == CURRENT.c.annotation_id))
        }


def counted_at(database: Database, moment: datetime) -> set[tuple[int, str]]:
    with database.read() as session:
        return {(item.image.image_id, item.mask_location) for item in exports.counted_at(session, moment)}


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_any_history_is_seen_again_at_each_of_its_moments(database: Database, rows: Rows, seed: int) -> None:
    """New annotations, versions that arrive late or out of order, skips, quarantines, imports, consensus rows, deletions."""
    chance = random.Random(seed)
    images, projects = [rows.image() for _ in range(4)], [rows.project(1), rows.project(1, instance="rebuilt server")]
    seen: dict[datetime, set[tuple[int, str]]] = {}
    pulled: list[int] = []
    for step in range(40):
        happen(database, rows, chance, step, images, projects, pulled)
        seen[minutes(step + 0.5)] = said_by_the_view(database)
    assert len({frozenset(state) for state in seen.values()}) > 10
    for moment, state in seen.items():
        assert counted_at(database, moment) == state, moment
    with database.read() as session:
        today = {(item.image.image_id, item.mask_location) for item in exports.counting(session)}
    assert today == said_by_the_view(database) == counted_at(database, minutes(10_000))


def happen(
    database: Database, rows: Rows, chance: random.Random, step: int, images: list[int], projects: list[int], pulled: list[int]
) -> None:
    kind = chance.choice(["pull", "pull", "pull", "import", "delete", "consensus"])
    index = chance.randrange(4)
    values: dict[str, Any] = {"status": chance.choice([VALID, VALID, VALID, SKIPPED, QUARANTINED])}
    if kind == "pull":
        # A number belongs to one image of its project; what is pulled now may have been changed long before.
        outside = (chance.choice(projects), 10 * index + chance.randrange(3))
        row = rows.annotation(images[index], outside=outside, at=step - chance.random() * 5, **values)
        pulled.append(row)
        change(database, row, received_at=minutes(step))
    elif kind == "import":
        rows.annotation(images[index], at=step)
    elif kind == "consensus":
        row = rows.annotation(images[index], outside=None, at=step, consensus_of=[1, 2])
        changed_at = minutes(step - chance.random())
        change(database, row, source="labelstudio", external_updated_at=changed_at, labeling_project_id=projects[0])
        pulled.append(row)
    elif pulled:
        gone = pulled.pop(chance.randrange(len(pulled)))
        change(database, gone, status=DELETED, deleted_at=minutes(step))


def change(database: Database, row: int, **values: Any) -> None:
    with database.write() as session:
        session.execute(sa.update(Annotation).where(Annotation.id == row).values(**values))


def test_a_moment_counts_to_the_microsecond(database: Database, rows: Rows) -> None:
    image = rows.image()
    row = rows.annotation(image, at=1)
    change(database, row, status=DELETED, deleted_at=minutes(2))
    just = timedelta(microseconds=1)
    assert [len(counted_at(database, minutes(1) + step)) for step in (-just, 0 * just, just)] == [0, 1, 1]
    assert [len(counted_at(database, minutes(2) + step)) for step in (-just, 0 * just, just)] == [1, 0, 0]


def test_a_training_gives_the_very_annotations_it_was_given(database: Database, rows: Rows) -> None:
    images = [rows.image(split=Split.TRAIN), rows.image(split=Split.TRAIN), rows.image(split=Split.VAL)]
    seen = [rows.annotation(image, at=1) for image in images]
    for image in images:
        rows.annotation(image, at=2)
    change(database, seen[1], status=DELETED, deleted_at=minutes(3))
    with database.write() as session:
        run = TrainingRun(
            status=TrainingStatus.DONE, reason="x", configuration={"validation": seen[2:]}, code_version="0",
            label_set_id=rows.label_set(), num_images=2,
        )  # fmt: skip
        session.add(run)
        session.flush()
        session.add_all(TrainingRunAnnotation(training_run_id=run.id, annotation_id=row) for row in seen[:2])
    with database.read() as session:
        found = exports.seen_by(session, exports.require_training(session, run.id))
    assert [(item.image.image_id, item.split) for item in found] == list(zip(images, ["train", "train", "val"], strict=True))
    with database.write() as session:
        session.get_one(TrainingRun, run.id).configuration = {"validation": [10_000]}
    with (
        database.read() as session,
        pytest.raises(DataError, match="1 annotations of this training are gone from the database"),
    ):
        exports.seen_by(session, exports.require_training(session, run.id))
