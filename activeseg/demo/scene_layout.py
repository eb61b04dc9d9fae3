"""How a street is laid out, in metres: road, sidewalks, yards, walls along the road and the skyline at its end."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from activeseg.demo.scene_canvas import BUILDING, FENCE, SIDEWALK, VEGETATION, Color, Floats

STREET_LENGTH = 160.0
"""Metres of street that are laid out; what lies further is skyline."""

FACADES = ((182, 152, 112), (158, 86, 66), (196, 172, 132), (128, 96, 72), (176, 124, 84), (140, 136, 132), (150, 110, 96))
"""Plaster, brick, sandstone, concrete."""

FENCES = ((92, 60, 40), (205, 205, 200), (60, 75, 95))
"""Wood, white paint, iron."""

SEGMENTS = 14
"""Houses, hedges, fences and gaps on one side of a street."""

OPEN = 255
"""Kind of a wall segment where nothing stands."""


@dataclass(frozen=True, slots=True)
class Wall:
    """What stands along the road at distance x (negative: left): segments from edges[i] to edges[i + 1] metres.

    kinds: BUILDING, VEGETATION, FENCE or OPEN; heights in metres; colors (S, 3); period: window or bar spacing in metres.
    """

    x: float
    edges: Floats
    kinds: npt.NDArray[np.uint8]
    heights: Floats
    colors: Floats
    periods: Floats


@dataclass(frozen=True, slots=True)
class Street:
    """A street in metres: road from left to right, sidewalks beside it, yards beyond, perhaps a crossing road."""

    left: float
    right: float
    sidewalks: tuple[float, float]
    yards: tuple[int, int]
    crossing: tuple[float, float]
    road_color: Color
    sidewalk_color: Color
    grass_color: Color
    lane_marks: bool
    zebra: float | None
    walls: tuple[Wall, ...]
    skyline: tuple[tuple[float, float, float, int, Color], ...]


def sample_street(rng: np.random.Generator) -> Street:
    """A random street: narrow or wide, green or built up."""
    left, right = -float(rng.uniform(2.4, 6.5)), float(rng.uniform(2.4, 4.6))
    sidewalks = (_sidewalk_width(rng), _sidewalk_width(rng))
    start = float(rng.uniform(14, 60)) if rng.random() < 0.4 else STREET_LENGTH * 2
    crossing = (start, start + float(rng.uniform(6, 10)))
    greenery = float(rng.beta(1.2, 1.6))
    walls = [wall for side in (0, 1) for wall in _side_walls(rng, side, (left, right), sidewalks, crossing, greenery)]
    grey, warm = rng.uniform(62, 100), rng.uniform(-4, 10)
    pale = float(np.clip(grey + rng.normal(62, 14), 110, 200))
    return Street(
        left=left,
        right=right,
        sidewalks=sidewalks,
        yards=(_yard(rng, greenery), _yard(rng, greenery)),
        crossing=crossing,
        road_color=(grey, grey, grey - warm * 0.5),
        sidewalk_color=(pale + warm, pale + warm * 0.4, pale - warm * 0.6),
        grass_color=leaf_color(rng),
        lane_marks=bool(rng.random() < 0.7),
        zebra=start - 4 if start < 60 and rng.random() < 0.6 else None,
        walls=tuple(walls),
        skyline=_sample_skyline(rng, greenery),
    )


def leaf_color(rng: np.random.Generator) -> Color:
    """Green mostly, sometimes autumn, sometimes bare and grey."""
    season = rng.random()
    tone = rng.uniform(0.65, 1.2)
    if season < 0.88:
        color = np.array([rng.uniform(45, 85), rng.uniform(95, 130), rng.uniform(30, 60)])
    elif season < 0.96:
        color = np.array([rng.uniform(120, 165), rng.uniform(80, 120), rng.uniform(35, 60)])
    else:
        color = np.array([rng.uniform(85, 110), rng.uniform(80, 100), rng.uniform(70, 90)])
    red, green, blue = (color * tone).tolist()
    return red, green, blue


def _sidewalk_width(rng: np.random.Generator) -> float:
    return float(rng.uniform(1.6, 5.0)) if rng.random() < 0.9 else 0.0


def _yard(rng: np.random.Generator, greenery: float) -> int:
    return VEGETATION if rng.random() < 0.2 + 0.7 * greenery else SIDEWALK


def _sample_skyline(rng: np.random.Generator, greenery: float) -> tuple[tuple[float, float, float, int, Color], ...]:
    blocks = []
    for _ in range(int(rng.integers(3, 10))):
        label = VEGETATION if rng.random() < greenery else BUILDING
        color = leaf_color(rng) if label == VEGETATION else _facade_color(rng)
        blocks.append((float(rng.uniform(-0.7, 0.7)), float(rng.uniform(0.05, 0.3)), float(rng.gamma(2, 0.025)), label, color))
    return tuple(blocks)


def _side_walls(
    rng: np.random.Generator,
    side: int,
    road: tuple[float, float],
    sidewalks: tuple[float, float],
    crossing: tuple[float, float],
    greenery: float,
) -> list[Wall]:
    sign = (-1, 1)[side]
    kerb = abs(road[side]) + sidewalks[side]
    setback = float(rng.choice([0.0, rng.uniform(1, 7)]))
    shares = np.array([1 - greenery, 0.75 * greenery, 0.12 + 0.15 * greenery])
    back = _sample_wall(rng, sign * (kerb + setback), (BUILDING, VEGETATION, OPEN), shares, crossing)
    if rng.random() > 0.65:
        return [back]
    inner = _sample_wall(rng, sign * (kerb + 0.2), (FENCE, VEGETATION, OPEN), np.array([0.5, 0.1, 0.4]), crossing, low=True)
    return [back, inner]


def _sample_wall(
    rng: np.random.Generator,
    x: float,
    choices: tuple[int, int, int],
    shares: npt.NDArray[np.float64],
    crossing: tuple[float, float],
    *,
    low: bool = False,
) -> Wall:
    lengths = rng.uniform(5, 22, SEGMENTS)
    edges = np.concatenate([[-5.0], np.cumsum(lengths) - 5.0])
    kinds = rng.choice(np.array(choices, np.uint8), SEGMENTS, p=shares / shares.sum())
    edges, kinds = _cut(edges, kinds, crossing)
    count = len(kinds)
    tall = np.where(kinds == BUILDING, rng.uniform(5, 19, count), rng.uniform(2, 9, count))
    heights = rng.uniform(1.0, 2.1, count) if low else tall
    colors = np.array([_segment_color(rng, kind) for kind in kinds])
    periods = np.where(kinds == FENCE, rng.uniform(0.35, 0.7, count), rng.uniform(1.6, 3.4, count))
    f32 = np.float32
    return Wall(x, edges.astype(f32), kinds, heights.astype(f32), colors.astype(f32), periods.astype(f32))


def _cut(
    edges: npt.NDArray[np.float64], kinds: npt.NDArray[np.uint8], crossing: tuple[float, float]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.uint8]]:
    """Open every wall where the other road passes."""
    start, end = crossing
    merged = np.unique(np.concatenate([edges, [start - 1, end + 1]]))
    middles = (merged[1:] + merged[:-1]) / 2
    old = np.clip(np.searchsorted(edges, middles) - 1, 0, len(kinds) - 1)
    beyond = (middles > start - 1) & (middles < end + 1) | (middles > edges[-1])
    return merged, np.where(beyond, OPEN, kinds[old]).astype(np.uint8)


def _segment_color(rng: np.random.Generator, kind: int) -> Color:
    if kind == VEGETATION:
        return leaf_color(rng)
    if kind == FENCE:
        red, green, blue = (np.array(FENCES[rng.integers(len(FENCES))]) * rng.uniform(0.8, 1.1)).tolist()
        return red, green, blue
    return _facade_color(rng)


def _facade_color(rng: np.random.Generator) -> Color:
    base = np.array(FACADES[rng.integers(len(FACADES))])
    red, green, blue = (base * rng.uniform(0.7, 1.15) + rng.normal(0, 5, 3)).tolist()
    return red, green, blue
