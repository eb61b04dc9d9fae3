"""Labelled images come in with masks that fit, or not at all."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa
from PIL import Image as Pillow

from activeseg.db import candidates, truth, unlabelled
from activeseg.db.models import Annotation, Image, Round, RoundStatus, Split
from activeseg.db.status import read_status
from activeseg.errors import ConfigError, ImageError, NotReadyError, SourceGoneError
from activeseg.stages.dataset import import_dataset
from activeseg.stages.pool import sync_pool
from activeseg.stages.rank import choose_images
from activeseg.stages.split import assign_splits
from activeseg.workspace import Workspace
from tests.db.rows import Rows
from tests.factories import CLASSES, write_balls, write_class_folders

Make = Callable[..., Workspace]


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    images, masks = tmp_path / "labelled", tmp_path / "masks"
    write_balls(images, range(4), masks=masks)
    return images, masks


def test_imported_masks_count_and_importing_again_writes_nothing(make_workspace: Make, folders: tuple[Path, Path]) -> None:
    workspace = make_workspace()
    assert import_dataset(workspace, str(folders[0]), folders[1], Split.TRAIN).written == 4
    assert import_dataset(workspace, str(folders[0]), folders[1], Split.TRAIN).written == 0
    with workspace.database.read() as session:
        current = truth.current(session, split=Split.TRAIN)
    assert len(current) == 4
    for item in current:
        known = np.asarray(Pillow.open(folders[1] / Path(item.image.uri).name))
        assert np.array_equal(workspace.read_labeled(item)[1], known)


def test_a_changed_mask_is_a_new_version_that_counts(make_workspace: Make, folders: tuple[Path, Path]) -> None:
    workspace = make_workspace()
    import_dataset(workspace, str(folders[0]), folders[1], Split.TRAIN)
    Pillow.fromarray(np.ones((48, 64), np.uint8)).save(folders[1] / "ball_0002.png")
    assert import_dataset(workspace, str(folders[0]), folders[1], Split.TRAIN).written == 1
    with workspace.database.read() as session:
        assert len(session.scalars(sa.select(Annotation)).all()) == 5
        newest = truth.current(session, split=Split.TRAIN)[2]
    assert (workspace.read_labeled(newest)[1] == 1).all()


def test_a_file_whose_content_changed_takes_the_place_of_what_it_was(make_workspace: Make, folders: tuple[Path, Path]) -> None:
    workspace = make_workspace()
    import_dataset(workspace, str(folders[0]), folders[1], Split.TRAIN)
    (folders[0] / "ball_0001.png").write_bytes((folders[0] / "ball_0002.png").read_bytes() + b"later")
    assert import_dataset(workspace, str(folders[0]), folders[1], Split.TRAIN).written == 1
    with workspace.database.read() as session:
        current = truth.current(session, split=Split.TRAIN)
    assert len(current) == 4
    for item in current:
        workspace.read_labeled(item)  # every one can be read: nothing asks for the content that is gone


def test_a_file_that_is_put_back_to_what_it_was_counts_again(make_workspace: Make, folders: tuple[Path, Path]) -> None:
    workspace, file = make_workspace(), folders[0] / "ball_0001.png"
    first = file.read_bytes()
    for content in (first, first + b"later", first):
        file.write_bytes(content)
        import_dataset(workspace, str(folders[0]), folders[1], Split.TRAIN)
    with workspace.database.read() as session:
        current = truth.current(session, split=Split.TRAIN)
    assert len(current) == 4
    for item in current:
        workspace.read_labeled(item)  # every one can be read: nothing asks for the content that is gone


@pytest.mark.parametrize("left", ["an empty folder", "nothing"])
def test_an_imported_data_set_that_was_removed_is_so_many_bad_images_and_a_fault_of_the_machine_is_none(
    make_workspace: Make, folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, left: str
) -> None:
    workspace = make_workspace()
    import_dataset(workspace, str(folders[0]), folders[1], Split.TRAIN)
    with workspace.database.read() as session:
        [item, *_] = truth.current(session, split=Split.TRAIN)
    with monkeypatch.context() as patch:
        patch.setattr("activeseg.storage.local.read_file", too_many_files)
        with pytest.raises(SourceGoneError, match="Too many open files"):
            workspace.read_bytes(item.image)
    shutil.rmtree(folders[0])
    if left == "an empty folder":
        folders[0].mkdir()
    with pytest.raises(ImageError, match="its folder outside the pool is gone"):
        workspace.read_bytes(item.image)


def too_many_files(*arguments: object) -> bytes:
    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


def test_a_file_that_changed_may_not_move_from_validation_to_training(make_workspace: Make, folders: tuple[Path, Path]) -> None:
    workspace = make_workspace()
    import_dataset(workspace, str(folders[0]), folders[1], Split.VAL)
    (folders[0] / "ball_0001.png").write_bytes((folders[0] / "ball_0001.png").read_bytes() + b"later")
    report = import_dataset(workspace, str(folders[0]), folders[1], Split.TRAIN)
    assert report.failed == 4
    assert all("it cannot move" in problem for problem in report.details["problems"].values())


def test_going_back_to_an_earlier_mask_counts(make_workspace: Make, folders: tuple[Path, Path]) -> None:
    workspace = make_workspace()
    file = folders[1] / "ball_0002.png"
    right = file.read_bytes()
    import_dataset(workspace, str(folders[0]), folders[1], Split.TRAIN)
    Pillow.fromarray(np.ones((48, 64), np.uint8)).save(file)
    import_dataset(workspace, str(folders[0]), folders[1], Split.TRAIN)
    file.write_bytes(right)
    assert import_dataset(workspace, str(folders[0]), folders[1], Split.TRAIN).written == 1
    with workspace.database.read() as session:
        newest = truth.current(session, split=Split.TRAIN)[2]
    assert np.array_equal(workspace.read_labeled(newest)[1], np.asarray(Pillow.open(file)))


@pytest.mark.parametrize(
    ("mask", "told"),
    [
        (Pillow.fromarray(np.zeros((10, 10), np.uint8)), "mask ball_0001.png is 10x10, its image 64x48"),
        (Pillow.fromarray(np.full((48, 64), 77, np.uint8)), r"mask values \[77\] are not classes"),
        (Pillow.new("RGB", (64, 48)), "RGB"),
        (Pillow.fromarray(np.full((48, 64), 255, np.uint8)), "no pixel has a class"),
        (None, "no mask ball_0001.png"),
    ],
)
def test_a_pair_that_does_not_fit_is_left_out_with_its_reason(
    make_sqlite_workspace: Make, folders: tuple[Path, Path], mask: Pillow.Image | None, told: str
) -> None:
    workspace = make_sqlite_workspace()
    (folders[1] / "ball_0001.png").unlink()
    if mask is not None:
        mask.save(folders[1] / "ball_0001.png")
    report = import_dataset(workspace, str(folders[0]), folders[1], Split.TRAIN)
    assert (report.written, report.failed) == (3, 1)
    ((uri, reason),) = report.details["problems"].items()
    assert uri.endswith("ball_0001.png")
    assert re.search(told, reason), reason


def test_validation_images_never_become_training_images(make_sqlite_workspace: Make, folders: tuple[Path, Path]) -> None:
    workspace = make_sqlite_workspace()
    import_dataset(workspace, str(folders[0]), folders[1], Split.VAL)
    report = import_dataset(workspace, str(folders[0]), folders[1], Split.TRAIN)
    assert report.failed == 4
    with workspace.database.read() as session:
        assert set(session.scalars(sa.select(Image.split))) == {Split.VAL}


def test_missing_folders_and_empty_ones_say_so(make_sqlite_workspace: Make, folders: tuple[Path, Path], tmp_path: Path) -> None:
    workspace = make_sqlite_workspace()
    with pytest.raises(ConfigError, match="mask folder"):
        import_dataset(workspace, str(folders[0]), tmp_path / "nowhere", Split.TRAIN)
    with pytest.raises(ConfigError, match="does not exist"):
        import_dataset(workspace, str(tmp_path / "nowhere"), folders[1], Split.TRAIN)
    (tmp_path / "void").mkdir()
    with pytest.raises(NotReadyError, match="no images"):
        import_dataset(workspace, str(tmp_path / "void"), folders[1], Split.TRAIN)


@pytest.fixture
def class_folders(folders: tuple[Path, Path], tmp_path: Path) -> tuple[Path, Path]:
    planes = tmp_path / "planes"
    write_class_folders(folders[1], planes)
    return folders[0], planes


OVERLAP = {"labels": {"overlap": True}}


def test_masks_of_overlapping_classes_come_from_a_folder_for_each_class(
    make_workspace: Make, class_folders: tuple[Path, Path]
) -> None:
    workspace = make_workspace(**OVERLAP)
    (class_folders[1] / "sky" / "ball_0003.png").unlink()
    assert import_dataset(workspace, str(class_folders[0]), class_folders[1], Split.TRAIN).written == 4
    assert import_dataset(workspace, str(class_folders[0]), class_folders[1], Split.TRAIN).written == 0
    with workspace.database.read() as session:
        current = truth.current(session, split=Split.TRAIN)
    masks = [workspace.read_labeled(item)[1] for item in current]
    for item, mask in zip(current, masks, strict=True):
        name = Path(item.image.uri).name
        for index, class_name in enumerate(CLASSES.names):
            file = class_folders[1] / class_name / name
            known = np.asarray(Pillow.open(file)) > 0 if file.exists() else np.zeros((48, 64), bool)
            assert np.array_equal(mask[index], known), (class_name, name)
    assert not masks[3][0].any(), "a class without a file is absent"
    assert any((mask[1] & mask[2]).any() for mask in masks), "a ball lies on the ground"


@pytest.mark.parametrize("change", ["other content", "one less"])
def test_a_change_in_one_of_an_images_files_is_a_new_version(
    make_sqlite_workspace: Make, class_folders: tuple[Path, Path], change: str
) -> None:
    workspace = make_sqlite_workspace(**OVERLAP)
    import_dataset(workspace, str(class_folders[0]), class_folders[1], Split.TRAIN)
    file = class_folders[1] / "ball" / "ball_0002.png"
    if change == "one less":
        file.unlink()
    else:
        Pillow.new("L", (64, 48), 255).save(file)
    assert import_dataset(workspace, str(class_folders[0]), class_folders[1], Split.TRAIN).written == 1
    with workspace.database.read() as session:
        newest = truth.current(session, split=Split.TRAIN)[2]
    assert workspace.read_labeled(newest)[1][2].all() == (change != "one less")


@pytest.mark.parametrize(
    ("mask", "told"),
    [
        (Pillow.new("1", (10, 10)), "mask ball/ball_0001.png is 10x10, its image 64x48"),
        (Pillow.new("RGB", (64, 48)), "ball/ball_0001.png: mask is an RGB picture; save it as a 1-bit"),
        (None, "no mask ball_0001.png in any class folder; where an image has none of the classes"),
    ],
)
def test_planes_that_do_not_fit_are_left_out_with_their_reason(
    make_sqlite_workspace: Make, class_folders: tuple[Path, Path], mask: Pillow.Image | None, told: str
) -> None:
    workspace = make_sqlite_workspace(**OVERLAP)
    if mask is not None:
        mask.save(class_folders[1] / "ball" / "ball_0001.png")
    else:
        for file in class_folders[1].glob("*/ball_0001.png"):
            file.unlink()
    report = import_dataset(workspace, str(class_folders[0]), class_folders[1], Split.TRAIN)
    assert (report.written, report.failed) == (3, 1)
    assert told in next(iter(report.details["problems"].values()))


def test_an_empty_mask_says_that_an_image_has_none_of_the_classes(
    make_sqlite_workspace: Make, class_folders: tuple[Path, Path]
) -> None:
    workspace = make_sqlite_workspace(**OVERLAP)
    for file in class_folders[1].glob("*/ball_0001.png"):
        file.unlink()
    Pillow.new("1", (64, 48)).save(class_folders[1] / "ball" / "ball_0001.png")
    assert import_dataset(workspace, str(class_folders[0]), class_folders[1], Split.TRAIN).written == 4
    with workspace.database.read() as session:
        empty = truth.current(session, split=Split.TRAIN)[1]
    assert not workspace.read_labeled(empty)[1].any()


def test_answers_without_a_mask_for_any_image_are_told_from_a_folder_without_images(
    make_sqlite_workspace: Make, folders: tuple[Path, Path], tmp_path: Path
) -> None:
    workspace, nowhere = make_sqlite_workspace(), tmp_path / "nowhere"
    nowhere.mkdir()
    with pytest.raises(NotReadyError, match=f"none of the 4 images in {folders[0]} has a mask in {nowhere}"):
        import_dataset(workspace, str(folders[0]), nowhere, None)
    with pytest.raises(NotReadyError, match=f"no images in {nowhere}"):
        import_dataset(workspace, str(nowhere), folders[1], None)


@pytest.mark.parametrize(("forgotten", "sections"), [("ball", {}), ("void", {"include_void": True})])
def test_a_class_whose_folder_was_forgotten_stops_the_import(
    make_sqlite_workspace: Make, class_folders: tuple[Path, Path], forgotten: str, sections: dict[str, bool]
) -> None:
    workspace = make_sqlite_workspace(labels={"overlap": True} | sections)
    shutil.rmtree(class_folders[1] / forgotten)
    with pytest.raises(ConfigError, match=f"has no folder {forgotten}: make an empty one for a class that is in none of the"):
        import_dataset(workspace, str(class_folders[0]), class_folders[1], Split.TRAIN)
    (class_folders[1] / forgotten).mkdir()
    assert import_dataset(workspace, str(class_folders[0]), class_folders[1], Split.TRAIN).written == 4


def test_the_ignored_class_needs_no_folder(make_sqlite_workspace: Make, class_folders: tuple[Path, Path]) -> None:
    shutil.rmtree(class_folders[1] / "void")
    report = import_dataset(make_sqlite_workspace(**OVERLAP), str(class_folders[0]), class_folders[1], Split.TRAIN)
    assert (report.written, report.failed) == (4, 0)


def test_class_folders_are_refused_where_classes_exclude_each_other(
    make_sqlite_workspace: Make, class_folders: tuple[Path, Path]
) -> None:
    with pytest.raises(ConfigError, match=r"folders named like classes \(sky, ground, ball, void\): set \[labels\] overlap"):
        import_dataset(make_sqlite_workspace(), str(class_folders[0]), class_folders[1], Split.TRAIN)


def test_folders_that_are_no_class_are_refused_with_the_known_ones(
    make_sqlite_workspace: Make, folders: tuple[Path, Path], class_folders: tuple[Path, Path]
) -> None:
    workspace = make_sqlite_workspace(**OVERLAP)
    with pytest.raises(ConfigError, match=r"a folder of masks for each class \(sky, ground, ball, void\).*; got none"):
        import_dataset(workspace, str(folders[0]), folders[1], Split.TRAIN)
    (class_folders[1] / "cloud").mkdir()
    (class_folders[1] / ".cache").mkdir()
    with pytest.raises(ConfigError, match=r"; got cloud$"):
        import_dataset(workspace, str(class_folders[0]), class_folders[1], Split.TRAIN)
    with workspace.database.read() as session:
        assert session.scalars(sa.select(Annotation)).all() == []


CLIPS = {"pool_section": {"group_pattern": r"ball_(\d{3})\d"}}
"""Ten frames are a clip: ball_0010 to ball_0019 are clip 001."""


@pytest.fixture
def import_frames(tmp_path: Path) -> Callable[..., dict[str, object]]:
    """Draw frames with these numbers outside of the pool and import them; the report's details."""

    def run(workspace: Workspace, frames: range, split: Split) -> dict[str, object]:
        images, masks = tmp_path / f"{split}/images", tmp_path / f"{split}/masks"
        write_balls(images, frames, masks=masks)
        return import_dataset(workspace, str(images), masks, split).details

    return run


