"""The mIoU of the last trainings as a line in a small picture (SVG)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

WIDTH, HEIGHT, MARGIN = 320.0, 90.0, 6.0
SPREAD = 0.02
"""Least difference of mIoU over the picture's height, so that noise does not look like a climb."""


@dataclass(frozen=True, slots=True)
class Curve:
    """points: of an SVG polyline in a box of WIDTH x HEIGHT. first, last: mIoU."""

    points: str
    end: tuple[float, float]
    first: float
    last: float
    width: float = WIDTH
    height: float = HEIGHT


def curve_of(trainings: Sequence[tuple[int, float]]) -> Curve | None:
    """A line from the oldest to the youngest (training images, mIoU); None where there are fewer than two."""
    if len(trainings) < 2:
        return None
    values = [value for _, value in trainings]
    middle, spread = (max(values) + min(values)) / 2, max(max(values) - min(values), SPREAD)
    step = (WIDTH - 2 * MARGIN) / (len(values) - 1)
    points = [
        (MARGIN + step * index, HEIGHT / 2 - (value - middle) / spread * (HEIGHT - 2 * MARGIN))
        for index, value in enumerate(values)
    ]
    return Curve(" ".join(f"{x:.1f},{y:.1f}" for x, y in points), points[-1], values[0], values[-1])
