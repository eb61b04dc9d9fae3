"""Prediction beside truth: the scores are those of the formulas, and every text has its own place."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from activeseg.core.labels import UNLABELED, LabelSet
from activeseg.core.palette import voc_palette
from activeseg.errors import ConfigError, MaskError, NotReadyError
from activeseg.explain import panels
from activeseg.explain.masks import image_files, mask_files, read_mask, spread
from activeseg.explain.panels import legend, seen_classes
from activeseg.explain.sheet import GAP, PAPER, Lettering, TableRow, table_block, text_block
from activeseg.explain.truth import compare, contact_sheet, for_sheet, image_scores, truth_figure
from activeseg.imaging.coloring import NO_CLASS_COLOR, UNLABELED_COLOR
from activeseg.imaging.masks import encode_mask, encode_planes

LABELS = LabelSet(("sky", "road", "car", "void"), voc_palette(5)[1:], ignore_index=3)
OVERLAPPING = LabelSet(("animal", "dog"), voc_palette(3)[1:], overlap=True)


def test_scores_of_one_image_are_the_formulas() -> None:
    truth = np.array([[0, 0, 0, 1], [1, 1, 3, UNLABELED]], np.uint8)
    prediction = np.array([[0, 0, 1, 1], [1, 2, 2, 2]], np.uint8)
    first, second = image_scores(prediction, truth, LABELS)
    assert (first.name, first.iou, first.dice) == ("sky", 2 / 3, 4 / 5)
    assert (second.name, second.iou, second.dice) == ("road", 2 / 4, 4 / 6)
    s = 1e-5
    assert first.smoothed_iou == pytest.approx((2 + s) / (3 + s), rel=1e-12)
    assert first.smoothed_dice == pytest.approx(2 * (2 + s) / (5 + s), rel=1e-12)


def test_scores_of_overlapping_classes_are_each_classs_own() -> None:
    truth = np.array([[[1, 1, 1, 0]], [[0, 1, 0, 0]]], np.bool_)
    prediction = np.array([[[1, 1, 0, 0]], [[0, 1, 1, 0]]], np.bool_)
    rows = image_scores(prediction, truth, OVERLAPPING)
    assert [(row.name, row.iou) for row in rows] == [("animal", 2 / 3), ("dog", 1 / 2)]


def test_masks_that_do_not_fit_are_refused() -> None:
    with pytest.raises(MaskError, match="size"):
        image_scores(np.zeros((2, 3), np.uint8), np.zeros((3, 2), np.uint8), LABELS)
    with pytest.raises(MaskError, match="planes"):
        image_scores(np.zeros((2, 3), np.uint8), np.zeros((2, 3), np.uint8), OVERLAPPING)


@pytest.mark.slow
@pytest.mark.parametrize("size", [(8, 8), (40, 900), (900, 40), (120, 160)])
@pytest.mark.parametrize("words", ["c", "a class with a very long name indeed, much longer than others"])
def test_any_image_with_60_classes_gives_a_figure_and_a_sheet(size: tuple[int, int], words: str) -> None:
    labels = LabelSet(tuple(f"{words} {i}" for i in range(60)), voc_palette(61)[1:])
    rng = np.random.default_rng(0)
    mask = rng.integers(0, 60, size).astype(np.uint8)
    image = rng.integers(0, 256, (*size, 3)).astype(np.uint8)
    items = [compare(image, mask, mask[::-1].copy(), labels, caption="where/it/came/from.png")] * 2
    assert 500 < truth_figure(items, labels).width <= 1348
    assert 500 < contact_sheet([(image, mask, words)] * 3, labels).width <= 1348


def test_overlapping_classes_are_drawn() -> None:
    planes = np.random.default_rng(0).random((2, 9, 12)) < 0.5
    image = np.zeros((9, 12, 3), np.uint8)
    assert truth_figure([compare(image, planes, ~planes, OVERLAPPING)], OVERLAPPING, documents=True).width > 500
    assert contact_sheet([(image, planes, "x")], OVERLAPPING, pairs=3).width > 300


def test_a_truth_without_a_class_is_drawn() -> None:
    mask = np.full((9, 12), UNLABELED, np.uint8)
    assert truth_figure([compare(np.zeros((9, 12, 3), np.uint8), np.zeros_like(mask), mask, LABELS)], LABELS).height > 100


@pytest.mark.parametrize("name", ["x", "quite a long class name " * 8, "unbroken" * 30])
@pytest.mark.parametrize("width", [200, 600, 1324])
@pytest.mark.parametrize("count", [1, 7, 60])
def test_columns_of_a_table_stay_apart_and_inside(name: str, width: int, count: int) -> None:
    """Drawn in black on white: between the columns of the table there is nothing but paper."""
    letters = Lettering()
    rows = [TableRow(f"{name}{i}", None, ("0.123", "0.456")) for i in range(count)]
    picture = np.asarray(table_block(("class", "IoU", "Dice"), rows, width, letters).convert("L"))
    assert picture.shape[1] == width
    drawn = (picture < 250).any(axis=0)
    assert not drawn[-1]
    ends = np.flatnonzero(np.diff(drawn.astype(int)))
    gaps = np.diff(ends)[1::2] if drawn[ends[0] + 1] else np.diff(ends)[::2]
    assert (gaps >= GAP - 3).sum() >= 2


def test_nothing_to_draw_is_said() -> None:
    with pytest.raises(ConfigError, match="at least one image"):
        truth_figure([], LABELS)
    with pytest.raises(ConfigError, match="at least one pair"):
        contact_sheet([], LABELS)


def test_masks_are_read_from_files_and_folders(tmp_path: Path) -> None:
    mask = np.array([[0, 1, 2]], np.uint8)
    (tmp_path / "a.png").write_bytes(encode_mask(mask))
    for place in (tmp_path, tmp_path / "a.png"):
        np.testing.assert_array_equal(read_mask(place, "a", LABELS, size=(1, 3), max_pixels=100), mask)
    with pytest.raises(MaskError, match="3x1"):
        read_mask(tmp_path, "a", LABELS, size=(3, 1), max_pixels=100)
    with pytest.raises(MaskError, match=r"b\.png cannot be read"):
        read_mask(tmp_path, "b", LABELS, size=(1, 3), max_pixels=100)
    (tmp_path / "a.png").write_bytes(encode_mask(mask + 7))
    with pytest.raises(MaskError, match=r"mask of a .* not classes"):
        read_mask(tmp_path, "a", LABELS, size=(1, 3), max_pixels=100)


def test_planes_are_read_from_files_and_from_a_folder_for_each_class(tmp_path: Path) -> None:
    planes = np.array([[[1, 0, 1]], [[0, 0, 1]]], np.bool_)
    (tmp_path / "a.png").write_bytes(encode_planes(planes))
    np.testing.assert_array_equal(read_mask(tmp_path / "a.png", "a", OVERLAPPING, size=(1, 3), max_pixels=100), planes)
    (tmp_path / "animal").mkdir()
    (tmp_path / "dog").mkdir()
    (tmp_path / "animal/a.png").write_bytes(encode_mask(planes[0].astype(np.uint8)))
    found = read_mask(tmp_path, "a", OVERLAPPING, size=(1, 3), max_pixels=100)
    np.testing.assert_array_equal(found, [planes[0], np.zeros((1, 3), np.bool_)])
    with pytest.raises(MaskError, match=r"animal/a\.png is 3x1, the image is 2x2"):
        read_mask(tmp_path, "a", OVERLAPPING, size=(2, 2), max_pixels=100)
    with pytest.raises(MaskError, match="named like a class"):
        read_mask(tmp_path, "b", OVERLAPPING, size=(1, 3), max_pixels=100)


def test_no_class_of_a_folder_of_planes_is_lost(tmp_path: Path) -> None:
    """A slash is an underscore, as `dataset import` has it; a misspelt folder or a missing one is an error, not a guess."""
    labels = LabelSet(("animal", "column/pole"), voc_palette(3)[1:], overlap=True)
    pole = np.array([[0, 1, 1]], np.uint8)
    for folder in ("animal", "column_pole", ".cache"):
        (tmp_path / folder).mkdir()
    (tmp_path / "column_pole/a.png").write_bytes(encode_mask(pole))
    found = read_mask(tmp_path, "a", labels, size=(1, 3), max_pixels=100)
    np.testing.assert_array_equal(found, [np.zeros((1, 3), np.bool_), pole > 0])
    (tmp_path / "column_pole").rename(tmp_path / "column-pole")
    with pytest.raises(ConfigError, match=r"\(animal, column_pole\).* got column-pole"):
        read_mask(tmp_path, "a", labels, size=(1, 3), max_pixels=100)


@pytest.mark.parametrize("labels", [LABELS, OVERLAPPING], ids=["exclusive", "overlapping"])
def test_an_ending_in_capitals_is_an_ending(tmp_path: Path, labels: LabelSet) -> None:
    mask = np.array([[0, 1, 1]], np.uint8)
    folders = [tmp_path / name for name in labels.names] if labels.overlap else [tmp_path]
    for folder in folders:
        folder.mkdir(exist_ok=True)
        (folder / "a.PNG").write_bytes(encode_mask(mask))
    found = read_mask(tmp_path, "a", labels, size=(1, 3), max_pixels=100)
    np.testing.assert_array_equal(found, [mask > 0, mask > 0] if labels.overlap else mask)


@pytest.mark.parametrize("labels", [LABELS, OVERLAPPING], ids=["exclusive", "overlapping"])
def test_the_limit_of_pixels_holds_for_masks(tmp_path: Path, labels: LabelSet) -> None:
    planes = np.zeros((2, 1, 3), np.bool_)
    (tmp_path / "a.png").write_bytes(encode_planes(planes) if labels.overlap else encode_mask(planes[0].astype(np.uint8)))
    assert read_mask(tmp_path / "a.png", "a", labels, size=(1, 3), max_pixels=3).shape[-2:] == (1, 3)
    with pytest.raises(MaskError, match=r"raise \[pool\] max_pixels"):
        read_mask(tmp_path / "a.png", "a", labels, size=(1, 3), max_pixels=2)


def test_the_limit_of_pixels_holds_for_the_masks_of_class_folders(tmp_path: Path) -> None:
    for name in OVERLAPPING.names:
        (tmp_path / name).mkdir()
    (tmp_path / "dog/a.png").write_bytes(encode_mask(np.ones((1, 3), np.uint8)))
    with pytest.raises(MaskError, match=r"raise \[pool\] max_pixels"):
        read_mask(tmp_path, "a", OVERLAPPING, size=(1, 3), max_pixels=2)


def test_large_images_are_scored_before_they_are_shrunk() -> None:
    """Every second line is road: at the size of a panel only one of the two classes is left, its scores are not."""
    truth = np.zeros((1000, 1500), np.uint8)
    truth[1::2] = 1
    image = np.random.default_rng(0).integers(0, 256, (1000, 1500, 3)).astype(np.uint8)
    item = compare(image, np.zeros_like(truth), truth, LABELS)
    assert [(row.name, row.iou) for row in item.scores] == [("sky", 0.5), ("road", 0.0)]
    assert item.image.shape == (287, 431, 3)
    assert item.prediction.shape == item.truth.shape == (287, 431)
    with pytest.raises(MaskError, match=r"\(1000, 1500\)"):
        compare(image, truth[:-1], truth[:-1], LABELS)


def test_images_of_a_sheet_are_kept_as_large_as_it_shows_them() -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (960, 1280, 3)).astype(np.uint8)
    corners = rng.random((2, 6, 8)) < 0.5
    planes = corners.repeat(160, axis=1).repeat(160, axis=2)
    small, mask = for_sheet(image, planes, pairs=2)
    np.testing.assert_allclose(small, image.reshape(240, 4, 320, 4, 3).mean(axis=(1, 3)), atol=1.01)
    np.testing.assert_array_equal(mask, corners.repeat(40, axis=1).repeat(40, axis=2))
    assert not np.shares_memory(mask, planes)
    same, unchanged = for_sheet(small, mask, pairs=2)
    assert same is small
    assert unchanged is mask
    with pytest.raises(MaskError, match="size"):
        for_sheet(image, planes[:, 1:], pairs=2)


def swatches(picture: Image.Image) -> set[tuple[int, ...]]:
    """The colours of the last lines of a picture that are neither letters nor paper."""
    colors, counts = np.unique(np.asarray(picture)[-34:].reshape(-1, 3), axis=0, return_counts=True)
    return {tuple(color) for color, count in zip(colors.tolist(), counts.tolist(), strict=True) if count > 150} - {PAPER}


def test_the_legend_of_a_sheet_names_no_colour_that_is_not_in_it() -> None:
    """Masks are laid over the images: where nobody labelled anything there is the image."""
    image = np.full((40, 60, 3), 120, np.uint8)
    mask = np.full((40, 60), UNLABELED, np.uint8)
    mask[:20] = 2
    assert UNLABELED_COLOR in swatches(truth_figure([compare(image, mask, mask, LABELS)], LABELS))
    assert swatches(contact_sheet([(image, mask, "half")], LABELS)) == {LABELS.colors[2]}
    assert contact_sheet([(image, np.full_like(mask, UNLABELED), "nothing")], LABELS).height > 100
    planes = np.zeros((2, 40, 60), np.bool_)
    assert seen_classes([planes], OVERLAPPING) == [("no class", NO_CLASS_COLOR)]
    assert seen_classes([planes], OVERLAPPING, over_image=True) == []


def test_the_legend_says_what_several_classes_at_one_pixel_look_like(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(panels, "text_block", lambda text, *rest: said.append(text) or text_block(text, *rest))
    letters, planes = Lettering(), np.zeros((2, 1, 3), np.bool_)
    planes[0, 0, :2] = planes[1, 0, 2:] = True
    legend([planes], OVERLAPPING, 400, letters)
    assert said == []
    planes[1, 0, 1] = True
    for over_image in (False, True):
        legend([planes], OVERLAPPING, 400, letters, over_image=over_image)
    assert said == ["several classes: the mean of their colours"] * 2


def test_each_image_has_its_mask_or_a_folder(tmp_path: Path) -> None:
    images = [tmp_path / "a.png", tmp_path / "b.png"]
    assert mask_files(images, [tmp_path]) == [tmp_path, tmp_path]
    assert mask_files(images, images) == images
    with pytest.raises(ConfigError, match="expected 2 masks"):
        mask_files(images, images[:1])
    with pytest.raises(NotReadyError, match="no image"):
        image_files(tmp_path)


def test_a_selection_is_spread_from_first_to_last() -> None:
    assert spread(list(range(10)), 4) == [0, 3, 6, 9]
    assert spread([1, 2], 12) == [1, 2]
    assert spread([1, 2, 3], 1) == [1]
