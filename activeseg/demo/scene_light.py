"""Weather, daylight and the camera's own faults: what makes one street easy to read and the next one hard."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

from activeseg.demo.scene_canvas import VEGETATION, Color, Floats
from activeseg.demo.scene_street import smooth_noise

GRAIN = np.array([0.01, 0.05, 0.05, 0.05, 0.05, 0.2, 0.02, 0.08, 0.02, 0.05, 0.05, 0.03], np.float32)
"""Relative roughness of each class's surface."""


@dataclass(frozen=True, slots=True)
class Weather:
    """Light and camera of a clip.

    zenith, haze: sky colours above and at the horizon; visibility: metres.
    gain: brightness; cast: factor per colour channel; contrast: 1 = unchanged.
    shadow: (metres of shadow per metre of height, positive where the sun stands on the left; strength 0..1).
    sun: (x, y) as shares of the picture and strength of the glare; noise: deviation in grey levels.
    blur: pixels the camera moved; soft: radius of defocus in pixels.
    """

    zenith: Color
    haze: Color
    visibility: float
    gain: float
    cast: Color
    contrast: float
    shadow: tuple[float, float]
    sun: tuple[float, float, float]
    noise: float
    blur: int
    soft: float


def sample_weather(rng: np.random.Generator, hardness: float) -> Weather:
    """Weather for a hardness 0..1: clear days, overcast, haze, dusk and low sun, ever more of the latter."""
    kinds = ("clear", "overcast", "haze", "dusk", "glare")
    odds = np.array([1.1 - hardness, 0.6, 0.5 * hardness, 0.7 * hardness, 0.5 * hardness])
    kind = kinds[rng.choice(5, p=odds / odds.sum())]
    pale = float(rng.uniform(170, 235))
    blue: Color = (float(rng.uniform(70, 140)), float(rng.uniform(120, 170)), float(rng.uniform(175, 235)))
    grey: Color = (pale, pale, pale + float(rng.uniform(-5, 10)))
    zenith, haze, gain = (blue, grey, rng.uniform(0.85, 1.15)) if kind == "clear" else (grey, grey, rng.uniform(0.7, 1.1))
    visibility = float(rng.uniform(25, 60)) if kind == "haze" else float(rng.uniform(110, 400))
    if kind == "dusk":
        zenith, haze, gain = (60.0, 70.0, 110.0), (190.0, 130.0, 95.0), rng.uniform(0.38, 0.7)
    glare = float(rng.uniform(0.5, 1.0)) if kind == "glare" else 0.0
    return Weather(
        zenith=zenith,
        haze=haze,
        visibility=visibility,
        gain=float(gain),
        cast=_cast(rng, 0.02 + 0.05 * hardness),
        contrast=float(rng.uniform(0.8, 1.15)) - 0.25 * glare,
        shadow=(float(rng.normal(0, 0.7)), float(rng.uniform(0.25, 0.6)) if kind in ("clear", "glare") else 0.0),
        sun=(float(rng.uniform(0.1, 0.9)), float(rng.uniform(0.02, 0.35)), glare),
        noise=float(rng.uniform(1.0, 3.0)) + float(rng.uniform(0, 6)) * hardness * (1.6 if kind == "dusk" else 0.7),
        blur=int(rng.integers(2, 6)) if rng.random() < 0.3 * hardness else 0,
        soft=float(rng.uniform(0, 0.8)) * hardness,
    )


def roughen(image: Floats, mask: npt.NDArray[np.uint8], rng: np.random.Generator) -> Floats:
    """Surface texture: image (H, W, 3) with brightness noise by class, coarse for leaves."""
    height, width = mask.shape
    fine = rng.standard_normal((height, width), np.float32)
    coarse = smooth_noise(rng, width, height, cells=(height // 4, width // 4))
    mixed = np.where(mask == VEGETATION, 0.5 * fine + 0.8 * coarse, 0.8 * fine + 0.5 * coarse)
    textured: Floats = image * (1 + GRAIN[mask] * mixed)[..., None]
    return textured


def expose(image: Floats, weather: Weather, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Light (H, W, 3) 0..255 to the camera's 8 bits: glare, exposure, colour cast, blur, noise."""
    height, width, _ = image.shape
    lit = image * (weather.gain * np.asarray(weather.cast, np.float32))
    middle = 110 * weather.gain
    lit = (lit - middle) * weather.contrast + middle
    if weather.sun[2]:
        lit = lit + _glare(width, height, weather.sun)[..., None] * np.array([255, 240, 205], np.float32)
    picture = Image.fromarray(np.clip(lit, 0, 255).astype(np.uint8))
    if weather.soft > 0.3:
        picture = picture.filter(ImageFilter.GaussianBlur(weather.soft))
    lit = np.asarray(picture, np.float32)
    if weather.blur:
        lit = np.mean([np.roll(lit, shift, axis=1) for shift in range(weather.blur)], axis=0)
    noisy = lit + weather.noise * rng.standard_normal((height, width, 3), np.float32)
    picture_noisy: npt.NDArray[np.uint8] = np.clip(noisy, 0, 255).astype(np.uint8)
    return picture_noisy


def _glare(width: int, height: int, sun: tuple[float, float, float]) -> Floats:
    x = np.arange(width, dtype=np.float32)[None] / width - sun[0]
    y = np.arange(height, dtype=np.float32)[:, None] / height - sun[1]
    distance = np.sqrt(x * x + 0.6 * y * y)
    return (sun[2] * (0.9 * np.exp(-distance / 0.12) + 0.45 * np.exp(-distance / 0.5))).astype(np.float32)


def _cast(rng: np.random.Generator, deviation: float) -> Color:
    red, green, blue = np.exp(rng.normal(0, deviation, 3)).tolist()
    return red, green, blue
