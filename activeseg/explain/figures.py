"""The figures of a run: panels of image, prediction, truth and entropy; the table of classes; curves."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from activeseg.core.labels import UNLABELED, LabelSet
from activeseg.errors import ConfigError
from activeseg.explain.curves import curve_figure
from activeseg.explain.heatmap import heatmap
from activeseg.explain.overlay import UNLABELED_COLOR, Mask, Pixels, colorize
from activeseg.explain.sheet import (
    GAP,
    Color,
    Lettering,
    bar_block,
    framed,
    legend_block,
    line_up,
    stack,
    text_block,
    with_margin,
)

__all__ = ["ClassRow", "PanelRow", "class_table", "curve_figure", "entropy_figure", "panel_figure"]

_SHEET_WIDTH = 1348  # four columns of 320 pixels and their frames
_LARGEST_PANEL = 642
_LEAST_COLUMN = 160
_SCALE_LABEL = "entropy (nats)"

_IMAGE, _ENTROPY = 0, 3

Entropy = npt.NDArray[np.floating]


@dataclass(frozen=True, slots=True, eq=False)
class PanelRow:
    """One image and what is known about it: pixels (H, W, 3) uint8, class indices (H, W) uint8, entropy (H, W) nats.

    What is None leaves its place empty.
    """

    image: Pixels
    prediction: Mask | None = None
    truth: Mask | None = None
    entropy: Entropy | None = None
    caption: str = ""


@dataclass(frozen=True, slots=True)
class _Scale:
    """What colours mean: classes in masks, 0..`upper` in entropy maps."""

    label_set: LabelSet
    upper: float
    colormap: str


class ClassRow(NamedTuple):
    """A class in a mask: its share of all pixels (0..1) and the mean confidence there (0..1; None where unknown)."""

    name: str
    share: float
    confidence: float | None


def panel_figure(rows: Sequence[PanelRow], label_set: LabelSet, *, upper: float, colormap: str = "jet") -> Image.Image:
    """One row per image: image | prediction | truth | entropy, with a legend and the numbered scale 0..`upper`.

    At most 1348 pixels wide. Panels are enlarged by whole factors or shrunk to their column; a column that no row fills
    is left out. The legend names the classes seen in the masks. Raises ConfigError where there is no row.
    """
    if not rows:
        raise ConfigError("a panel figure needs at least one row; got none")
    headings = ("image", "prediction", "truth", "entropy")
    return _sheet(rows, headings, _Scale(label_set, upper, colormap))


def entropy_figure(
    image: Pixels, mask: Mask, entropy: Entropy, label_set: LabelSet, *, upper: float, colormap: str = "jet"
) -> Image.Image:
    """Three panels: image | segmentation in the label set's colours | entropy, with legend and numbered scale."""
    row = PanelRow(image, prediction=mask, entropy=entropy)
    return _sheet([row], ("image", "segmentation", "", "entropy"), _Scale(label_set, upper, colormap))


def class_table(confidences: Mapping[int, float], mask: Mask, label_set: LabelSet) -> list[ClassRow]:
    """The classes in a mask, largest share first, with the mean confidence of each (class index -> 0..1).

    Unlabelled pixels count as pixels but have no row. Raises MaskError where a value is not a class.
    """
    label_set.check_mask(mask)
    counts = np.bincount(mask.ravel(), minlength=256)
    present = [index for index in np.argsort(-counts, kind="stable").tolist() if counts[index] and index != UNLABELED]
    return [ClassRow(label_set.names[i], float(counts[i] / mask.size), confidences.get(i)) for i in present]


def _sheet(rows: Sequence[PanelRow], headings: Sequence[str], scale: _Scale) -> Image.Image:
    letters = Lettering()
    used = [column for column in range(4) if any(_parts(row)[column] is not None for row in rows)]
    side = min(_LARGEST_PANEL, (_SHEET_WIDTH - 2 * GAP - (len(used) - 1) * GAP) // len(used))
    panels = [[_panel(row, column, scale, side) for column in used] for row in rows]
    widths = [max([_LEAST_COLUMN, *(panel.width for panel in column if panel)]) for column in zip(*panels, strict=True)]
    total = sum(widths) + GAP * (len(widths) - 1)
    blocks = [line_up([text_block(headings[c], w, letters) for c, w in zip(used, widths, strict=True)], widths)]
    for row, line in zip(rows, panels, strict=True):
        blocks += [text_block(row.caption, total, letters)] if row.caption.strip() else []
        blocks.append(line_up(line, widths))
    return with_margin(stack([*blocks, *_footer(rows, widths, scale, bar=_ENTROPY in used, letters=letters)]))


def _footer(
    rows: Sequence[PanelRow], widths: Sequence[int], scale: _Scale, *, bar: bool, letters: Lettering
) -> list[Image.Image]:
    """Legend and, under the last column, colour bar; neither where there is nothing to explain."""
    entries = _legend(rows, scale.label_set)
    total = sum(widths) + GAP * (len(widths) - 1)
    left = total - widths[-1] - GAP if bar else total
    legend = legend_block(entries, left, letters) if entries else None
    if not bar:
        return [legend] if legend else []
    colors = bar_block(widths[-1], scale.upper, _SCALE_LABEL, scale.colormap, letters)
    return [line_up([legend, colors], [left, widths[-1]])]


def _parts(row: PanelRow) -> tuple[npt.NDArray[np.generic] | None, ...]:
    return row.image, row.prediction, row.truth, row.entropy


def _panel(row: PanelRow, column: int, scale: _Scale, side: int) -> Image.Image | None:
    part = _parts(row)[column]
    if part is None:
        return None
    if column == _IMAGE:
        return framed(_fit(Image.fromarray(row.image), side - 2, Image.Resampling.BOX))
    if column == _ENTROPY:
        values = _fit(Image.fromarray(part.astype(np.float32)), side - 2, Image.Resampling.BOX)
        return framed(heatmap(np.asarray(values), upper=scale.upper, colormap=scale.colormap))
    return framed(_fit(colorize(part.astype(np.uint8), scale.label_set), side - 2, Image.Resampling.NEAREST))


def _fit(picture: Image.Image, side: int, shrink: Image.Resampling) -> Image.Image:
    """Enlarged by the largest whole factor that fits a square of `side` pixels, or shrunk to fit it."""
    longest = max(picture.size)
    if longest <= side:
        factor = side // longest
        return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
    size = max(1, round(picture.width * side / longest)), max(1, round(picture.height * side / longest))
    return picture.resize(size, shrink)


def _legend(rows: Iterable[PanelRow], label_set: LabelSet) -> list[tuple[str, Color]]:
    seen = np.zeros(256, bool)
    for mask in (mask for row in rows for mask in (row.prediction, row.truth) if mask is not None):
        seen[mask.ravel()] = True
    classes = zip(seen, label_set.names, label_set.colors, strict=False)
    entries = [(name, color) for shown, name, color in classes if shown]
    return entries + ([("not labelled", UNLABELED_COLOR)] if seen[UNLABELED] else [])