def groups_of(workspace: Workspace) -> dict[str, str | None]:
    """By file name."""
    with workspace.database.read() as session:
        return {uri.rpartition("/")[2]: group for uri, group in session.execute(sa.select(Image.uri, Image.group_name))}


def test_pool_frames_of_an_imported_validation_clip_are_never_asked_about_nor_trained_on(
    make_workspace: Make, import_frames: Callable[..., object], tmp_path: Path
) -> None:
    workspace = make_workspace(pool=12, training={"min_train": 2}, **CLIPS)
    import_frames(workspace, range(12, 14), Split.VAL)
    sync_pool(workspace)
    with workspace.database.read() as session:
        assert set(candidates.unscored_candidates(session).values()) == {"000"}
        assert len(unlabelled.draw(session, 100, seed=0)) == 10
    # Asked about before the clip was imported, say: the answers are not lost, and teach nothing.
    import_dataset(workspace, str(tmp_path / "pool"), tmp_path / "truth", None)
    assert assign_splits(workspace).details == {"train": 10, "val": 0, "test": 2}


def test_frames_near_an_imported_training_frame_are_not_asked_about(
    make_workspace: Make, import_frames: Callable[..., object]
) -> None:
    workspace = make_workspace(pool=8, **CLIPS)
    sync_pool(workspace)
    import_frames(workspace, range(8, 9), Split.TRAIN)
    rows = Rows(workspace.database)
    config = rows.config(rows.checkpoint())
    with workspace.database.read() as session:
        frames = {image_id: int(Path(uri).stem[-4:]) for image_id, uri in session.execute(sa.select(Image.id, Image.uri))}
    for image_id, frame in frames.items():
        if frame < 8:  # the nearer to the imported one, the more in doubt
            rows.score(config, image_id, float(frame))
    row = Round(number=1, status=RoundStatus.OPEN, scoring_config_id=config, acquisition="entropy_sum", query_size=2)
    row.control_share, row.seed, row.selection = 0.0, 0, {"min_frame_gap": 3}
    with workspace.database.read() as session:
        assert [frames[item.image_id] for item in choose_images(session, row)] == [5, 2]


