"""Two databases count as the same where only numbers, moments and names of versions differ, and as different elsewhere."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from activeseg.db.database import Database
from activeseg.db.embeddings import FEATURES
from activeseg.db.models import (
    Annotation,
    AnnotationSource,
    AnnotationStatus,
    Checkpoint,
    Embedder,
    Prediction,
    ScoringConfig,
    TrainingRun,
    TrainingRunAnnotation,
    TrainingStatus,
)
from scripts.canonical import canonical_dump, differences
from tests.db.rows import Rows

Fill = Callable[..., Database]


@pytest.fixture
def fill(migrated_sqlite: Path, tmp_path: Path) -> Iterator[Fill]:
    """Databases with two annotated images, a training on them, its checkpoint and what that predicts."""
    opened: list[Database] = []

    def run(*, skipped: int = 0, failed: int = 0, swapped: bool = False, changed: float = 0.5) -> Database:
        """skipped: numbers that rolled back transactions took. failed: trainings that came to nothing. swapped: it learns
        from the other annotation."""
        file = tmp_path / f"{len(opened)}.db"
        shutil.copyfile(migrated_sqlite, file)
        opened.append(database := Database(f"sqlite:///{file}"))
        rows = Rows(database)
        labels = rows.label_set()
        images = [rows.image(id=skipped + number, uri=f"file:///pool/{number}.png") for number in (1, 2)]
        marks = [_annotate(rows, skipped + place, image, labels, changed * place) for place, image in enumerate(images, 1)]
        learns, validates = reversed(marks) if swapped else marks
        for number in range(1, failed + 1):
            _train(rows, number, labels, TrainingStatus.FAILED, learns, validates)
        training = skipped + failed + 1
        weights = {"location": "checkpoint/x", "sha256": "0" * 64, "architecture": "fcn", "spec": {}, "label_set_id": labels}
        version = f"fcn-{training:04d}"
        checkpoint = rows.add(Checkpoint(id=skipped + 1, model_version=version, **weights))
        _train(rows, training, labels, TrainingStatus.DONE, learns, validates, checkpoint)
        shown = {"mask_location": "mask/x", "mask_sha256": "0" * 64, "checkpoint_id": checkpoint}
        config = rows.add(ScoringConfig(id=skipped + 1, checkpoint_id=checkpoint, fingerprint="0" * 64, definition={}))
        rows.add(Embedder(name=FEATURES.format(config), scoring_config_id=config))
        rows.add(Prediction(image_id=images[0], source=f"checkpoint:{version}", **shown))
        return database

    yield run
    for database in opened:
        database.close()


def _annotate(rows: Rows, number: int, image: int, labels: int, changed: float) -> int:
    kind = {"source": AnnotationSource.IMPORT, "status": AnnotationStatus.VALID, "label_set_id": labels}
    return rows.add(Annotation(id=number, image_id=image, mask_location="mask/x", changed_share=changed, **kind))


def _train(
    rows: Rows, number: int, labels: int, status: TrainingStatus, learns: int, validates: int, checkpoint: int | None = None
) -> None:
    fixed = {"reason": "2 new", "code_version": "1", "label_set_id": labels, "num_images": 1}
    configuration = {"validation": [validates]}
    rows.add(TrainingRun(id=number, status=status, configuration=configuration, checkpoint_id=checkpoint, **fixed))
    rows.add(TrainingRunAnnotation(training_run_id=number, annotation_id=learns))


def test_numbers_that_were_skipped_and_names_made_of_them_are_no_difference(fill: Fill) -> None:
    plain, skipping = canonical_dump(fill()), canonical_dump(fill(skipped=7))
    assert differences(plain, skipping) == {}
    assert len(plain["annotations"]) == 2


def test_a_training_that_came_to_nothing_is_a_difference_unless_it_is_left_out(fill: Fill) -> None:
    plain, failing = fill(), fill(failed=2)
    assert set(differences(canonical_dump(plain), canonical_dump(failing))) >= {"training_runs", "training_run_annotations"}
    dumps = [canonical_dump(one, failed_trainings=False) for one in (plain, failing)]
    assert differences(*dumps) == {}


def test_learning_from_another_annotation_is_a_difference(fill: Fill) -> None:
    found = differences(canonical_dump(fill()), canonical_dump(fill(swapped=True)))
    assert set(found) == {"training_runs", "training_run_annotations"}


def test_another_value_is_a_difference_and_both_rows_are_told(fill: Fill) -> None:
    found = differences(canonical_dump(fill()), canonical_dump(fill(changed=0.25)))
    assert set(found) == {"annotations"}
    assert len(found["annotations"]["only first"]) == 2
