"""Pictures of masks whose classes may overlap: colours blend, and where there is no class there is no colour."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from activeseg.core.labels import LabelSet
from activeseg.core.palette import voc_palette
from activeseg.errors import ConfigError, MaskError
from activeseg.explain.figures import PanelRow, class_table, panel_figure
from activeseg.explain.panels import seen_classes
from activeseg.imaging.coloring import NO_CLASS_COLOR, colorize, overlay, with_palette

LABELS = LabelSet(("animal", "dog", "void"), ((200, 0, 0), (0, 100, 50), (9, 9, 9)), ignore_index=2, overlap=True)
PLANES = np.array(
    [
        [[1, 1, 0, 0]],
        [[0, 1, 1, 0]],
        [[0, 0, 0, 0]],
    ],
    np.bool_,
)


def test_a_pixel_of_several_classes_has_their_mean_colour() -> None:
    drawn = np.asarray(colorize(PLANES, LABELS))[0].tolist()
    assert drawn == [[200, 0, 0], [100, 50, 25], [0, 100, 50], list(NO_CLASS_COLOR)]


def test_255_classes_at_one_pixel_are_still_a_mean() -> None:
    labels = LabelSet(tuple(map(str, range(254))), voc_palette(254), overlap=True)
    mean = np.rint(np.array(labels.colors).mean(axis=0))
    assert np.asarray(colorize(np.ones((254, 1, 1), np.bool_), labels))[0, 0].tolist() == mean.tolist()


def test_an_overlay_leaves_pixels_without_a_class_alone() -> None:
    image = np.full((1, 4, 3), 77, np.uint8)
    blended = np.asarray(overlay(image, PLANES, LABELS, alpha=1.0))[0].tolist()
    assert blended == [[200, 0, 0], [100, 50, 25], [0, 100, 50], [77, 77, 77]]


def test_shares_are_each_classs_own() -> None:
    rows = class_table({0: 0.75}, PLANES, LABELS)
    assert [tuple(row) for row in rows] == [("animal", 0.5, 0.75), ("dog", 0.5, None)]


def test_the_legend_names_classes_and_that_there_are_none() -> None:
    assert [name for name, _ in seen_classes([PLANES], LABELS)] == ["animal", "dog", "no class"]
    assert [name for name, _ in seen_classes([PLANES[..., :2]], LABELS)] == ["animal", "dog"]
    assert [name for name, _ in seen_classes([np.zeros_like(PLANES)], LABELS)] == ["no class"]


def test_a_figure_takes_planes() -> None:
    image = np.zeros((1, 4, 3), np.uint8)
    figure = panel_figure([PanelRow(image, PLANES, PLANES, np.zeros((1, 4)))], LABELS, upper=1.4)
    assert figure.width <= 1348


def test_a_mask_of_the_other_kind_is_refused() -> None:
    with pytest.raises(MaskError, match="planes"):
        colorize(np.zeros((2, 2), np.uint8), LABELS)
    with pytest.raises(MaskError, match="class indices"):
        colorize(PLANES, replace(LABELS, overlap=False))


def test_the_voc_palette_replaces_colours_only() -> None:
    painted = with_palette(LABELS, "voc")
    assert painted.colors == voc_palette(3)
    assert painted.same_classes(LABELS)
    assert with_palette(LABELS, "labels") is LABELS
    with pytest.raises(ConfigError, match="labels or voc"):
        with_palette(LABELS, "cityscapes")
