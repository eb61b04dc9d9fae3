from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from activeseg.backtest.dataset import matching, prepare
from activeseg.config import Settings
from activeseg.errors import ConfigError
from tests.factories import draw_ball, write_class_folders


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_the_pool_is_train_and_what_is_measured_on_is_val(labelled: Path, tmp_path: Path) -> None:
    data = prepare(labelled, tmp_path / "data", Settings())
    assert list(data.pool) == [f"ball_{seed:04d}.png" for seed in range(14)]
    assert list(data.held) == [f"ball_{seed:04d}.png" for seed in range(100, 104)]
    assert names(tmp_path / "data/pool/images") == list(data.pool)
    assert names(tmp_path / "data/held/masks") == list(data.held)
    _, mask = draw_ball(3)
    assert data.pool["ball_0003.png"].pixels == tuple(int((mask == channel).sum()) for channel in range(3))


def test_held_out_images_leave_the_pool_and_val_is_not_read(labelled: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(labelled, source, ignore=shutil.ignore_patterns("val"))
    target = tmp_path / "data"
    prepare(labelled, target, Settings())
    data = prepare(source, target, Settings(), hold_out=matching("_000[0-2]"))
    assert list(data.held) == ["ball_0000.png", "ball_0001.png", "ball_0002.png"]
    # What another call laid out is gone: an image held out must not lie in the pool.
    assert names(target / "pool/images") == list(data.pool) == [f"ball_{seed:04d}.png" for seed in range(3, 14)]
    assert names(target / "held/masks") == list(data.held)


def test_masks_that_do_not_fit_are_told_before_anything_is_trained(labelled: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(labelled, source)
    (source / "train/masks/ball_0001.png").unlink()
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(source / "train/masks/ball_0002.png")
    Image.fromarray(np.full((48, 64), 77, np.uint8)).save(source / "train/masks/ball_0003.png")
    (source / "train/images/ball_0004.png").write_bytes(b"nonsense")
    data = prepare(source, tmp_path / "data", Settings())
    assert sorted(data.left_out) == [f"ball_000{number}.png" for number in (1, 2, 3, 4)]
    assert not data.pool.keys() & data.left_out.keys()
    assert "9x9" in data.left_out["ball_0002.png"]


def test_masks_of_overlapping_classes_lie_in_a_folder_for_each(labelled: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    for split in ("train", "val"):
        shutil.copytree(labelled / split / "images", source / split / "images")
        write_class_folders(labelled / split / "masks", source / split / "masks")
    shutil.copy(labelled / "classes.txt", source)
    data = prepare(source, tmp_path / "data", Settings(labels={"overlap": True}))
    assert len(data.pool) == 14
    assert names(tmp_path / "data/pool/masks") == names(source / "train/masks")
    plain, sample = prepare(labelled, tmp_path / "plain", Settings()).pool, data.pool["ball_0000.png"]
    assert sample.pixels[0] >= plain["ball_0000.png"].pixels[0]  # the sky goes on behind the ball


def test_what_cannot_be_replayed_is_said(labelled: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="train/images"):
        prepare(tmp_path, tmp_path / "data", Settings())
    with pytest.raises(ConfigError, match="to measure on"):
        prepare(labelled, tmp_path / "data", Settings(), hold_out=matching("nobody"))
    with pytest.raises(ConfigError, match="to choose from"):
        prepare(labelled, tmp_path / "data", Settings(), hold_out=matching("ball"))
    with pytest.raises(ConfigError, match="regular expression"):
        matching("(")
    source = tmp_path / "source"
    shutil.copytree(labelled, source)
    (source / "train/images/more").mkdir()
    shutil.copy(source / "train/images/ball_0000.png", source / "train/images/more/ball_0000.png")
    with pytest.raises(ConfigError, match="would share a mask"):
        prepare(source, tmp_path / "data", Settings())


def test_an_image_whose_copy_is_held_out_is_not_in_the_pool(labelled: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(labelled, source)
    for part in ("images", "masks"):
        shutil.copy(source / f"val/{part}/ball_0101.png", source / f"train/{part}/copy.png")
    data = prepare(source, tmp_path / "data", Settings())
    assert "copy.png" not in data.pool
    assert data.left_out == {"copy.png": "the same image is held out as ball_0101.png"}
    assert names(tmp_path / "data/pool/images") == list(data.pool)


def test_val_is_measured_on_beside_what_is_held_out_of_train(labelled: Path, tmp_path: Path) -> None:
    target = tmp_path / "data"
    data = prepare(labelled, target, Settings(), hold_out=matching("_000[0-2]"), with_val=True)
    of_train = frozenset(f"ball_000{number}.png" for number in range(3))
    assert data.parts == {"train": of_train, "val": frozenset(f"ball_{seed:04d}.png" for seed in range(100, 104))}
    assert set(data.held) == data.parts["train"] | data.parts["val"]
    assert names(target / "held/images") == names(target / "held/masks") == list(data.held)
    assert not data.held.keys() & data.pool.keys()
    assert prepare(labelled, target, Settings(), hold_out=matching("_000[0-2]")).parts == {}


def test_an_image_of_train_and_one_of_val_cannot_be_told_apart_by_one_name(labelled: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(labelled, source)
    for kind in ("images", "masks"):
        shutil.copy(source / f"train/{kind}/ball_0001.png", source / f"val/{kind}/ball_0000.png")
    with pytest.raises(ConfigError, match=r"both called 'ball_0000'.*rename"):
        prepare(source, tmp_path / "data", Settings(), hold_out=matching("_000[0-2]"), with_val=True)