def test_a_clip_imported_into_both_splits_is_imported_and_told(
    make_workspace: Make, import_frames: Callable[..., dict[str, object]]
) -> None:
    def problems() -> str:
        with workspace.database.read() as session:
            return "\n".join(read_status(session, workspace.settings)["problems"])

    workspace, told = make_workspace(pool=1, **CLIPS), "groups in both train and val"
    assert import_frames(workspace, range(19, 60, 10), Split.TRAIN) == {"unchanged": 0, "problems": {}}
    assert told not in import_frames(workspace, range(60, 61), Split.VAL)
    assert told not in problems()
    assert import_frames(workspace, range(11, 12), Split.VAL)[told] == "1 (001)"
    details = import_frames(workspace, range(10, 51, 10), Split.VAL)
    assert (details["problems"], details[told]) == ({}, "5 (001, 002, 003 and 2 more)")
    assert sync_pool(workspace).details[told] == details[told]
    assert f"{told}: {details[told]}; figures on the validation split flatter the model" in problems()


def test_images_imported_before_the_pattern_was_set_get_their_group_with_the_next_import(
    make_workspace: Make, import_frames: Callable[..., dict[str, object]]
) -> None:
    import_frames(make_workspace(pool=1), range(10, 12), Split.TRAIN)
    workspace = make_workspace(pool=1, pool_section={"group_pattern": r"train/images/ball_0+(1)\d|val/images/(\w+)"})
    details = import_frames(workspace, range(30, 31), Split.VAL)
    assert details["got a group"] == 2
    # Of an alternative the first group takes no part in, nothing is named.
    assert groups_of(workspace) == {"ball_0010.png": "1", "ball_0011.png": "1", "ball_0030.png": None}
    assert import_frames(make_workspace(pool=1, **CLIPS), range(31, 32), Split.TEST)["got a group"] == 1
    assert groups_of(workspace) == {
        "ball_0010.png": "1", "ball_0011.png": "1", "ball_0030.png": "003", "ball_0031.png": "003"
    }  # fmt: skip
