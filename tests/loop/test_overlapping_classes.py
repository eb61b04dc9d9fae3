"""Classes that overlap keep their overlaps on the way to annotators and back, and are what the network learns."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
from PIL import Image as Pillow

from activeseg.core.masks import changed_share
from activeseg.db import checkpoints, truth
from activeseg.db.models import Annotation, AnnotationStatus, Evaluation, Prediction, Query, Split, Task, TrainingStatus
from activeseg.imaging.masks import encode_planes
from activeseg.labelstudio.labeling import config_overlap
from activeseg.labelstudio.registration import open_client, open_project
from activeseg.loop import advance_round
from activeseg.nn.checkpoint import load_checkpoint
from activeseg.stages.dataset import import_dataset
from activeseg.stages.pull import pull_annotations
from activeseg.workspace import Workspace
from tests.factories import overlapping, write_balls, write_class_folders

pytestmark = [pytest.mark.labelstudio, pytest.mark.slow]

SELECTION = {"bootstrap_size": 4, "query_size": 4, "refill_below": 1, "control_share": 0.0}


@pytest.fixture
def overlapping_workspace(make_sqlite_workspace: Callable[..., Workspace], tmp_path: Path) -> Callable[..., Workspace]:
    """A workspace whose classes overlap, with labelled images and known planes for the annotator."""

    def make(**sections: Any) -> Workspace:
        workspace = make_sqlite_workspace(pool=8, labels={"overlap": True}, selection=SELECTION, **sections)
        for split, seeds in ((Split.TRAIN, range(100, 106)), (Split.VAL, range(200, 202))):
            images, masks, planes = (tmp_path / f"{split}-{kind}" for kind in ("images", "masks", "planes"))
            write_balls(images, seeds, masks=masks)
            write_class_folders(masks, planes)
            assert import_dataset(workspace, str(images), planes, split).failed == 0
        for file in (tmp_path / "truth").glob("*.png"):
            file.write_bytes(encode_planes(overlapping(np.asarray(Pillow.open(file)))))
        return workspace

    return make


@pytest.mark.parametrize("kind", ["brush", "bitmask"])
def test_overlapping_masks_come_back_as_they_were_submitted_and_are_trained_on(
    overlapping_workspace: Callable[..., Workspace],
    with_label_studio: dict[str, Any],
    annotate: Callable[..., None],
    tmp_path: Path,
    kind: str,
) -> None:
    workspace = overlapping_workspace(labelstudio=with_label_studio | {"mask_kind": kind})
    known = {file.stem: workspace_planes(file) for file in (tmp_path / "truth").glob("*.png")}
    with open_client(workspace.settings) as client:
        advance_round(workspace, client)
        with workspace.database.read() as session:
            first = checkpoints.require_champion(session)
        assert load_checkpoint(workspace.artifacts.read(first.location), model_version="", device="cpu").spec.head == "sigmoid"
        assert config_overlap(client.get_project(open_project(workspace, client).external_project_id).config)
        annotate(workspace, client, "--seed", "3")
        assert pull_annotations(workspace, client).details == {"valid": 3, "skipped": 1}

    with workspace.database.read() as session:
        rows = session.scalars(sa.select(Annotation).where(Annotation.external_task_id.is_not(None))).all()
        names = {item.annotation_id: Path(item.image.uri).stem for item in truth.current(session)}
        shown = {
            query: workspace.read_mask(location)
            for query, location in session.execute(
                sa.select(Query.id, Prediction.mask_location)
                .join(Task, Task.query_id == Query.id)
                .join(Prediction, Prediction.id == Task.prediction_id)
            )
        }
    kept = {row.id: row for row in rows if row.status == AnnotationStatus.VALID}
    corrected, overlaps = 0, 0
    for row in kept.values():
        mask = workspace.read_mask(row.mask_location or "", row.mask_sha256)
        right = np.array_equal(mask, known[names[row.id]])
        assert right or np.array_equal(mask, shown[row.query_id or 0]), "neither the truth nor the prediction left as it was"
        assert row.changed_share == pytest.approx(changed_share(shown[row.query_id or 0], mask))
        corrected += right
        overlaps += int((mask[1] & mask[2]).sum() + (mask[0] & mask[2]).sum())
    assert corrected == 2
    assert overlaps > 50

    with open_client(workspace.settings) as client:
        advance_round(workspace, client, open_new=False)
    with workspace.database.read() as session:
        run = checkpoints.latest_training(session)
        assert run is not None
        assert (run.status, run.num_images) == (TrainingStatus.DONE, 9)
        assert set(kept) < set(checkpoints.annotations_of(session, run.id))
        measured = session.scalars(sa.select(Evaluation.metric).where(Evaluation.checkpoint_id == run.checkpoint_id))
        assert {"mean_iou", "iou"} <= set(measured)


def workspace_planes(file: Path) -> np.ndarray:
    """(4, H, W) bool of a file of planes, read without the program's own reader."""
    stacked = np.asarray(Pillow.open(file))
    return stacked.reshape(4, -1, stacked.shape[1]).astype(bool)


def test_work_in_a_project_of_exclusive_classes_waits_where_they_overlap_now_and_is_not_lost(
    make_sqlite_workspace: Callable[..., Workspace], with_label_studio: dict[str, Any], annotate: Callable[..., None]
) -> None:
    sections = {"selection": SELECTION, "labelstudio": with_label_studio}
    exclusive = make_sqlite_workspace(pool=4, **sections)
    with open_client(exclusive.settings) as client:
        advance_round(exclusive, client)
        annotate(exclusive, client)
        sections["labelstudio"] = with_label_studio | {"project": with_label_studio["project"] + " overlap"}
        now = make_sqlite_workspace(pool=4, labels={"overlap": True}, **sections)
        left = pull_annotations(now, client)
        with now.database.read() as session:
            assert session.scalars(sa.select(Annotation)).all() == []
        restored = pull_annotations(exclusive, client)
    assert left.details["tasks left alone"] == 4
    (reason,) = left.details["problems"].values()
    assert "drawn for the classes sky, ground, ball, void (void ignored); [labels] has sky, ground, ball, void" in reason
    assert restored.details == {"valid": 3, "skipped": 1}
