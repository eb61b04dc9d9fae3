"""What stands or moves on a street: trees, poles, signs, vehicles, pedestrians, bicyclists and things nobody named."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from activeseg.demo.scene_canvas import (
    BICYCLIST,
    PEDESTRIAN,
    POLE,
    SIGN,
    VEGETATION,
    VEHICLE,
    VOID,
    Canvas,
    Color,
    Point,
)
from activeseg.demo.scene_layout import Street, leaf_color

NEAREST = 2.5
"""Metres before the camera at which an object has left the picture."""


@dataclass(frozen=True, slots=True)
class Thing:
    """An object at x metres beside and z metres ahead of the first frame; speed in metres a frame (away is positive).

    shape: seed of its looks, so that it looks the same in every frame of a clip.
    """

    kind: str
    x: float
    z: float
    speed: float
    shape: int


def sample_things(rng: np.random.Generator, street: Street, crowd: float) -> tuple[Thing, ...]:
    """Objects of a street; crowd 0..1 is how much is going on."""
    things: list[Thing] = []

    def add(kind: str, mean: float, place: Callable[[], float], near: float, far: float, speed: float = 0.0) -> None:
        for _ in range(int(rng.poisson(mean))):
            # Squared: more near than far, so that most of what is labelled is large enough to be learnt.
            z = near + (far - near) * float(rng.random()) ** 2
            things.append(Thing(kind, place(), z, speed, int(rng.integers(2**31))))

    def lane() -> float:
        return float(rng.uniform(street.left + 1.2, street.right - 1.2))

    def kerb() -> float:
        side = rng.integers(2)
        return float((street.left, street.right)[side] + (-1, 1)[side] * rng.uniform(0.2, 0.6))

    def parked() -> float:
        side = rng.integers(2)
        return float((street.left, street.right)[side] - (-1, 1)[side] * rng.uniform(0.9, 1.1))

    def walk() -> float:
        side = rng.integers(2)
        return float((street.left, street.right)[side] + (-1, 1)[side] * rng.uniform(0.4, max(0.6, street.sidewalks[side])))

    add("tree", 1.6, walk, 8, 50)
    add("pole", 2.2, kerb, 5, 20)
    add("sign", 1.2 + 1.2 * crowd, kerb, 4, 13)
    add("signal", 1.4 if street.crossing[0] < 60 else 0.25, kerb, 5, 13)
    add("parked", 0.5 + 2.5 * crowd, parked, 5, 35)
    add("car", 0.5 + 1.5 * crowd, lane, 6, 30, 0.3)
    add("van", 0.1 + 0.5 * crowd, lane, 8, 30, 0.2)
    add("pedestrian", 0.4 + 2.8 * crowd, walk, 4, 14, 0.1)
    add("pedestrian", 0.8 * crowd, lane, 5.5, 14)
    add("bicyclist", 0.2 + 1.2 * crowd, lane, 4.5, 12, 0.25)
    add("clutter", 0.5 + 1.2 * crowd, walk, 4, 25)
    return tuple(things)


def draw_things(canvas: Canvas, things: tuple[Thing, ...], *, advance: float, frame: int) -> None:
    """Paint the objects from far to near, so that near ones hide far ones."""
    placed = [(thing.z + thing.speed * frame - advance, thing) for thing in things]
    for z, thing in sorted(placed, key=lambda item: -item[0]):
        if NEAREST < z < 110:
            _PAINTERS[thing.kind](canvas, thing.x, z, np.random.default_rng(thing.shape))


def draw_hood(canvas: Canvas, rng: np.random.Generator) -> None:
    """The camera car's own hood at the lower edge: labelled void."""
    width, height = canvas.camera.width, canvas.camera.height
    grey = float(rng.uniform(20, 110))
    center = (width * float(rng.uniform(0.4, 0.6)), height * 1.12)
    canvas.ellipse(center, width * 0.55, height * float(rng.uniform(0.15, 0.22)), (grey, grey, grey * 1.05), VOID, 0.0)


