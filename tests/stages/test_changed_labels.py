"""[labels] changed while annotators were at work: nothing is lost, nothing is mixed up, nothing stands still."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import sqlalchemy as sa
from PIL import Image as Pillow

from activeseg.core.labels import UNLABELED, LabelSet
from activeseg.db import checkpoints, lease, truth
from activeseg.db.models import (
    Annotation,
    AnnotationStatus,
    Checkpoint,
    LabelingProject,
    LabelSetRow,
    Prediction,
    Query,
    QueryStatus,
    Split,
    Task,
)
from activeseg.errors import LabelSetMismatch, LabelStudioUnreachable
from activeseg.labelstudio.regions import mask_to_result
from activeseg.preannotate import PreAnnotator
from activeseg.stages.pool import sync_pool
from activeseg.stages.pull import pull_annotations
from activeseg.stages.score import score_pool
from activeseg.stages.train import train_challenger
from activeseg.workspace import Workspace
from tests.classifiers import annotator_of
from tests.factories import CLASSES
from tests.memory_label_studio import MemoryLabelStudio, push, section

# Seconds, not milliseconds: left out by `make check`.
pytestmark = pytest.mark.slow

Make = Callable[..., Workspace]

SELECTION = {"bootstrap_size": 3, "query_size": 3, "refill_below": 1, "control_share": 0.0}
SKY = mask_to_result(np.zeros((48, 64), np.uint8), CLASSES, kind="brush")


def statuses(workspace: Workspace) -> list[AnnotationStatus]:
    with workspace.database.read() as session:
        return list(session.scalars(sa.select(Annotation.status)))


def without_their_number(planes: npt.NDArray[np.bool_]) -> bytes:
    """Planes as `encode_planes` writes them, but for the text chunk that says how many there are."""
    stream = BytesIO()
    Pillow.fromarray(planes.reshape(-1, planes.shape[2])).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture(params=[True, False], ids=["numbered", "not numbered"])
def planes_on_disk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stored planes say how many they are, or do not."""
    if not request.param:
        monkeypatch.setattr("activeseg.imaging.masks.encode_planes", without_their_number)


@pytest.mark.usefixtures("planes_on_disk")
@pytest.mark.parametrize("added", ["cloud\n", "a\nb\nc\nd\n"])
def test_work_on_pre_annotations_is_pulled_although_the_class_list_grew(
    make_workspace: Make, tmp_path: Path, added: str
) -> None:
    server, common = MemoryLabelStudio(), {"pool": 3, "selection": SELECTION, "labels": {"overlap": True}}
    before = make_workspace(labelstudio=section("one"), **common)
    push(before, server, annotator_of(before))
    for number in server.task_ids(1):
        server.submit(number, server.tasks[number]["predictions"][0]["result"])
    now = make_workspace(labelstudio=section("two"), **common)
    (tmp_path / "classes.txt").write_text(CLASSES.to_text() + added)
    assert pull_annotations(now, server).details == {"valid": 3}
    with now.database.read() as session:
        rows = session.scalars(sa.select(Annotation)).all()
        shown = set(session.scalars(sa.select(Prediction.mask_location)))
        drawn_for = [session.get_one(LabelSetRow, row.label_set_id).definition["names"] for row in rows]
    # Stored as what they are: masks of the classes they were drawn for, like the predictions nobody had to correct.
    assert ([row.changed_share for row in rows], {row.mask_location for row in rows}) == ([0.0] * 3, shown)
    assert drawn_for == [list(CLASSES.names)] * 3
    for row in rows:
        mask = now.read_mask(row.mask_location or "", row.mask_sha256, label_set=before.label_set)
        assert mask.shape == (len(CLASSES.names), 48, 64)


