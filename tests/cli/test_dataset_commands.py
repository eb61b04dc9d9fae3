"""activeseg dataset export and import --from, as they are typed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image as Pillow

from tests.cli.commands import CommandLine
from tests.factories import write_balls


@pytest.fixture
def labelled(empty: CommandLine, tmp_path: Path) -> CommandLine:
    """Four labelled training images and two for validation."""
    for split, seeds in (("train", range(4)), ("val", range(10, 12))):
        images, masks = tmp_path / split / "images", tmp_path / split / "masks"
        write_balls(images, seeds, masks=masks)
        assert empty("dataset", "import", "--images", images, "--masks", masks, "--split", split).code == 0
    return empty


@pytest.mark.parametrize("layout", ["masks", "coco"])
def test_out_and_in_again(labelled: CommandLine, tmp_path: Path, layout: str) -> None:
    out = tmp_path / "out"
    (report,) = labelled("dataset", "export", "--out", out, "--format", layout, "--json").data
    assert (report["stage"], report["written"], report["details"]["splits"]) == ("dataset export", 6, {"train": 4, "val": 2})
    answer = labelled("dataset", "import", "--from", out)
    assert (answer.code, answer.out.split(" in ")[0]) == (0, "dataset import: 0 written")
    assert "unchanged 6" in answer.out


def test_splits_are_chosen_and_repeated(labelled: CommandLine, tmp_path: Path) -> None:
    assert labelled("dataset", "export", "--out", tmp_path / "out", "--split", "val").code == 0
    assert not (tmp_path / "out/train").exists()
    answer = labelled("dataset", "export", "--out", tmp_path / "out", "--split", "val")
    assert "is not empty (it holds 'classes.txt'): name another folder or remove it" in answer.error
    assert labelled("dataset", "export", "--out", tmp_path / "both", "--split", "val", "--split", "train").code == 0
    assert json.loads((tmp_path / "both/manifest.json").read_text())["selection"] == {
        "as_of": "today",
        "splits": ["train", "val"],
    }


def test_an_image_that_is_gone_is_listed_and_ends_with_an_error(labelled: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "train/images/ball_0002.png").unlink()
    answer = labelled("dataset", "export", "--out", tmp_path / "out")
    assert answer.code == 1
    assert answer.out.startswith("dataset export: 5 written, 1 failed in ")
    assert "ball_0002.png is gone" in answer.err
    assert answer.err.endswith("error: left out: 1 image; the reasons stand above\n")
    assert len(list((tmp_path / "out/train/masks").iterdir())) == 3


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (
            ["--as-of", "2026-11-01T00:00:00"],
            "2026-11-01T00:00:00 has no time zone: add one, as in 2026-11-01T00:00:00Z for UTC",
        ),
        (["--as-of", "2999-11-01T00:00:00Z"], "2999-11-01T00:00:00+00:00 is yet to come"),
        (["--as-of", "yesterday"], "--as-of: expected a time like 2026-11-01T00:00:00Z; got 'yesterday'"),
        (["--as-of", "2026-11-01T00:00:00Z", "--training-run", "1"], "a training run and a time were named: give one of them"),
        (["--training-run", "1"], "training run 1 does not exist; there is none yet"),
        (["--as-of", "2020-01-01T00:00:00Z"], "nothing to export: no annotation counts"),
    ],
)
def test_what_cannot_be_exported_is_told(labelled: CommandLine, tmp_path: Path, options: list[str], told: str) -> None:
    assert told in labelled("dataset", "export", "--out", tmp_path / "out", *options).error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--images", "a", "--masks", "b"],
        ["--masks", "b", "--split", "train"],
        ["--from", "a", "--masks", "b"],
        ["--images", "a", "--masks", "b", "--split", "train", "--uncovered", "sky"],
        ["--images", "a", "--masks", "b", "--split", "pool"],
    ],
)
def test_an_import_that_is_not_told_enough_is_a_wrong_call(empty: CommandLine, options: list[str]) -> None:
    answer = empty("dataset", "import", *options)
    assert answer.code == 2
    assert "Value error" not in answer.err


def test_a_path_that_is_not_there_is_told_before_anything_else_is_asked_for(empty: CommandLine, tmp_path: Path) -> None:
    assert f"{tmp_path}/nowhere does not exist" in empty("dataset", "import", "--from", tmp_path / "nowhere").error


def test_a_coco_file_needs_a_split_and_may_say_what_uncovered_pixels_are(labelled: CommandLine, tmp_path: Path) -> None:
    assert labelled("dataset", "export", "--out", tmp_path / "out", "--format", "coco").code == 0
    shutil.copytree(tmp_path / "out/train", tmp_path / "alone")
    assert "add --split" in labelled("dataset", "import", "--from", tmp_path / "alone").error
    command = ("dataset", "import", "--from", tmp_path / "alone/annotations.json", "--images", tmp_path / "alone/images")
    assert labelled(*command, "--split", "test", "--uncovered", "sky", "--json").data[0]["written"] == 4


def test_an_older_mask_is_counted_and_how_to_import_it_all_the_same_is_told(labelled: CommandLine, tmp_path: Path) -> None:
    assert labelled("dataset", "export", "--out", tmp_path / "out").code == 0
    images, masks = tmp_path / "train/images", tmp_path / "train/masks"
    Pillow.new("L", (64, 48), 1).save(masks / "ball_0000.png")
    labelled("dataset", "import", "--images", images, "--masks", masks, "--split", "train")
    answer = labelled("dataset", "import", "--from", tmp_path / "out")
    assert (answer.code, "unchanged 5, older 1" in answer.out) == (0, True)
    assert answer.err.endswith("older: a newer mask counts for these images; --images and --masks import a mask all the same\n")
