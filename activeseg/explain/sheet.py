"""Blocks of panels and text, put below and beside each other in pixels: texts are measured, so none can overlap.

Drawn with Pillow, not as a matplotlib figure: panels keep their pixels, and nothing depends on global settings.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from pathlib import Path

import matplotlib
from PIL import Image, ImageDraw, ImageFont

from activeseg.explain.heatmap import color_bar

Color = tuple[int, int, int]

INK: Color = (32, 32, 32)
PAPER: Color = (255, 255, 255)
FRAME: Color = (190, 190, 190)
GAP = 12
_BAR_THICKNESS = 14
_LONGEST_NAME = 300


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


def bar_block(length: int, upper: float, label: str, colormap: str, letters: Lettering) -> Image.Image:
    """The colour scale from 0 to `upper` with its numbers below and the label, wrapped, below those."""
    bar = framed(color_bar(length - 2, _BAR_THICKNESS, colormap=colormap))
    numbers = Image.new("RGB", (length, letters.line), PAPER)
    draw = ImageDraw.Draw(numbers)
    ticks = _ticks(length, upper, letters)
    for number, text in enumerate(ticks):
        middle = (length - 1) * number / (len(ticks) - 1)
        x = min(max(0, round(middle - letters.width(text) / 2)), length - letters.width(text))
        draw.text((x, 0), text, fill=INK, font=letters.font)
    return stack([bar, numbers, text_block(label, length, letters)], gap=2)


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


def _ticks(length: int, upper: float, letters: Lettering) -> list[str]:
    """Five, three or two equally spaced numbers, as many as fit with room between them."""
    decimals = max(0, 2 - math.floor(math.log10(upper)))
    ticks: list[str] = []
    for count in (5, 3, 2):
        ticks = [f"{upper * i / (count - 1):.{decimals}f}" for i in range(count)]
        if sum(letters.width(text) + GAP for text in ticks) <= length:
            break
    return ticks
