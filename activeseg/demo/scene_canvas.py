"""A camera on a street and a canvas that draws an image and its mask with the same strokes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

Color = tuple[float, float, float]
"""Red, green, blue, 0..255."""

Point = tuple[float, float]
Floats = npt.NDArray[np.float32]

SKY, BUILDING, POLE, ROAD, SIDEWALK, VEGETATION, SIGN, FENCE, VEHICLE, PEDESTRIAN, BICYCLIST, VOID = range(12)

OVERSAMPLING = 2
"""Strokes are drawn this many times larger and averaged, so that thin things are grey at the edge as in a photograph."""


@dataclass(frozen=True, slots=True)
class Camera:
    """A pinhole camera over a road that may bend.

    Metres: x to the right of the camera, y above the ground, z ahead. A road point at (x, z) lies at x + bend * z * z.
    Pixels of the oversampled canvas: focal length, vanishing point (center_x, horizon).
    """

    width: int
    height: int
    focal: float
    center_x: float
    horizon: float
    eye: float
    bend: float

    def point(self, x: float, y: float, z: float) -> Point:
        """Pixel of a point in metres; z must be positive."""
        return self.center_x + self.focal * (x / z + self.bend * z), self.horizon + self.focal * (self.eye - y) / z

    def ground(self) -> tuple[Floats, Floats]:
        """(x (H, W), z (H, 1)) in metres of the ground seen at each pixel; z is infinite above the horizon."""
        rows = np.arange(self.height, dtype=np.float32)[:, None] + 0.5
        columns = np.arange(self.width, dtype=np.float32)[None, :] + 0.5
        below = np.maximum(rows - self.horizon, 1e-6)
        z = np.where(rows > self.horizon + 0.5, self.focal * self.eye / below, np.inf).astype(np.float32)
        near = np.where(np.isfinite(z), z, 1.0).astype(np.float32)
        return (columns - self.center_x) / self.focal * near - self.bend * near * near, z

    def wall(self, x: float) -> Floats:
        """z (W,) in metres at which each column's ray meets the plane that runs along the road at x; infinite if never.

        Solves bend * z^2 - u * z + x = 0 for u = (column - center_x) / focal, taking the root that stays when bend is 0.
        """
        u = (np.arange(self.width, dtype=np.float32) + 0.5 - self.center_x) / self.focal
        inside = u * u - 4 * self.bend * x
        denominator = u + np.sign(x) * np.sqrt(np.maximum(inside, 0))
        with np.errstate(divide="ignore"):
            z = 2 * x / denominator
        return np.where((inside >= 0) & (z > 0), z, np.inf).astype(np.float32)


class Canvas:
    """An RGB image and its index mask, drawn together; colours fade into haze with distance."""

    def __init__(self, camera: Camera, *, haze: Color, visibility: float) -> None:
        """visibility: metres after which 63 % of a colour is haze."""
        self.camera = camera
        self.haze = np.asarray(haze, np.float32)
        self._haze = haze
        self.visibility = visibility
        size = (camera.width, camera.height)
        self._image = Image.new("RGB", size)
        self._mask = Image.new("L", size, VOID)
        self._brushes = ImageDraw.Draw(self._image), ImageDraw.Draw(self._mask)

    @property
    def image(self) -> npt.NDArray[np.uint8]:
        """A copy of the image, (H, W, 3) uint8, oversampled."""
        return np.array(self._image)

    @property
    def mask(self) -> npt.NDArray[np.uint8]:
        """A copy of the mask, (H, W) uint8, oversampled."""
        return np.array(self._mask)

    def replace(self, image: Floats, mask: npt.NDArray[np.uint8]) -> None:
        """Continue from an image (H, W, 3) 0..255 and a mask (H, W)."""
        self._image = Image.fromarray(np.clip(image, 0, 255).astype(np.uint8))
        self._mask = Image.fromarray(mask)
        self._brushes = ImageDraw.Draw(self._image), ImageDraw.Draw(self._mask)

    def fade(self, colors: Floats, z: Floats | float) -> Floats:
        """Colours (..., 3) as seen through z metres of haze; z broadcasts against the leading axes."""
        kept = np.exp(-np.asarray(z, np.float32) / self.visibility)[..., None]
        faded: Floats = (colors * kept + self.haze * (1 - kept)).astype(np.float32)
        return faded

    def polygon(self, points: Sequence[Point], color: Color, label: int | None, z: float) -> None:
        """Fill a polygon; label None changes the image only (markings, windows, lamps)."""
        self._brushes[0].polygon(points, fill=self._ink(color, z))
        if label is not None:
            self._brushes[1].polygon(points, fill=label)

    def box(self, left: float, top: float, right: float, bottom: float, color: Color, label: int | None, z: float) -> None:
        """Fill an upright rectangle given in pixels; never thinner than one pixel."""
        corners = (left, top, max(right, left), max(bottom, top))
        self._brushes[0].rectangle(corners, fill=self._ink(color, z))
        if label is not None:
            self._brushes[1].rectangle(corners, fill=label)

    def ellipse(self, center: Point, radius_x: float, radius_y: float, color: Color, label: int | None, z: float) -> None:
        """Fill an ellipse given in pixels."""
        corners = _around(center, radius_x, radius_y)
        self._brushes[0].ellipse(corners, fill=self._ink(color, z))
        if label is not None:
            self._brushes[1].ellipse(corners, fill=label)

    def ring(self, center: Point, radius_x: float, radius_y: float, color: Color, label: int, z: float) -> None:
        """Outline an ellipse in the image and fill it in the mask, as people annotate a wheel."""
        corners = _around(center, radius_x, radius_y)
        self._brushes[0].ellipse(corners, outline=self._ink(color, z), width=max(1, round(radius_y * 0.3)))
        self._brushes[1].ellipse(corners, fill=label)

    def line(self, start: Point, end: Point, width: float, color: Color, label: int, z: float) -> None:
        """Draw a straight stroke of a width in pixels."""
        pixels = max(1, round(width))
        self._brushes[0].line((start, end), fill=self._ink(color, z), width=pixels)
        self._brushes[1].line((start, end), fill=label, width=pixels)

    def _ink(self, color: Color, z: float) -> tuple[int, int, int]:
        # Plain numbers: numpy's cost per call would dominate hundreds of strokes.
        kept = math.exp(-z / self.visibility)
        mixed = (own * kept + far * (1 - kept) for own, far in zip(color, self._haze, strict=True))
        red, green, blue = (round(min(max(value, 0.0), 255.0)) for value in mixed)
        return red, green, blue


def _around(center: Point, radius_x: float, radius_y: float) -> tuple[float, float, float, float]:
    return center[0] - radius_x, center[1] - radius_y, center[0] + radius_x, center[1] + radius_y