@pytest.mark.parametrize("uncovered", ["ignore", "ball", "cloud"])
def test_masks_of_a_former_project_keep_its_numbering_when_the_classes_are_reordered(
    make_workspace: Make, tmp_path: Path, uncovered: str
) -> None:
    """Two annotators, corrected and untouched work, pixels under no region: all in the numbers of the classes they saw."""
    server, consensus = MemoryLabelStudio(), {"consensus": "majority"}
    common = {"pool": 3, "selection": SELECTION}
    before = make_workspace(labelstudio=section("one") | consensus, **common)
    push(before, server, annotator_of(before))
    untouched, corrected, contested = server.task_ids(1)
    server.submit(untouched, server.tasks[untouched]["predictions"][0]["result"])
    drawn = np.full((48, 64), UNLABELED, np.uint8)
    drawn[:, :20], drawn[:10, 30:] = 2, 1
    server.submit(corrected, mask_to_result(drawn, CLASSES, kind="brush"))
    for person, task in ((1, contested), (2, contested)):
        server.submit(task, mask_to_result(np.full((48, 64), 1, np.uint8), CLASSES, kind="brush"))
        server.tasks[task]["annotations"][-1]["completed_by"] = person
    now = make_workspace(labelstudio=section("two") | consensus | {"uncovered": uncovered}, **common)
    sky, ground, ball, void = CLASSES.to_text().splitlines()
    (tmp_path / "classes.txt").write_text("\n".join((ball, "cloud", void, ground, sky)) + "\n")
    assert now.label_set.names == ("ball", "cloud", "void", "ground", "sky")
    report = pull_annotations(now, server)
    assert report.details == {"valid": 4, "consensus": 1}
    with now.database.read() as session:
        rows = session.scalars(sa.select(Annotation).order_by(Annotation.id)).all()
        drawn_for = {tuple(session.get_one(LabelSetRow, row.label_set_id).definition["names"]) for row in rows}
        prediction = session.scalars(sa.select(Prediction.mask_location).join(Task).where(Task.external_task_id == untouched))
        shown = before.read_mask(prediction.one(), label_set=CLASSES)
    assert drawn_for == {CLASSES.names}
    masks = {row.external_task_id: now.read_mask(row.mask_location or "", row.mask_sha256) for row in rows}
    # 'cloud' is none of the former project's classes: what nobody covered stays unlabelled there.
    fill = CLASSES.names.index("ball") if uncovered == "ball" else UNLABELED
    assert np.array_equal(masks[corrected], np.where(drawn == UNLABELED, np.uint8(fill), drawn))
    assert np.array_equal(masks[untouched], np.where(shown == UNLABELED, np.uint8(fill), shown))
    assert (masks[contested] == 1).all()
    assert (masks[None] == 1).all()
    assert {row.changed_share for row in rows if row.external_task_id == untouched} == {0.0}


@pytest.fixture
def toggled(make_workspace: Make) -> tuple[MemoryLabelStudio, Callable[[bool], Workspace]]:
    """Three answered tasks of exclusive classes, nothing pulled yet; and workspaces with and without overlap."""

    def make(overlap: bool) -> Workspace:
        title = "overlapping" if overlap else "exclusive"
        return make_workspace(pool=3, selection=SELECTION, labels={"overlap": overlap}, labelstudio=section(title))

    server = MemoryLabelStudio()
    push(make(False), server)
    for number in server.task_ids(1):
        server.submit(number, SKY)
    return server, make


Toggled = tuple[MemoryLabelStudio, Callable[[bool], Workspace]]


def test_work_drawn_before_overlap_was_turned_on_waits_and_is_pulled_when_it_is_restored(toggled: Toggled) -> None:
    server, make = toggled
    now = make(True)
    for _ in range(2):
        report = pull_annotations(now, server, full=True)
        ((project, sentence),) = report.details.pop("problems").items()
        assert report.details == {"tasks left alone": 3}
        assert project == "Label Studio project 1 'exclusive'"
        assert "sky, ground, ball, void (void ignored); [labels] has" in sentence
        assert sentence.endswith("or delete the old project in Label Studio; its images then return to the pool")
    with now.database.read() as session:
        assert statuses(now) == []
        assert session.scalar(sa.select(LabelingProject.pulled_until).where(LabelingProject.title == "exclusive")) is None
    restored = make(False)
    assert pull_annotations(restored, server).details == {"valid": 3}
    assert statuses(restored) == [AnnotationStatus.VALID] * 3


def test_images_of_a_project_left_alone_return_to_the_pool_when_it_is_deleted(toggled: Toggled) -> None:
    server, make = toggled
    now = make(True)
    pull_annotations(now, server)
    server.delete_project(1)
    assert pull_annotations(now, server).details == {"tasks deleted": 3}
    push(now, server)
    assert len(server.tasks) == 3
    with now.database.read() as session:
        assert len(session.scalars(sa.select(Query).where(Query.status == QueryStatus.PUSHED)).all()) == 3


def test_a_task_deleted_in_a_project_left_alone_gives_its_image_back(toggled: Toggled) -> None:
    server, make = toggled
    del server.tasks[server.task_ids(1)[0]]
    report = pull_annotations(make(True), server)
    assert report.details.pop("problems")
    assert report.details == {"tasks deleted": 1, "tasks left alone": 3}
    assert pull_annotations(make(True), server).details["tasks left alone"] == 2


def unsent(make_workspace: Make, **sections: Any) -> Workspace:
    """A workspace whose first push died after it had stored its pre-annotations."""
    workspace = make_workspace(pool=3, selection=SELECTION, labelstudio=section("one"), **sections)
    with pytest.raises(LabelStudioUnreachable):
        push(workspace, MemoryLabelStudio(dead=True), annotator_of(workspace))
    return workspace


