"""Heat maps on a fixed scale: the same colour means the same entropy in every picture."""

from __future__ import annotations

from dataclasses import dataclass, replace

import matplotlib
import numpy as np
import numpy.typing as npt
from PIL import Image

from activeseg.errors import ConfigError, NonFiniteScoreError

_STEPS = 256


@dataclass(frozen=True, slots=True)
class Scale:
    """What the colours of a heat map mean: the first one `lower`, the last one `upper`; `label` says of what."""

    upper: float
    lower: float = 0.0
    label: str = "entropy (nats)"
    colormap: str = "jet"

    def draw(self, values: npt.NDArray[np.floating]) -> Image.Image:
        """The `heatmap` of values (H, W) on this scale."""
        return heatmap(values, upper=self.upper, lower=self.lower, colormap=self.colormap)


def heatmap(values: npt.NDArray[np.floating], *, upper: float, lower: float = 0.0, colormap: str = "jet") -> Image.Image:
    """RGB picture (H, W) of values (H, W): the first colour at `lower` and below, the last at `upper` and above.

    For entropy maps in nats `upper` is log C, for normalised ones 1. Raises NonFiniteScoreError on NaN or infinity and
    ConfigError on a scale without extent or an unknown matplotlib colour map.
    """
    if values.ndim != 2 or not values.size:
        raise ConfigError(f"expected values of shape (H, W); got {values.shape}")
    wrong = values.size - np.count_nonzero(np.isfinite(values))
    if wrong:
        raise NonFiniteScoreError(f"cannot draw a heat map: {wrong} of {values.size} values are NaN or infinite")
    if not 0 < upper - lower < float("inf"):
        raise ConfigError(f"expected an upper end of the colour scale above its lower end {lower}; got {upper}")
    steps = np.rint(np.clip((values.astype(np.float64) - lower) / (upper - lower), 0, 1) * (_STEPS - 1)).astype(np.uint8)
    return Image.fromarray(_colors(colormap)[steps])


def stretched(scale: Scale, values: npt.NDArray[np.floating]) -> Scale:
    """The scale from the smallest to the largest of the values; unchanged where all are equal or some are not finite."""
    lower, upper = float(values.min()), float(values.max())
    return replace(scale, lower=lower, upper=upper) if 0 < upper - lower < float("inf") else scale


def color_bar(length: int, thickness: int, *, colormap: str = "jet") -> Image.Image:
    """The colours of `heatmap` from left (lower end) to right (upper end), `length` x `thickness` pixels, no numbers."""
    ramp = np.linspace(0, 1, length)[None].repeat(thickness, 0)
    return heatmap(ramp, upper=1.0, colormap=colormap)


def _colors(colormap: str) -> npt.NDArray[np.uint8]:
    if colormap not in matplotlib.colormaps:
        raise ConfigError(f"unknown colour map {colormap!r}; expected a name matplotlib knows, such as jet or viridis")
    table = matplotlib.colormaps[colormap](np.linspace(0, 1, _STEPS), bytes=True)
    return np.ascontiguousarray(np.asarray(table, np.uint8)[:, :3])
