"""Rows of panels under headings: each fits its column, whatever size its image has."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from activeseg.core.labels import UNLABELED, LabelSet, Mask
from activeseg.explain.heatmap import Scale
from activeseg.explain.overlay import NO_CLASS_COLOR, UNLABELED_COLOR, Pixels, colorize, overlay
from activeseg.explain.sheet import GAP, Color, Lettering, framed, line_up, stack, text_block, with_margin

SHEET_WIDTH = 1348
"""Pixels: four columns of 320 and their frames."""

_LARGEST_PANEL = 642
_LEAST_COLUMN = 160

Panel = Callable[[int], Image.Image]
"""Draws itself into a square of so many pixels: enlarged by a whole factor, or shrunk."""

Foot = Callable[[Sequence[int], Lettering], list[Image.Image]]
"""What stands below all rows, given the widths of the columns."""


@dataclass(frozen=True, slots=True)
class Row:
    """Panels beside each other, None where a place stays empty.

    caption: above them, as wide as all. names: above them too, each over an equal share of the panels. below: under them.
    """

    panels: Sequence[Panel | None]
    caption: str = ""
    names: Sequence[str] = ()
    below: Foot | None = None


def photo(image: Pixels) -> Panel:
    """An image (H, W, 3) uint8."""
    return lambda side: _fit(Image.fromarray(image), side, Image.Resampling.BOX)


def drawing(image: Pixels) -> Panel:
    """A picture (H, W, 3) uint8 whose colours mean something: none are mixed."""
    return lambda side: _fit(Image.fromarray(image), side, Image.Resampling.NEAREST)


def label_map(mask: Mask, label_set: LabelSet) -> Panel:
    """A mask in the colours of its classes."""
    return lambda side: _fit(colorize(mask, label_set), side, Image.Resampling.NEAREST)


def laid_over(image: Pixels, mask: Mask, label_set: LabelSet) -> Panel:
    """An image with a mask over it."""
    return lambda side: _fit(overlay(image, mask, label_set, alpha=0.6), side, Image.Resampling.BOX)


def heat(values: npt.NDArray[np.floating], scale: Scale) -> Panel:
    """Values (H, W) in the colours of a scale."""

    def draw(side: int) -> Image.Image:
        fitted = _fit(Image.fromarray(values.astype(np.float32)), side, Image.Resampling.BOX)
        return scale.draw(np.asarray(fitted))

    return draw


def lay_out(headings: Sequence[str], rows: Sequence[Row], *, foot: Foot | None = None, width: int = SHEET_WIDTH) -> Image.Image:
    """The rows below each other, at most `width` pixels wide; headings above the first, `foot` below the last."""
    letters = Lettering()
    columns = len(headings)
    side = min(_LARGEST_PANEL, (width - 2 * GAP - (columns - 1) * GAP) // columns)
    panels = [[framed(panel(side - 2)) if panel else None for panel in row.panels] for row in rows]
    widths = [max([_LEAST_COLUMN, *(panel.width for panel in column if panel)]) for column in zip(*panels, strict=True)]
    blocks: list[Image.Image] = []
    if any(headings):
        blocks.append(line_up([text_block(text, w, letters) for text, w in zip(headings, widths, strict=True)], widths))
    for row, line in zip(rows, panels, strict=True):
        blocks += _above(row, widths, letters)
        blocks.append(line_up(line, widths))
        blocks += row.below(widths, letters) if row.below else []
    return with_margin(stack([*blocks, *(foot(widths, letters) if foot else [])]))


def _above(row: Row, widths: Sequence[int], letters: Lettering) -> list[Image.Image]:
    blocks = [text_block(row.caption, total_width(widths), letters)] if row.caption.strip() else []
    if row.names:
        share = len(widths) // len(row.names)
        spans = [total_width(widths[start : start + share]) for start in range(0, share * len(row.names), share)]
        lines = [text_block(letters.shorten(name, width), width, letters) for name, width in zip(row.names, spans, strict=True)]
        blocks.append(line_up(lines, spans))
    return blocks


def total_width(widths: Sequence[int]) -> int:
    """Columns and the gaps between them."""
    return sum(widths) + GAP * (len(widths) - 1)


def seen_classes(masks: Sequence[Mask], label_set: LabelSet) -> list[tuple[str, Color]]:
    """Names and colours of the classes in any of the masks, in their order, for a legend."""
    if label_set.overlap:
        shown = np.zeros(len(label_set.names), np.bool_)
        for mask in masks:
            shown |= mask.any(axis=(1, 2))
        last = [("no class", NO_CLASS_COLOR)] if any((~mask.any(axis=0)).any() for mask in masks) else []
    else:
        shown = np.zeros(256, np.bool_)
        for mask in masks:
            shown[mask.ravel()] = True
        last = [("not labelled", UNLABELED_COLOR)] if shown[UNLABELED] else []
    classes = zip(shown, label_set.names, label_set.colors, strict=False)
    return [(name, color) for is_shown, name, color in classes if is_shown] + last


def _fit(picture: Image.Image, side: int, shrink: Image.Resampling) -> Image.Image:
    """Enlarged by the largest whole factor that fits a square of `side` pixels, or shrunk to fit it."""
    longest = max(picture.size)
    if longest <= side:
        factor = side // longest
        return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
    size = max(1, round(picture.width * side / longest)), max(1, round(picture.height * side / longest))
    return picture.resize(size, shrink)