def paint_color(rng: np.random.Generator) -> Color:
    """A car's or a coat's colour: mostly greys, sometimes loud."""
    if rng.random() < 0.5:
        grey = float(rng.uniform(25, 225))
        return grey, grey, grey + float(rng.uniform(-8, 12))
    red, green, blue = rng.uniform(25, 190, 3).tolist()
    return red, green, blue


def _scaled(color: Color, factor: float) -> Color:
    return color[0] * factor, color[1] * factor, color[2] * factor


def _shadow(canvas: Canvas, x: float, z: float, half: float) -> None:
    center, scale = canvas.camera.point(x, 0.0, z), canvas.camera.focal / z
    canvas.ellipse(center, half * scale, half * scale * 0.16, (28, 28, 32), None, z)


def _tree(canvas: Canvas, x: float, z: float, rng: np.random.Generator) -> None:
    camera, scale = canvas.camera, canvas.camera.focal / z
    height, crown = float(rng.uniform(3.5, 8)), float(rng.uniform(1.2, 2.6))
    base, fork = camera.point(x, 0, z), camera.point(x, height - crown, z)
    thick = float(rng.uniform(0.12, 0.25)) * scale
    canvas.box(base[0] - thick, fork[1], base[0] + thick, base[1], (78, 66, 54), VEGETATION, z)
    color = leaf_color(rng)
    for _ in range(9):
        dx, dy = rng.normal(0, 0.45 * crown, 2)
        tone = _scaled(color, float(rng.uniform(0.75, 1.2)))
        size = crown * float(rng.uniform(0.4, 0.75)) * scale
        canvas.ellipse((fork[0] + dx * scale, fork[1] + (dy - crown * 0.4) * scale), size, size * 0.85, tone, VEGETATION, z)


def _post(canvas: Canvas, x: float, z: float, height: float, thick: float, color: Color) -> None:
    base, top, half = canvas.camera.point(x, 0, z), canvas.camera.point(x, height, z), thick / 2 * canvas.camera.focal / z
    canvas.box(base[0] - half, top[1], base[0] + half, base[1], color, POLE, z)


def _pole(canvas: Canvas, x: float, z: float, rng: np.random.Generator) -> None:
    height, grey = float(rng.uniform(4.5, 8.5)), float(rng.uniform(35, 90))
    _post(canvas, x, z, height, float(rng.uniform(0.26, 0.42)), (grey, grey, grey))
    if rng.random() < 0.6:
        reach = -np.sign(x) * rng.uniform(0.8, 1.8)
        start, end = canvas.camera.point(x, height, z), canvas.camera.point(x + reach, height + 0.2, z)
        canvas.line(start, end, 0.16 * canvas.camera.focal / z, (grey, grey, grey), POLE, z)


def _sign(canvas: Canvas, x: float, z: float, rng: np.random.Generator) -> None:
    height, half = float(rng.uniform(2.2, 3.2)), float(rng.uniform(0.42, 0.68))
    grey = float(rng.uniform(90, 150))
    _post(canvas, x, z, height, 0.14, (grey, grey, grey))
    (cx, cy), size = canvas.camera.point(x, height, z), half * canvas.camera.focal / z
    rim: Color = ((195, 30, 38), (30, 65, 175), (225, 185, 40))[rng.integers(3)]
    face: Color = (205, 205, 200) if rng.random() < 0.5 else _scaled(rim, 0.9)
    if rng.random() < 0.35:
        canvas.polygon([(cx, cy - size), (cx + size, cy + size * 0.8), (cx - size, cy + size * 0.8)], rim, SIGN, z)
        inner = size * 0.5
        canvas.polygon([(cx, cy - inner), (cx + inner, cy + inner), (cx - inner, cy + inner)], face, SIGN, z)
    elif rng.random() < 0.5:
        canvas.ellipse((cx, cy), size, size, rim, SIGN, z)
        canvas.ellipse((cx, cy), size * 0.65, size * 0.65, face, SIGN, z)
    else:
        canvas.box(cx - size, cy - size, cx + size, cy + size * 0.7, rim, SIGN, z)
        canvas.box(cx - size * 0.7, cy - size * 0.5, cx + size * 0.7, cy + size * 0.2, face, SIGN, z)


