"""Blocks of panels and text, put below and beside each other in pixels: texts are measured, so none can overlap.

Drawn with Pillow, not as a matplotlib figure: panels keep their pixels, and nothing depends on global settings.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib
from PIL import Image, ImageDraw, ImageFont

from activeseg.explain.heatmap import Scale, color_bar

Color = tuple[int, int, int]

INK: Color = (32, 32, 32)
PAPER: Color = (255, 255, 255)
FRAME: Color = (190, 190, 190)
GAP = 12
_BAR_THICKNESS = 14
_LONGEST_NAME = 300


class TableRow(NamedTuple):
    """A line of a `table_block`."""

    name: str
    color: Color | None
    numbers: tuple[str, ...]


class Lettering:
    """DejaVu Sans, as matplotlib ships it, at one size in pixels."""

    def __init__(self, size: int = 16) -> None:
        file = Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")
        self.font = ImageFont.truetype(str(file), size, layout_engine=ImageFont.Layout.BASIC)
        ascent, descent = self.font.getmetrics()
        self.line = ascent + descent

    def width(self, text: str) -> int:
        """Pixels one line of text takes."""
        return int(self.font.getlength(text)) + 1

    def shorten(self, text: str, width: int) -> str:
        """The text, cut and ended with an ellipsis where it is wider than `width` pixels."""
        if self.width(text) <= width:
            return text
        fitting = bisect_right(range(1, len(text)), width, key=lambda length: self.width(text[:length] + "…"))
        return text[:fitting].rstrip() + "…"

    def wrap(self, text: str, width: int) -> list[str]:
        """Lines of at most `width` pixels, broken at spaces; a word wider than that is shortened."""
        lines: list[str] = []
        for word in (self.shorten(word, width) for word in text.split()):
            joined = f"{lines[-1]} {word}" if lines else word
            if lines and self.width(joined) <= width:
                lines[-1] = joined
            else:
                lines.append(word)
        return lines


def stack(blocks: Sequence[Image.Image], *, gap: int = GAP) -> Image.Image:
    """Blocks below each other, flush left."""
    height = sum(block.height for block in blocks) + gap * (len(blocks) - 1)
    sheet = Image.new("RGB", (max(block.width for block in blocks), height), PAPER)
    y = 0
    for block in blocks:
        sheet.paste(block, (0, y))
        y += block.height + gap
    return sheet


def line_up(blocks: Sequence[Image.Image | None], widths: Sequence[int]) -> Image.Image:
    """Blocks beside each other, flush at the top, in columns of the given widths; None leaves one empty."""
    sheet = Image.new("RGB", (sum(widths) + GAP * (len(widths) - 1), max(b.height for b in blocks if b)), PAPER)
    x = 0
    for block, width in zip(blocks, widths, strict=True):
        if block:
            sheet.paste(block, (x, 0))
        x += width + GAP
    return sheet


def with_margin(block: Image.Image) -> Image.Image:
    """A block with a blank margin around it."""
    sheet = Image.new("RGB", (block.width + 2 * GAP, block.height + 2 * GAP), PAPER)
    sheet.paste(block, (GAP, GAP))
    return sheet


def framed(panel: Image.Image) -> Image.Image:
    """A panel in a thin frame, so that a white one ends somewhere."""
    sheet = Image.new("RGB", (panel.width + 2, panel.height + 2), FRAME)
    sheet.paste(panel, (1, 1))
    return sheet


def text_block(text: str, width: int, letters: Lettering) -> Image.Image:
    """Text wrapped to `width` pixels."""
    lines = letters.wrap(text, width)
    sheet = Image.new("RGB", (width, max(1, len(lines) * letters.line)), PAPER)
    draw = ImageDraw.Draw(sheet)
    for number, line in enumerate(lines):
        draw.text((0, number * letters.line), line, fill=INK, font=letters.font)
    return sheet


def legend_block(entries: Sequence[tuple[str, Color]], width: int, letters: Lettering) -> Image.Image:
    """Swatches with their names, in as many lines as `width` pixels ask for. `entries` must not be empty."""
    places = list(_places(entries, width, letters))
    lines = 1 + places[-1][0]
    step = letters.line + GAP // 2
    sheet = Image.new("RGB", (width, lines * step), PAPER)
    draw = ImageDraw.Draw(sheet)
    for line, x, name, color in places:
        y = line * step
        draw.rectangle((x, y + 1, x + letters.line - 3, y + letters.line - 2), fill=color, outline=FRAME)
        draw.text((x + letters.line + GAP // 2, y), name, fill=INK, font=letters.font)
    return sheet


def bar_block(length: int, scale: Scale, letters: Lettering) -> Image.Image:
    """The colours of a scale with their numbers below and its label, wrapped, below those."""
    bar = framed(color_bar(length - 2, _BAR_THICKNESS, colormap=scale.colormap))
    numbers = Image.new("RGB", (length, letters.line), PAPER)
    draw = ImageDraw.Draw(numbers)
    ticks = _ticks(length, scale, letters)
    for number, text in enumerate(ticks):
        middle = (length - 1) * number / (len(ticks) - 1)
        x = min(max(0, round(middle - letters.width(text) / 2)), length - letters.width(text))
        draw.text((x, 0), text, fill=INK, font=letters.font)
    return stack([bar, numbers, text_block(scale.label, length, letters)], gap=2)


def table_block(header: Sequence[str], rows: Sequence[TableRow], width: int, letters: Lettering) -> Image.Image:
    """A swatch, a name and numbers a line, in as many columns of lines as `width` pixels hold, filled downwards.

    header: over the name and over each number. Names too long for their place are shortened.
    """
    swatch = letters.line + GAP // 2
    numbers = [
        max(letters.width(text) for text in texts) for texts in zip(header[1:], *(row.numbers for row in rows), strict=True)
    ]
    taken = swatch + sum(GAP + number for number in numbers)
    longest = max(letters.width(name) for name in (header[0], *(row.name for row in rows)))
    name = max(1, min(longest, _LONGEST_NAME, width - taken))
    columns = max(1, (width + 3 * GAP) // (taken + name + 3 * GAP))
    lines = -(-len(rows) // columns)
    sheet = Image.new("RGB", (width, (1 + lines) * (letters.line + 2)), PAPER)
    draw = ImageDraw.Draw(sheet)
    for number, row in enumerate(rows):
        column, line = divmod(number, lines)
        left = column * (taken + name + 3 * GAP)
        if line == 0:
            _table_line(draw, (left, 0), TableRow(header[0], None, tuple(header[1:])), name, numbers, letters)
        _table_line(draw, (left, (1 + line) * (letters.line + 2)), row, name, numbers, letters)
    return sheet


def _table_line(
    draw: ImageDraw.ImageDraw, corner: tuple[int, int], row: TableRow, name: int, numbers: Sequence[int], letters: Lettering
) -> None:
    x, y = corner
    if row.color is not None:
        draw.rectangle((x, y + 1, x + letters.line - 3, y + letters.line - 2), fill=row.color, outline=FRAME)
    x += letters.line + GAP // 2
    draw.text((x, y), letters.shorten(" ".join(row.name.split()), name), fill=INK, font=letters.font)
    x += name
    for text, width in zip(row.numbers, numbers, strict=True):
        x += GAP + width
        draw.text((x - letters.width(text), y), text, fill=INK, font=letters.font)


def _places(entries: Iterable[tuple[str, Color]], width: int, letters: Lettering) -> Iterable[tuple[int, int, str, Color]]:
    """(line, x, name, colour) of each entry; very long names are shortened."""
    swatch = letters.line + GAP // 2
    line = x = 0
    for name, color in entries:
        shown = letters.shorten(" ".join(name.split()), min(width - swatch, _LONGEST_NAME))
        if x and x + swatch + letters.width(shown) > width:
            line, x = line + 1, 0
        yield line, x, shown, color
        x += swatch + letters.width(shown) + 2 * GAP


def _ticks(length: int, scale: Scale, letters: Lettering) -> list[str]:
    """Five, three or two equally spaced numbers, as many as fit with room between them."""
    extent = scale.upper - scale.lower
    decimals = max(0, 2 - math.floor(math.log10(extent)))
    ticks: list[str] = []
    for count in (5, 3, 2):
        values = [scale.lower + extent * i / (count - 1) for i in range(count)]
        ticks = [f"{value:.{decimals}f}" if decimals <= 6 else f"{value:.2e}" for value in values]
        # The numbers at the ends stand inside the bar, those between them centred on their places.
        if length / (count - 1) >= 1.5 * max(map(letters.width, ticks)) + GAP:
            break
    return ticks
