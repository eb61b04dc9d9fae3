"""Label maps, overlays and heat maps are exact in every pixel."""

from __future__ import annotations

import math

import numpy as np
import pytest
from PIL import Image

from activeseg.core.labels import UNLABELED, LabelSet
from activeseg.errors import ConfigError, MaskError, NonFiniteScoreError
from activeseg.explain.heatmap import color_bar, heatmap
from activeseg.imaging.coloring import UNLABELED_COLOR, colorize, overlay

LABELS = LabelSet(("sky", "road", "void"), ((10, 20, 30), (200, 100, 0), (0, 0, 0)), ignore_index=2)


def test_a_label_map_has_the_colour_of_each_class() -> None:
    mask = np.array([[0, 1, 2], [2, UNLABELED, 0]], np.uint8)
    colors = [*LABELS.colors, UNLABELED_COLOR]
    expected = [[colors[{0: 0, 1: 1, 2: 2, UNLABELED: 3}[int(value)]] for value in row] for row in mask]
    np.testing.assert_array_equal(np.asarray(colorize(mask, LABELS)), expected)


@pytest.mark.parametrize("alpha", [0.0, 0.25, 0.5, 1.0])
def test_an_overlay_blends_exactly(alpha: float) -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (6, 7, 3)).astype(np.uint8)
    mask = rng.integers(0, 3, (6, 7)).astype(np.uint8)
    blended = np.asarray(overlay(image, mask, LABELS, alpha=alpha))
    for y in range(6):
        for x in range(7):
            for c in range(3):
                exact = (1 - alpha) * int(image[y, x, c]) + alpha * LABELS.colors[mask[y, x]][c]
                assert abs(int(blended[y, x, c]) - exact) <= 0.5


def test_an_overlay_leaves_unlabelled_pixels_alone() -> None:
    image = np.full((2, 2, 3), 77, np.uint8)
    mask = np.array([[UNLABELED, 1], [1, UNLABELED]], np.uint8)
    blended = np.asarray(overlay(image, mask, LABELS, alpha=1.0))
    assert blended[0, 0].tolist() == [77, 77, 77]
    assert blended[0, 1].tolist() == [200, 100, 0]


def test_masks_that_do_not_fit_are_refused() -> None:
    image = np.zeros((2, 3, 3), np.uint8)
    with pytest.raises(MaskError, match=r"\(2, 3\).*\(3, 2\)"):
        overlay(image, np.zeros((3, 2), np.uint8), LABELS)
    with pytest.raises(MaskError, match="7"):
        colorize(np.full((2, 2), 7, np.uint8), LABELS)
    with pytest.raises(ConfigError, match="alpha"):
        overlay(image, np.zeros((2, 3), np.uint8), LABELS, alpha=1.5)


def test_a_heat_map_is_as_large_as_its_values_and_runs_from_blue_to_red() -> None:
    values = np.array([[-1.0, 0.0, 1.0, 2.0, 3.0]], np.float32)
    picture = heatmap(values, upper=2.0)
    assert picture.size == (5, 1)
    low, zero, middle, top, above = np.asarray(picture)[0].tolist()
    assert low == zero == [0, 0, 127]
    assert top == above == [127, 0, 0]
    assert middle[1] > 200


def test_a_sure_image_looks_sure() -> None:
    upper = math.log(12)
    doubtful = np.asarray(heatmap(np.array([[0.1, upper]]), upper=upper))
    sure = np.asarray(heatmap(np.array([[0.1, 0.05]]), upper=upper))
    np.testing.assert_array_equal(sure[0, 0], doubtful[0, 0])
    assert sure[0, 0, 2] > 127 > sure[0, 0, 0]


def test_every_step_is_the_colour_matplotlib_gives_it() -> None:
    from matplotlib import colormaps

    values = np.arange(256, dtype=np.float64)[None]
    expected = [[round(255 * part) for part in colormaps["viridis"](step)[:3]] for step in range(256)]
    drawn = np.asarray(heatmap(values, upper=255, colormap="viridis"), int)[0]
    assert np.abs(drawn - expected).max() <= 1


def test_a_colour_bar_holds_all_colours_in_order() -> None:
    bar = color_bar(256, 3)
    assert bar.size == (256, 3)
    np.testing.assert_array_equal(np.asarray(bar)[0], np.asarray(heatmap(np.arange(256.0)[None], upper=255.0))[0])


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_no_number_is_not_drawn(bad: float) -> None:
    with pytest.raises(NonFiniteScoreError, match="1 of 4"):
        heatmap(np.array([[0, 1], [bad, 1]]), upper=1.0)


def test_wrong_scales_and_colour_maps_are_refused() -> None:
    values = np.zeros((2, 2))
    for upper in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ConfigError, match="upper end"):
            heatmap(values, upper=upper)
    with pytest.raises(ConfigError, match="'jett'"):
        heatmap(values, upper=1.0, colormap="jett")
    with pytest.raises(ConfigError, match="shape"):
        heatmap(np.zeros(3), upper=1.0)


def test_pictures_are_rgb() -> None:
    pictures = [colorize(np.zeros((2, 2), np.uint8), LABELS), heatmap(np.zeros((2, 2)), upper=1.0)]
    assert all(isinstance(picture, Image.Image) and picture.mode == "RGB" for picture in pictures)