def _signal(canvas: Canvas, x: float, z: float, rng: np.random.Generator) -> None:
    _post(canvas, x, z, 2.8, 0.2, (50, 50, 52))
    (cx, cy), scale = canvas.camera.point(x, 3.0, z), canvas.camera.focal / z
    canvas.box(cx - 0.28 * scale, cy - 0.75 * scale, cx + 0.28 * scale, cy + 0.45 * scale, (28, 30, 28), SIGN, z)
    lit = int(rng.integers(3))
    lamp: Color = ((235, 60, 50), (240, 190, 70), (80, 225, 130))[lit]
    canvas.ellipse((cx, cy + (-0.5 + 0.36 * lit) * scale), 0.16 * scale, 0.16 * scale, lamp, None, z)


def _car(canvas: Canvas, x: float, z: float, rng: np.random.Generator) -> None:
    _vehicle(canvas, x, z, rng, half=0.9, roof=float(rng.uniform(1.35, 1.75)), length=4.2)


def _van(canvas: Canvas, x: float, z: float, rng: np.random.Generator) -> None:
    _vehicle(canvas, x, z, rng, half=1.1, roof=float(rng.uniform(2.1, 3.3)), length=float(rng.uniform(5, 10)))


def _vehicle(canvas: Canvas, x: float, z: float, rng: np.random.Generator, *, half: float, roof: float, length: float) -> None:
    """A box seen from behind or before: the flank that the camera sees, then the face with its glass, lamps and wheels."""
    point, color = canvas.camera.point, paint_color(rng)
    belt, glass, far = roof * 0.58, (35.0, 42.0, 52.0), z + length
    _shadow(canvas, x, z, half * 1.15)
    side = x + half if x < 0 else x - half
    inset = side - np.sign(side - x) * 0.15
    flank = [point(side, 0.25, z), point(side, belt, z), point(side, belt, far), point(side, 0.25, far)]
    canvas.polygon(flank, _scaled(color, 0.7), VEHICLE, z)
    cabin = [point(side, belt, z), point(inset, roof, z + 0.5), point(inset, roof, far - length * 0.2), point(side, belt, far)]
    canvas.polygon(cabin, _scaled(color, 0.6) if roof > 2 else glass, VEHICLE, z)
    for wheel in (z + length * 0.2, z + length * 0.8):
        scale = canvas.camera.focal / wheel
        canvas.ellipse(point(side, 0.3, wheel), 0.16 * scale, 0.32 * scale, (22, 22, 24), VEHICLE, wheel)
    face = [point(x - half, 0.3, z), point(x - half, belt, z), point(x + half, belt, z), point(x + half, 0.3, z)]
    canvas.polygon(face, color, VEHICLE, z)
    canvas.polygon(_trapezoid(canvas, x, z, (half, belt), (half - 0.15, roof)), color, VEHICLE, z)
    canvas.polygon(_trapezoid(canvas, x, z, (half - 0.15, belt), (half - 0.25, roof - 0.12)), glass, None, z)
    _face_details(canvas, x, z, half, belt, bool(rng.random() < 0.6))


def _trapezoid(canvas: Canvas, x: float, z: float, low: Point, high: Point) -> list[Point]:
    """Corners of an upright trapezoid; low and high are (half width, height) in metres."""
    point = canvas.camera.point
    corners = ((-low[0], low[1]), (-high[0], high[1]), high, low)
    return [point(x + across, up, z) for across, up in corners]


