"""Rows of panels under headings: each fits its column, whatever size its image has."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from activeseg.core.labels import LabelSet, Mask
from activeseg.explain.heatmap import Scale
from activeseg.explain.sheet import GAP, Lettering, framed, legend_block, line_up, stack, text_block, with_margin
from activeseg.imaging.coloring import SEVERAL_CLASSES, Pixels, colorize, has_several, overlay, seen_classes

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
    side = panel_side(columns, width=width)
    panels = [[framed(panel(side)) if panel else None for panel in row.panels] for row in rows]
    widths = [max([_LEAST_COLUMN, *(panel.width for panel in column if panel)]) for column in zip(*panels, strict=True)]
    blocks: list[Image.Image] = []
    if any(headings):
        blocks.append(line_up([text_block(text, w, letters) for text, w in zip(headings, widths, strict=True)], widths))
    for row, line in zip(rows, panels, strict=True):
        blocks += _above(row, widths, letters)
        blocks.append(line_up(line, widths))
        blocks += row.below(widths, letters) if row.below else []
    return with_margin(stack([*blocks, *(foot(widths, letters) if foot else [])]))


def panel_side(columns: int, *, width: int = SHEET_WIDTH) -> int:
    """Pixels a panel may be wide and high where there are so many beside each other."""
    return min(_LARGEST_PANEL, (width - 2 * GAP - (columns - 1) * GAP) // columns) - 2


def shrunk(image: Pixels, masks: Sequence[Mask], side: int) -> tuple[Pixels, list[Mask]]:
    """An image (H, W, 3) uint8 and masks of its size as panels of `side` pixels show them; unchanged where they fit.

    Pixels are averaged, classes are those at the nearest pixel.
    """
    height, width = image.shape[:2]
    if max(height, width) <= side:
        return image, list(masks)
    small = np.asarray(_fit(Image.fromarray(image), side, Image.Resampling.BOX))
    rows, columns = (
        (np.arange(new) * 2 + 1) * old // (2 * new) for new, old in zip(small.shape[:2], (height, width), strict=True)
    )
    return small, [np.ascontiguousarray(mask[..., rows[:, None], columns]) for mask in masks]


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


def legend(
    masks: Sequence[Mask], label_set: LabelSet, width: int, letters: Lettering, *, over_image: bool = False
) -> list[Image.Image]:
    """Blocks that say what the colours of the masks mean; none where there is nothing to say.

    over_image: the masks are laid over images, which show through where there is no class.
    """
    entries = seen_classes(masks, label_set, over_image=over_image)
    blocks = [legend_block(entries, width, letters)] if entries else []
    if has_several(masks, label_set):
        blocks.append(text_block(SEVERAL_CLASSES, width, letters))
    return blocks


def _fit(picture: Image.Image, side: int, shrink: Image.Resampling) -> Image.Image:
    """Enlarged by the largest whole factor that fits a square of `side` pixels, or shrunk to fit it."""
    longest = max(picture.size)
    if longest <= side:
        factor = side // longest
        return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
    size = max(1, round(picture.width * side / longest)), max(1, round(picture.height * side / longest))
    return picture.resize(size, shrink)
