"""Heat maps on a fixed scale: the same colour means the same entropy in every picture."""

from __future__ import annotations

import matplotlib
import numpy as np
import numpy.typing as npt
from PIL import Image

from activeseg.errors import ConfigError, NonFiniteScoreError

_STEPS = 256


def heatmap(values: npt.NDArray[np.floating], *, upper: float, colormap: str = "jet") -> Image.Image:
    """RGB picture (H, W) of values (H, W): the first colour at 0 and below, the last at `upper` and above.

    For entropy maps in nats `upper` is log C, for normalised ones 1. Raises NonFiniteScoreError on NaN or infinity and
    ConfigError on an `upper` that is not positive or an unknown matplotlib colour map.
    """
    if values.ndim != 2 or not values.size:
        raise ConfigError(f"expected values of shape (H, W); got {values.shape}")
    wrong = values.size - np.count_nonzero(np.isfinite(values))
    if wrong:
        raise NonFiniteScoreError(f"cannot draw a heat map: {wrong} of {values.size} values are NaN or infinite")
    if not 0 < upper < float("inf"):
        raise ConfigError(f"expected a positive upper end of the colour scale; got {upper}")
    steps = np.rint(np.clip(values.astype(np.float64) / upper, 0, 1) * (_STEPS - 1)).astype(np.uint8)
    return Image.fromarray(_colors(colormap)[steps])


def color_bar(length: int, thickness: int, *, colormap: str = "jet") -> Image.Image:
    """The colours of `heatmap` from left (0) to right (`upper`), `length` x `thickness` pixels, without numbers."""
    ramp = np.linspace(0, 1, length)[None].repeat(thickness, 0)
    return heatmap(ramp, upper=1.0, colormap=colormap)


def _colors(colormap: str) -> npt.NDArray[np.uint8]:
    if colormap not in matplotlib.colormaps:
        raise ConfigError(f"unknown colour map {colormap!r}; expected a name matplotlib knows, such as jet or viridis")
    table = matplotlib.colormaps[colormap](np.linspace(0, 1, _STEPS), bytes=True)
    return np.ascontiguousarray(np.asarray(table, np.uint8)[:, :3])
