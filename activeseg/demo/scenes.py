"""Deterministic synthetic street scenes: the demo's data where nobody brings any.

Twelve classes with the names and colours of the CamVid street scenes. A scene is laid out in metres (street, walls,
objects), seen by a camera that drives down the street, lit by a weather, and drawn with the same strokes into the image
and its mask. Colours say little about classes on purpose: houses, roads, cars and skies share their greys.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from activeseg.core.labels import LabelSet
from activeseg.demo.scene_canvas import OVERSAMPLING, Camera, Canvas
from activeseg.demo.scene_layout import sample_street
from activeseg.demo.scene_light import expose, roughen, sample_weather
from activeseg.demo.scene_objects import draw_hood, draw_things, sample_things
from activeseg.demo.scene_street import draw_street
from activeseg.errors import ConfigError
from activeseg.imaging.masks import encode_mask
from activeseg.imaging.thumbnails import encode_png

SCENE_CLASSES = LabelSet(
    names=(
        "sky",
        "building",
        "pole",
        "road",
        "sidewalk",
        "vegetation",
        "sign",
        "fence",
        "vehicle",
        "pedestrian",
        "bicyclist",
        "void",
    ),
    colors=(
        (128, 128, 128),
        (128, 0, 0),
        (192, 192, 128),
        (128, 64, 128),
        (60, 40, 222),
        (128, 128, 0),
        (192, 128, 128),
        (64, 64, 128),
        (64, 0, 128),
        (64, 64, 0),
        (0, 128, 192),
        (0, 0, 0),
    ),
    ignore_index=11,
)


DRAWING = 2
"""Raised whenever the same seed gives other pixels, so that folders of an earlier drawing are not mixed with new ones."""

CLIP_FRAMES = {"start": 1, "val": 1, "pool": 4}
"""Longest clip of each split; lengths are uniform from 1."""


@dataclass(frozen=True, slots=True)
class Scene:
    """image: (H, W, 3) uint8 RGB; mask: (H, W) uint8 class indices of SCENE_CLASSES."""

    image: npt.NDArray[np.uint8]
    mask: npt.NDArray[np.uint8]


def draw_scene(seed: int, *, width: int = 160, height: int = 120, frame: int = 0) -> Scene:
    """The street of `seed` as the camera sees it at `frame`; equal arguments give equal pixels.

    Frames of one seed are neighbours in a clip: the same street and weather, the camera a metre or two further on.
    Raises ConfigError below 32 pixels a side.
    """
    if min(width, height) < 32:
        raise ConfigError(f"a scene needs at least 32 x 32 pixels; got {width} x {height}")
    rng = np.random.default_rng(seed)
    hardness = float(rng.beta(0.6, 1.2))
    crowd = float(np.clip(hardness + rng.normal(0, 0.3), 0, 1))
    weather = sample_weather(rng, hardness)
    street = sample_street(rng)
    things = sample_things(rng, street, crowd)
    camera, hood = _sample_camera(rng, width, height), rng.random() < 0.35
    advance = frame * float(rng.uniform(0.8, 2.0))

    canvas = Canvas(camera, haze=weather.haze, visibility=weather.visibility)
    paint, grain = np.random.default_rng((seed, 1)), np.random.default_rng((seed, 2, frame))
    draw_street(canvas, street, paint, advance=advance, zenith=weather.zenith, shadow=weather.shadow)
    draw_things(canvas, things, advance=advance, frame=frame)
    if hood:
        draw_hood(canvas, paint)
    mask = np.ascontiguousarray(canvas.mask[1::OVERSAMPLING, 1::OVERSAMPLING])
    image = _average(canvas.image)
    return Scene(expose(roughen(image, mask, grain), weather, grain), mask)


def write_scenes(
    folder: Path,
    *,
    train: int,
    val: int,
    pool: int,
    seed: int,
    width: int = 160,
    height: int = 120,
    on_progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write the demo's data: `train` labelled start images, `val` labelled ones, `pool` images whose masks lie apart.

    folder/classes.txt, start/images, start/masks, val/images, val/masks, pool/images, and truth/masks with the pool's
    masks, which only the simulated annotator may read. Files are named clipNNN_FFFF.png; a clip's frames are near
    duplicates and never fall into two splits. A second call with the same arguments writes nothing that exists.
    on_progress(done, total) is called after each scene. Raises ConfigError where the folder holds other scenes.
    """
    sizes = {"start": train, "val": val, "pool": pool}
    _claim(folder, {**sizes, "seed": seed, "width": width, "height": height, "drawing": DRAWING})
    places = {
        "start": (folder / "start/images", folder / "start/masks"),
        "val": (folder / "val/images", folder / "val/masks"),
        "pool": (folder / "pool/images", folder / "truth/masks"),
    }
    for place in places.values():
        for target in place:
            target.mkdir(parents=True, exist_ok=True)
    (folder / "classes.txt").write_text(SCENE_CLASSES.to_text(), encoding="utf-8")
    frames = list(plan_scenes(sizes, seed))
    for done, (split, clip, frame) in enumerate(frames, 1):
        images, masks = places[split]
        name = f"clip{clip:03d}_{frame:04d}.png"
        if not ((images / name).exists() and (masks / name).exists()):
            scene = draw_scene(scene_seed(seed, clip), width=width, height=height, frame=frame)
            _write(masks / name, encode_mask(scene.mask))
            _write(images / name, encode_png(scene.image))
        if on_progress is not None:
            on_progress(done, len(frames))


def _claim(folder: Path, recipe: dict[str, int]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    file, text = folder / "scenes.json", json.dumps(recipe)
    if not file.exists():
        _write(file, text.encode())
    elif file.read_text(encoding="utf-8") != text:
        raise ConfigError(f"{folder} holds other scenes ({file.name}: {file.read_text()}); expected {text}: remove the folder")


def plan_scenes(sizes: dict[str, int], seed: int) -> Iterator[tuple[str, int, int]]:
    """(split, clip, frame) of every scene; clips are numbered across splits."""
    rng = np.random.default_rng((seed, 0))
    clip = 0
    for split, size in sizes.items():
        left = size
        while left:
            frames = min(left, int(rng.integers(1, CLIP_FRAMES[split] + 1)))
            yield from ((split, clip, frame) for frame in range(frames))
            left, clip = left - frames, clip + 1


def scene_seed(seed: int, clip: int) -> int:
    """The seed that `write_scenes(seed=seed)` draws a clip with."""
    return int(np.random.SeedSequence((seed, clip)).generate_state(1)[0])


def _sample_camera(rng: np.random.Generator, width: int, height: int) -> Camera:
    wide, high = width * OVERSAMPLING, height * OVERSAMPLING
    return Camera(
        width=wide,
        height=high,
        focal=wide * float(rng.uniform(0.75, 1.15)),
        center_x=wide * float(rng.uniform(0.35, 0.65)),
        horizon=high * float(rng.uniform(0.34, 0.54)),
        eye=float(rng.uniform(1.25, 2.1)),
        bend=float(rng.normal(0, 0.0025)),
    )


def _average(image: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Oversampled (H*k, W*k, 3) -> (H, W, 3) float32."""
    return np.asarray(Image.fromarray(image).reduce(OVERSAMPLING), np.float32)


def _write(file: Path, data: bytes) -> None:
    """Whole or not at all: a killed run leaves no half file behind."""
    part = file.with_suffix(".part")
    part.write_bytes(data)
    part.replace(file)