def _face_details(canvas: Canvas, x: float, z: float, half: float, belt: float, rear: bool) -> None:
    point, scale = canvas.camera.point, canvas.camera.focal / z
    lamp: Color = (185, 30, 30) if rear else (240, 238, 215)
    for end in (-1, 1):
        cx, cy = point(x + end * (half - 0.2), belt * 0.8, z)
        canvas.ellipse((cx, cy), 0.15 * scale, 0.1 * scale, lamp, None, z)
        wx, wy = point(x + end * (half - 0.15), 0.0, z)
        canvas.box(wx - 0.13 * scale, wy - 0.4 * scale, wx + 0.13 * scale, wy, (20, 20, 22), VEHICLE, z)


def _person(
    canvas: Canvas, x: float, z: float, rng: np.random.Generator, coat: Color, *, feet: float, tall: float, label: int
) -> None:
    """Head, trunk and legs; `feet` metres above the ground."""
    point, scale = canvas.camera.point, canvas.camera.focal / z
    trousers = _scaled(paint_color(rng), 0.6)
    skin = _scaled((215, 170, 140), float(rng.uniform(0.45, 1.05)))
    hip, neck, half, stride = feet + 0.47 * tall, feet + 0.82 * tall, 0.14 * tall, float(rng.uniform(0.05, 0.28))
    for end in (-1, 1):
        canvas.line(point(x + end * 0.06, hip, z), point(x + end * stride, feet, z), 0.15 * scale, trousers, label, z)
    canvas.polygon(_trapezoid(canvas, x, z, (half * 0.75, hip), (half, neck - 0.08)), coat, label, z)
    for end in (-1, 1):
        shoulder, hand = point(x + end * half, neck - 0.1, z), point(x + end * (half + 0.1), hip, z)
        canvas.line(shoulder, hand, 0.1 * scale, _scaled(coat, 0.85), label, z)
    canvas.ellipse(point(x, feet + 0.92 * tall, z), 0.11 * scale, 0.14 * scale, skin, label, z)


def _pedestrian(canvas: Canvas, x: float, z: float, rng: np.random.Generator) -> None:
    _shadow(canvas, x, z, 0.4)
    _person(canvas, x, z, rng, paint_color(rng), feet=0.0, tall=float(rng.uniform(1.25, 1.9)), label=PEDESTRIAN)


def _bicyclist(canvas: Canvas, x: float, z: float, rng: np.random.Generator) -> None:
    point, scale = canvas.camera.point, canvas.camera.focal / z
    _shadow(canvas, x, z, 0.6)
    frame = _scaled(paint_color(rng), 0.7)
    apart = float(rng.choice([0.08, 0.5, 0.52]))
    thin = 0.34 if apart > 0.3 else 0.08
    for end in (-1, 1):
        canvas.ring(point(x + end * apart, 0.34, z), thin * scale, 0.34 * scale, (22, 22, 24), BICYCLIST, z)
    for end in (-1, 1):
        canvas.line(point(x + end * apart, 0.34, z), point(x, 0.85, z), 0.08 * scale, frame, BICYCLIST, z)
    vest: Color = ((225, 220, 60), (240, 140, 40))[rng.integers(2)] if rng.random() < 0.7 else paint_color(rng)
    _person(canvas, x, z, rng, vest, feet=0.3, tall=float(rng.uniform(1.35, 1.6)), label=BICYCLIST)


def _clutter(canvas: Canvas, x: float, z: float, rng: np.random.Generator) -> None:
    """Bins, boxes, prams: real streets are full of things outside the list of classes."""
    base, scale = canvas.camera.point(x, 0, z), canvas.camera.focal / z
    half, tall = float(rng.uniform(0.2, 0.5)) * scale, float(rng.uniform(0.5, 1.2)) * scale
    canvas.box(base[0] - half, base[1] - tall, base[0] + half, base[1], paint_color(rng), VOID, z)


_PAINTERS: dict[str, Callable[[Canvas, float, float, np.random.Generator], None]] = {
    "tree": _tree,
    "pole": _pole,
    "sign": _sign,
    "signal": _signal,
    "parked": _car,
    "car": _car,
    "van": _van,
    "pedestrian": _pedestrian,
    "bicyclist": _bicyclist,
    "clutter": _clutter,
}