@pytest.mark.usefixtures("planes_on_disk")
@pytest.mark.parametrize("overlap", [True, False])
def test_masks_stored_before_overlap_was_toggled_are_not_sent(make_workspace: Make, overlap: bool) -> None:
    unsent(make_workspace, labels={"overlap": overlap})
    now = make_workspace(pool=3, selection=SELECTION, labels={"overlap": not overlap}, labelstudio=section("two"))
    server = MemoryLabelStudio()
    assert push(now, server)["push"].written == 3
    assert [task["predictions"] for task in server.tasks.values()] == [[]] * 3
    sky = np.zeros((48, 64), np.uint8) if overlap else np.zeros((len(CLASSES.names), 48, 64), np.bool_)
    for number in server.tasks:
        server.submit(number, mask_to_result(sky, now.label_set, kind="brush"))
    assert pull_annotations(now, server).details == {"valid": 3}
    with now.database.read() as session:
        assert set(session.scalars(sa.select(Task.prediction_id))) == {None}
        assert len(session.scalars(sa.select(Prediction)).all()) == 3
        assert set(session.scalars(sa.select(Annotation.changed_share))) == {None}


def test_a_damaged_stored_mask_leaves_its_task_without_one_and_the_others_as_they_are(make_sqlite_workspace: Make) -> None:
    workspace = unsent(make_sqlite_workspace)
    with workspace.database.read() as session:
        location = session.scalars(sa.select(Prediction.mask_location)).first() or ""
    workspace.artifacts.path(location).write_bytes(b"")
    server = MemoryLabelStudio()
    push(workspace, server)
    assert sorted(len(task["predictions"]) for task in server.tasks.values()) == [0, 1, 1]
    assert server.versions == {1: "graphcut"}


def test_masks_of_a_checkpoint_of_other_classes_are_not_sent_although_they_are_stored(
    make_sqlite_workspace: Make, train_champion: Callable[[Workspace], None], tmp_path: Path
) -> None:
    train_champion(make_sqlite_workspace(pool=3))
    workspace = make_sqlite_workspace(pool=3, selection=SELECTION, labelstudio=section("one"))
    with lease.holding(workspace.database):
        sync_pool(workspace)
        score_pool(workspace)
    with pytest.raises(LabelStudioUnreachable):
        push(workspace, MemoryLabelStudio(dead=True))
    (tmp_path / "classes.txt").write_text(CLASSES.to_text().replace("sky", "heaven"))
    server = MemoryLabelStudio()
    with pytest.raises(LabelSetMismatch, match=r"train a new checkpoint or restore the class list$"):
        push(replace(workspace), server)
    assert server.tasks == {}


def test_pre_annotations_of_two_classifiers_are_shown_side_by_side(make_workspace: Make) -> None:
    workspace = make_workspace(pool=6, selection=SELECTION, labelstudio=section("one"))
    server, first = MemoryLabelStudio(), annotator_of(workspace)
    other = PreAnnotator(replace(first.classifier, name="other"), first.label_set, first.classes, first.device)
    push(workspace, server, first)
    push(workspace, server, other)
    shown = [prediction["model_version"] for task in server.tasks.values() for prediction in task["predictions"]]
    assert shown == [server.versions[1]] * 6
    with workspace.database.read() as session:
        assert set(session.scalars(sa.select(Prediction.source))) == {first.source, other.source}


def test_guesses_for_images_that_were_asked_before_are_shown_again(make_workspace: Make) -> None:
    workspace = make_workspace(pool=3, selection=SELECTION, labelstudio=section("one"))
    server = MemoryLabelStudio()
    push(workspace, server, annotator_of(workspace))
    server.delete_project(1)
    other = make_workspace(pool=3, selection=SELECTION, labelstudio=section("two"))
    pull_annotations(other, server)
    push(other, server)
    assert [len(task["predictions"]) for task in server.tasks.values()] == [1, 1, 1]


def test_masks_drawn_while_void_was_ignored_train_it_when_it_is_included(
    make_workspace: Make, import_balls: Callable[..., None]
) -> None:
    import_balls(make_workspace(pool=1), range(100, 106), Split.TRAIN)
    workspace = make_workspace(pool=1, labels={"include_void": True})
    with lease.holding(workspace.database):
        assert train_challenger(workspace, reason="test").details["images"] == 6
    with workspace.database.read() as session:
        trained = session.scalars(sa.select(Checkpoint)).one()
        items = truth.current(session, split=Split.TRAIN)
    label_set = LabelSet.from_dict(trained.spec["label_set"])
    assert label_set.names[label_set.channels[3]] == "void"
    assert (label_set.to_channels(workspace.read_labeled(items[0])[1]) == 3).any()
    ignoring = make_workspace(pool=1)
    with pytest.raises(LabelSetMismatch, match=r"train a new checkpoint or restore \[labels\] include_void$"):
        checkpoints.require_labels(trained, ignoring.label_set)


def test_masks_drawn_for_exclusive_classes_are_not_trained_where_they_overlap(
    make_sqlite_workspace: Make, import_balls: Callable[..., None]
) -> None:
    import_balls(make_sqlite_workspace(pool=1), range(100, 106), Split.TRAIN)
    workspace = make_sqlite_workspace(pool=1, labels={"overlap": True})
    with lease.holding(workspace.database), pytest.raises(LabelSetMismatch, match=r"restore \[labels\] overlap, or start"):
        train_challenger(workspace, reason="test")
