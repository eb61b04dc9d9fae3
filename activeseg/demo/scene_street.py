"""Painting what stands still in a street and is wider than an object: sky, skyline, ground and walls."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image

from activeseg.demo.scene_canvas import BUILDING, FENCE, ROAD, SIDEWALK, SKY, VEGETATION, Canvas, Color, Floats
from activeseg.demo.scene_layout import OPEN, STREET_LENGTH, Street, Wall


def draw_street(
    canvas: Canvas, street: Street, rng: np.random.Generator, *, advance: float, zenith: Color, shadow: tuple[float, float]
) -> None:
    """Paint sky, skyline, ground and walls as seen `advance` metres down the street.

    shadow: (reach, strength); reach is metres of shadow per metre of height, positive where the sun stands on the left.
    """
    image, mask = _sky(canvas, zenith, rng)
    canvas.replace(image, mask)
    _draw_skyline(canvas, street)
    image, mask = canvas.image.astype(np.float32), canvas.mask
    _ground(canvas, street, image, mask, advance, shadow)
    for wall in street.walls:
        _draw_wall(canvas, wall, image, mask, advance)
    canvas.replace(image, mask)


def _sky(canvas: Canvas, zenith: Color, rng: np.random.Generator) -> tuple[Floats, npt.NDArray[np.uint8]]:
    camera = canvas.camera
    rows = int(camera.horizon) + 2
    share = np.linspace(0, 1, rows, dtype=np.float32)[:, None, None]
    clouds = smooth_noise(rng, camera.width, rows, cells=(4, 8))
    cover = np.clip(clouds * np.float32(rng.uniform(0, 1.4)) - np.float32(0.2), 0, 0.8)[..., None]
    clear = np.asarray(zenith, np.float32) * (1 - share) + canvas.haze * share
    image = np.zeros((camera.height, camera.width, 3), np.float32)
    image[:rows] = clear + cover * (np.float32(rng.uniform(170, 245)) - clear)
    return image, np.full((camera.height, camera.width), SKY, np.uint8)


def _draw_skyline(canvas: Canvas, street: Street) -> None:
    camera = canvas.camera
    for center, width, height, label, color in street.skyline:
        middle = camera.center_x + center * camera.width
        half, top = width * camera.width / 2, camera.horizon - (height + 0.02) * camera.height
        if label == BUILDING:
            canvas.box(middle - half, top, middle + half, camera.horizon + 2, color, label, 90.0)
        else:
            canvas.ellipse((middle, camera.horizon), half, camera.horizon - top, color, label, 90.0)


def _ground(
    canvas: Canvas, street: Street, image: Floats, mask: npt.NDArray[np.uint8], advance: float, shadow: tuple[float, float]
) -> None:
    """Paint everything below the horizon in place."""
    x, z = canvas.camera.ground()
    first = int(np.argmax(np.isfinite(z[:, 0])))
    x, z = x[first:], z[first:]
    along = z + np.float32(advance)
    walk_left, walk_right = street.left - street.sidewalks[0], street.right + street.sidewalks[1]
    label = np.where(x < walk_left, np.uint8(street.yards[0]), np.uint8(SIDEWALK))
    label = np.where(x > walk_right, np.uint8(street.yards[1]), label)
    on_road = (x > street.left) & (x < street.right) | (along > street.crossing[0]) & (along < street.crossing[1])
    label = np.where(on_road, np.uint8(ROAD), label)
    table = np.zeros((256, 3), np.float32)
    table[ROAD], table[SIDEWALK], table[VEGETATION] = street.road_color, street.sidewalk_color, street.grass_color
    texture = _ground_texture(street, label, x, along, z)
    if shadow[1]:
        texture *= 1 - shadow[1] * _house_shadows(street, x, along, shadow[0])
    colors = table[label] * texture[..., None]
    image[first:], mask[first:] = canvas.fade(colors, z), label


def _ground_texture(street: Street, label: npt.NDArray[np.uint8], x: Floats, along: Floats, z: Floats) -> Floats:
    """Brightness (H, W): slab joints, kerbs, lane marks, zebra crossings, worn wheel tracks."""
    detail = np.exp(-z / 14)
    joints = ((x % 0.8) < 0.09) | ((along % 0.8) < 0.09)
    factor = np.where((label == SIDEWALK) & joints, 1 - 0.35 * detail, 1.0)
    road = label == ROAD
    kerb = road & ((x < street.left + 0.18) | (x > street.right - 0.18)) & (along < street.crossing[0])
    factor = np.where(kerb, 0.6, factor)
    middle = (street.left + street.right) / 2
    factor = np.where(road, factor * (1 + 0.05 * np.cos((x - middle) * 3.2)), factor)
    if street.lane_marks:
        dashes = road & (np.abs(x - middle) < 0.1) & ((along % 6) < 3)
        factor = np.where(dashes, 1.7, factor)
    if street.zebra is not None:
        stripes = road & (along > street.zebra) & (along < street.zebra + 3) & ((x % 1.0) < 0.5)
        factor = np.where(stripes, 1.75, factor)
    return factor.astype(np.float32)


def _house_shadows(street: Street, x: Floats, along: Floats, reach: float) -> npt.NDArray[np.bool_]:
    """Where (H, W) the walls on the sun's side shade the ground."""
    shaded = np.zeros(x.shape, np.bool_)
    for wall in street.walls:
        if wall.x * reach >= 0:
            continue
        segment = np.clip(np.searchsorted(wall.edges, along + 0.4 * np.abs(x - wall.x)) - 1, 0, len(wall.kinds) - 1)
        length = np.where(wall.kinds[segment] == OPEN, 0, wall.heights[segment] * abs(reach))
        shaded |= np.abs(x - wall.x) < length
    return shaded


