"""Labelled images come in with masks that fit, or not at all."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa
from PIL import Image as Pillow

from activeseg.db import truth
from activeseg.db.models import Annotation, Image, Split
from activeseg.errors import ConfigError, NotReadyError
from activeseg.stages.dataset import import_dataset
from activeseg.workspace import Workspace
from tests.factories import write_balls

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
