"""Each folder of masks is one class's, and each class has one: nothing is guessed."""

from __future__ import annotations

from pathlib import Path

import pytest

from activeseg.core.labels import LabelSet
from activeseg.core.palette import voc_palette
from activeseg.errors import ConfigError
from activeseg.imaging.class_folders import class_folders, png_masks

LABELS = LabelSet(("sky", "column/pole", "void"), voc_palette(3), ignore_index=2, overlap=True)


def folders(path: Path, *names: str) -> Path:
    for name in names:
        (path / name).mkdir()
    return path


def test_a_slash_is_an_underscore_and_the_ignored_class_needs_no_folder(tmp_path: Path) -> None:
    folders(tmp_path, "sky", "column_pole", ".thumbnails")
    (tmp_path / "readme.txt").touch()
    assert class_folders(tmp_path, LABELS) == {0: tmp_path / "sky", 1: tmp_path / "column_pole"}
    assert class_folders(folders(tmp_path, "void"), LABELS)[2] == tmp_path / "void"


@pytest.mark.parametrize(
    ("present", "message"),
    [
        (("sky", "column_pole", "Void"), r"expected .* \(sky, column_pole, void\), because .*; got Void"),
        (("sky", "column-pole"), "got column-pole"),
        ((), "got none"),
        (("sky",), "has no folder column_pole: make an empty one for a class that is in none of the images"),
    ],
)
def test_a_folder_of_no_class_and_a_class_without_a_folder_are_refused(
    tmp_path: Path, present: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        class_folders(folders(tmp_path, *present), LABELS)


def test_two_classes_cannot_share_a_folder(tmp_path: Path) -> None:
    labels = LabelSet(("a/b", "a_b"), voc_palette(2), overlap=True)
    with pytest.raises(ConfigError, match=r"'a/b' and 'a_b' would share"):
        class_folders(folders(tmp_path, "a_b"), labels)
    with pytest.raises(ConfigError, match="does not exist"):
        class_folders(tmp_path / "gone", LABELS)


def test_masks_are_found_however_their_ending_is_written(tmp_path: Path) -> None:
    for name in ("a.png", "b.PNG", "c.jpg"):
        (tmp_path / name).touch()
    assert png_masks(tmp_path) == {"a": tmp_path / "a.png", "b": tmp_path / "b.PNG"}