def _draw_wall(canvas: Canvas, wall: Wall, image: Floats, mask: npt.NDArray[np.uint8], advance: float) -> None:
    """Paint one side's wall in place, column by column of the picture."""
    camera = canvas.camera
    z = camera.wall(wall.x)
    along = z + np.float32(advance)
    segment = np.clip(np.searchsorted(wall.edges, along) - 1, 0, len(wall.kinds) - 1)
    seen = np.flatnonzero((z < STREET_LENGTH) & (z > 0.5) & (wall.kinds[segment] != OPEN))
    z, along, segment = z[seen], along[seen], segment[seen]
    kinds = wall.kinds[segment]
    tops = wall.heights[segment] * np.where(kinds == VEGETATION, _ragged(along), np.float32(1))
    rows = np.arange(camera.height, dtype=np.float32)[:, None] + np.float32(0.5)
    y = camera.eye - (rows - camera.horizon) * (z / camera.focal)[None]
    row, index = np.nonzero((y >= 0) & (y < tops[None]))
    height, kind, column, where = y[row, index].astype(np.float32), kinds[index], seen[index], segment[index]
    shade = _wall_texture(kind, height, along[index], wall.periods[where], tops[index], z[index])
    colors = canvas.fade(wall.colors[where] * shade[:, None], z[index])
    see_through = ((kind == FENCE) & (shade > 1.2))[:, None]
    image[row, column] = np.where(see_through, 0.75 * image[row, column] + 0.25 * colors, colors)
    mask[row, column] = kind


def _ragged(along: Floats) -> Floats:
    wave = np.sin(along * 0.9) + 0.7 * np.sin(along * 2.3 + 1) + 0.5 * np.sin(along * 5.1 + 2)
    ragged: Floats = (0.82 + 0.1 * wave).astype(np.float32)
    return ragged


def _wall_texture(kind: npt.NDArray[np.uint8], y: Floats, along: Floats, period: Floats, top: Floats, z: Floats) -> Floats:
    """Brightness (P,) of wall pixels: windows, floors and roof edges; bars and rails of fences (above 1.2: gaps)."""
    across, floor = (along / period) % 1.0, (y / 3.0) % 1.0
    window = (across > 0.25) & (across < 0.72) & (floor > 0.3) & (floor < 0.78) & (y < top - 0.8)
    detail = np.exp(-z / 45)
    facade = np.where(window, 1 - 0.55 * detail, 1.0)
    facade = np.where(y > top - 0.35, 0.75, facade)
    rails = (np.abs(y - top + 0.12) < 0.1) | (np.abs(y - 0.25) < 0.1)
    bars = np.where(rails | (across < 0.45), 0.7, 1.25)
    leaves = 0.75 + 0.35 * np.clip(y / np.maximum(top, 0.1), 0, 1)
    return np.where(kind == BUILDING, facade, np.where(kind == FENCE, bars, leaves)).astype(np.float32)


def smooth_noise(rng: np.random.Generator, width: int, height: int, *, cells: tuple[int, int]) -> Floats:
    """Noise (height, width) with mean 0, deviation about 1 and about cells[0] x cells[1] blobs (rows, columns)."""
    coarse = Image.fromarray(rng.standard_normal(cells, np.float32))
    return np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))
