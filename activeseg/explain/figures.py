"""The figures of a run: panels of image, prediction, truth and entropy; the table of classes; curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from activeseg.core.labels import UNLABELED, LabelSet, Mask
from activeseg.errors import ConfigError
from activeseg.explain.curves import curve_figure
from activeseg.explain.heatmap import Scale
from activeseg.explain.panels import Panel, Row, heat, label_map, lay_out, legend, photo, total_width
from activeseg.explain.sheet import GAP, Lettering, bar_block, framed, line_up, stack, with_margin
from activeseg.imaging.coloring import Pixels

__all__ = [
    "ClassRow",
    "PanelRow",
    "class_table",
    "curve_figure",
    "entropy_figure",
    "heat_figure",
    "heat_picture",
    "over_image",
    "panel_figure",
]

_LEAST_BAR = 200

Values = npt.NDArray[np.floating]


@dataclass(frozen=True, slots=True, eq=False)
class PanelRow:
    """One image and what is known about it: pixels (H, W, 3) uint8, masks of the label set's kind, entropy (H, W) nats.

    What is None leaves its place empty.
    """

    image: Pixels
    prediction: Mask | None = None
    truth: Mask | None = None
    entropy: Values | None = None
    caption: str = ""


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
    return _sheet(rows, ("image", "prediction", "truth", "entropy"), label_set, Scale(upper, colormap=colormap))


def entropy_figure(image: Pixels, mask: Mask, entropy: Values, label_set: LabelSet, *, scale: Scale) -> Image.Image:
    """Three panels: image | segmentation in the label set's colours | entropy, with legend and numbered scale."""
    row = PanelRow(image, prediction=mask, entropy=entropy)
    return _sheet([row], ("image", "segmentation", "", "entropy"), label_set, scale)


def heat_picture(values: Values, *, scale: Scale) -> Image.Image:
    """Values (H, W) as a heat map at their own pixels, the numbered scale below."""
    return _with_bar(scale.draw(values), scale)


def over_image(image: Pixels, values: Values, *, scale: Scale, alpha: float = 0.5) -> Image.Image:
    """As `heat_picture`, the colours with the weight `alpha` over the image (H, W, 3) uint8."""
    return _with_bar(Image.blend(Image.fromarray(image), scale.draw(values), alpha), scale)


def heat_figure(image: Pixels, values: Values, *, scale: Scale, heading: str) -> Image.Image:
    """Two panels: image | heat map of values (H, W), with the numbered scale under the second."""

    def foot(widths: Sequence[int], letters: Lettering) -> list[Image.Image]:
        return [line_up([None, bar_block(widths[1], scale, letters)], widths)]

    return lay_out(("image", heading), [Row((photo(image), heat(values, scale)))], foot=foot)


def class_table(confidences: Mapping[int, float], mask: Mask, label_set: LabelSet) -> list[ClassRow]:
    """The classes in a mask, largest share first, with the mean confidence of each (class index -> 0..1).

    Pixels without a class count as pixels but have no row; where classes overlap the shares may add up to more than 1.
    Raises MaskError for an array that is no mask of these classes.
    """
    label_set.check_mask(mask)
    counts = mask.sum(axis=(1, 2)) if label_set.overlap else np.bincount(mask.ravel(), minlength=256)
    pixels = mask.shape[-1] * mask.shape[-2]
    present = [index for index in np.argsort(-counts, kind="stable").tolist() if counts[index] and index != UNLABELED]
    return [ClassRow(label_set.names[i], float(counts[i] / pixels), confidences.get(i)) for i in present]


def _with_bar(picture: Image.Image, scale: Scale) -> Image.Image:
    bar = bar_block(max(picture.width + 2, _LEAST_BAR), scale, Lettering())
    return with_margin(stack([framed(picture), bar]))


def _sheet(rows: Sequence[PanelRow], headings: Sequence[str], label_set: LabelSet, scale: Scale) -> Image.Image:
    drawn = [_panels(row, label_set, scale) for row in rows]
    used = [column for column in range(4) if any(panels[column] for panels in drawn)]
    masks = [mask for row in rows for mask in (row.prediction, row.truth) if mask is not None]
    has_bar = any(row.entropy is not None for row in rows)

    def foot(widths: Sequence[int], letters: Lettering) -> list[Image.Image]:
        left = total_width(widths) - (widths[-1] + GAP if has_bar else 0)
        blocks = legend(masks, label_set, left, letters)
        if not has_bar:
            return blocks
        return [line_up([stack(blocks) if blocks else None, bar_block(widths[-1], scale, letters)], [left, widths[-1]])]

    lines = [Row([panels[c] for c in used], row.caption) for row, panels in zip(rows, drawn, strict=True)]
    return lay_out([headings[c] for c in used], lines, foot=foot)


def _panels(row: PanelRow, label_set: LabelSet, scale: Scale) -> list[Panel | None]:
    masks = [label_map(mask, label_set) if mask is not None else None for mask in (row.prediction, row.truth)]
    return [photo(row.image), *masks, heat(row.entropy, scale) if row.entropy is not None else None]
