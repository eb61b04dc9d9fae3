"""Figures show what they were given, at its own pixels, and no text runs into another."""

from __future__ import annotations

import math
import subprocess
import sys
from collections import Counter
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from activeseg.core.labels import UNLABELED, LabelSet
from activeseg.core.palette import voc_palette
from activeseg.errors import ConfigError, MaskError
from activeseg.explain import curves, sheet
from activeseg.explain.figures import PanelRow, class_table, curve_figure, entropy_figure, panel_figure
from activeseg.explain.heatmap import Scale, heatmap
from activeseg.imaging.coloring import UNLABELED_COLOR, colorize

pytestmark = pytest.mark.slow


def label_set(count: int, words: str = "class") -> LabelSet:
    return LabelSet(tuple(f"{words} {i}" for i in range(count)), voc_palette(count + 1)[1:])


def striped(count: int, height: int, width: int) -> np.ndarray:
    return np.broadcast_to((np.arange(width) * count // width).astype(np.uint8), (height, width)).copy()


def find(figure: np.ndarray, panel: np.ndarray) -> list[tuple[int, int]]:
    """Top left corners (y, x) at which `panel` stands in `figure`."""
    corners = np.argwhere((figure == panel[0, 0]).all(-1))
    height, width = panel.shape[:2]
    return [(y, x) for y, x in corners.tolist() if np.array_equal(figure[y : y + height, x : x + width], panel)]


def row(count: int, height: int, width: int, **parts: Any) -> PanelRow:
    rng = np.random.default_rng(0)
    return PanelRow(
        rng.integers(0, 256, (height, width, 3)).astype(np.uint8),
        **{
            "prediction": striped(count, height, width),
            "truth": striped(count, height, width)[:, ::-1].copy(),
            "entropy": rng.random((height, width)).astype(np.float32) * math.log(count),
            **parts,
        },
    )


def test_panels_keep_their_pixels_in_their_order() -> None:
    given, labels = row(12, 120, 160), label_set(12)
    figure = np.asarray(panel_figure([given], labels, upper=math.log(12)))
    assert given.prediction is not None
    assert given.truth is not None
    assert given.entropy is not None
    panels = [
        given.image,
        np.asarray(colorize(given.prediction, labels)),
        np.asarray(colorize(given.truth, labels)),
        np.asarray(heatmap(given.entropy, upper=math.log(12))),
    ]
    places = [find(figure, panel.repeat(2, axis=0).repeat(2, axis=1)) for panel in panels]
    assert [len(place) for place in places] == [1, 1, 1, 1]
    assert len({place[0][0] for place in places}) == 1
    assert sorted(places) == places


@pytest.mark.parametrize("size", [(120, 160), (360, 480), (900, 60), (60, 900), (1, 1), (1200, 1600)])
@pytest.mark.parametrize("count", [12, 21])
def test_any_size_of_image_gives_a_figure_of_bounded_width(count: int, size: tuple[int, int]) -> None:
    labels = label_set(count, "a class with quite a long name, the number")
    given = row(count, *size, caption="where/it/came/from " * 30)
    figure = panel_figure([given, given], labels, upper=math.log(count))
    assert 500 < figure.width <= 1348
    assert given.prediction is not None
    assert given.entropy is not None
    assert entropy_figure(given.image, given.prediction, given.entropy, labels, scale=Scale(1.0)).width <= 1348


def test_the_legend_names_the_classes_that_are_seen() -> None:
    labels = label_set(21)
    mask = np.full((40, 40), 3, np.uint8)
    mask[:5] = UNLABELED
    figure = panel_figure([PanelRow(np.zeros((40, 40, 3), np.uint8), mask)], labels, upper=1.0)
    legend = Counter(tuple(color) for color in np.asarray(figure)[-34:].reshape(-1, 3).tolist())
    swatches = {color for color, pixels in legend.items() if pixels > 150} - {sheet.PAPER}
    assert swatches == {labels.colors[3], UNLABELED_COLOR}


def test_missing_parts_leave_their_place_empty() -> None:
    labels = label_set(3)
    whole, bare = row(3, 50, 50), PanelRow(np.zeros((50, 50, 3), np.uint8))
    assert panel_figure([whole, bare], labels, upper=1.0).width == panel_figure([whole], labels, upper=1.0).width
    alone = panel_figure([bare], labels, upper=1.0)
    assert alone.height < 700
    assert np.count_nonzero((np.asarray(alone) == 0).all(-1)) == 600 * 600
    with pytest.raises(ConfigError, match="at least one row"):
        panel_figure([], labels, upper=1.0)


def test_the_same_values_give_the_same_figure() -> None:
    given, labels = row(12, 60, 80, caption="one"), label_set(12)
    assert panel_figure([given], labels, upper=2.0).tobytes() == panel_figure([given], labels, upper=2.0).tobytes()


@pytest.mark.parametrize("width", [160, 500, 1300])
@pytest.mark.parametrize("words", ["x", "traffic light", "a very long class name " * 4, "unbroken" * 30, "naïve Straße 道路"])
def test_legend_entries_never_overlap(words: str, width: int) -> None:
    letters = sheet.Lettering()
    entries = [(f"{words} {i}", (i, i, i)) for i in range(21)]
    boxes = [
        (line, x, x + letters.line + sheet.GAP // 2 + letters.width(name))
        for line, x, name, _ in sheet._places(entries, width, letters)
    ]
    assert len(boxes) == 21
    for (line, _, right), (next_line, left, _) in pairwise(boxes):
        assert (next_line, left) == (line + 1, 0) or (next_line == line and left >= right + sheet.GAP)
    assert all(right <= width for _, _, right in boxes)


@pytest.mark.parametrize("text", ["", "short", "many words in a row " * 20, "unbroken" * 50, "  spaces\nand lines\t"])
def test_wrapped_text_stays_inside_its_block(text: str) -> None:
    letters = sheet.Lettering()
    lines = letters.wrap(text, 150)
    assert all(letters.width(line) <= 150 for line in lines)
    if "unbroken" not in text:
        assert " ".join(lines).split() == text.split()
    assert sheet.text_block(text, 150, letters).width == 150


@pytest.mark.parametrize("upper", [0.003, 1.0, math.log(12), math.log(21), 250.0, 1e6])
@pytest.mark.parametrize("length", [160, 322, 500])
def test_the_numbers_of_a_colour_bar_are_apart_and_end_at_the_scale(length: int, upper: float) -> None:
    letters = sheet.Lettering()
    ticks = sheet._ticks(length, Scale(upper), letters)
    assert len(ticks) >= 2
    assert float(ticks[0]) == 0
    assert float(ticks[-1]) == pytest.approx(upper, rel=0.01)
    assert sum(letters.width(tick) for tick in ticks) + sheet.GAP * (len(ticks) - 1) <= length
    assert sheet.bar_block(length, Scale(upper), letters).width == length


def drawn_texts(figure: Figure) -> list[Text]:
    (axes,) = figure.axes
    texts: list[Text] = [axes.title, axes.xaxis.label, axes.yaxis.label, *axes.texts]
    texts += [text for legend in figure.legends for text in legend.get_texts()]
    for axis in (axes.xaxis, axes.yaxis):
        low, high = axis.get_view_interval()
        texts += [tick.label1 for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
    return [text for text in texts if text.get_text().strip()]


CURVES: dict[str, dict[str, list[tuple[float, float]]]] = {
    "short": {"entropy": [(0, 0.3), (1, 0.4)], "random": [(0, 0.3), (1, 0.35)]},
    "many": {f"_a $series$ with a very long name, number {i}, and more": [(i, i / 9)] for i in range(14)},
    "gap": {"only": [(0.0, math.nan), (1.5, 0.2)]},
    "none": {},
    "empty": {"a": [], "b": []},
}


@pytest.mark.parametrize("name", CURVES)
def test_no_text_of_a_curve_overlaps_another_or_leaves_the_picture(name: str) -> None:
    figure = curves._figure(CURVES[name], xlabel="round $x_1$", ylabel="mIoU on validation " * 3, title="A title " * 20)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    boxes = [text.get_window_extent() for text in drawn_texts(figure)]
    width, height = canvas.get_width_height()
    for box in boxes:
        assert box.x0 >= 0
        assert box.y0 >= 0
        assert box.x1 <= width
        assert box.y1 <= height
    inside = [(a, b) for i, a in enumerate(boxes) for b in boxes[i + 1 :] if a.overlaps(b)]
    assert not inside


def test_every_series_is_in_the_legend_under_its_own_name() -> None:
    figure = curves._figure(CURVES["many"], xlabel="x", ylabel="y", title="")
    shown = [text.get_text() for text in figure.legends[0].get_texts()]
    assert len(shown) == 14
    assert all(text.startswith("_a $series$") for text in shown)
    lines = figure.axes[0].get_lines()
    looks = {(line.get_color(), line.get_linestyle(), line.get_marker()) for line in lines}
    assert len(looks) == 14


def test_a_curve_picture_is_800_pixels_wide() -> None:
    assert curve_figure(CURVES["short"], xlabel="round", ylabel="mIoU", title="t").size == (800, 500)
    assert curve_figure(CURVES["many"], xlabel="round", ylabel="mIoU", title="t").width == 800


def test_the_class_table_is_sorted_by_share() -> None:
    mask = np.array([[2, 2, 2, 1], [0, 1, UNLABELED, UNLABELED]], np.uint8)
    rows = class_table({2: 0.9, 0: 0.5}, mask, label_set(4))
    assert [tuple(row) for row in rows] == [("class 2", 3 / 8, 0.9), ("class 1", 2 / 8, None), ("class 0", 1 / 8, 0.5)]
    with pytest.raises(MaskError):
        class_table({}, np.full((2, 2), 9, np.uint8), label_set(4))


NO_GLOBAL_STATE = """
import sys, matplotlib, numpy as np
before = matplotlib.rcParams.copy()
from activeseg.core.labels import LabelSet
from activeseg.explain.figures import PanelRow, curve_figure, panel_figure
labels = LabelSet(("a", "b"), ((1, 2, 3), (4, 5, 6)))
mask = np.zeros((9, 9), np.uint8)
panel_figure([PanelRow(np.zeros((9, 9, 3), np.uint8), mask, mask, np.zeros((9, 9)))], labels, upper=1.0)
curve_figure({"a": [(0, 1)], "b": [(0, 1)]}, xlabel="x", ylabel="y", title="t")
assert matplotlib.rcParams.copy() == before
assert "matplotlib.pyplot" not in sys.modules
assert "torch" not in sys.modules
"""


def test_figures_use_no_pyplot_and_change_no_setting() -> None:
    subprocess.run([sys.executable, "-W", "error", "-c", NO_GLOBAL_STATE], check=True)
