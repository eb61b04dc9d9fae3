"""Embeddings: where an image lies among others for a network, in 132 bytes.

Distances between embeddings are nearly those between the network's features: a Gaussian projection keeps them to about one
part in sqrt(2 * DIMENSIONS) (Johnson, Lindenstrauss 1984; Dasgupta, Gupta 2003), and rounding to 8 bits adds far less.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from activeseg.errors import ConfigError, NonFiniteScoreError

DIMENSIONS = 128

_PACKED = np.dtype([("step", "<f4"), ("steps", "i1", (DIMENSIONS,))])
PACKED_BYTES = _PACKED.itemsize
_MOST_STEPS = 127


def project(features: Tensor) -> Tensor:
    """Features (N, D) float of any device, each scaled to length 1, as (N, DIMENSIONS) float32 by `shorten`."""
    return shorten(torch.nn.functional.normalize(features.float(), dim=-1))


def shorten(features: Tensor) -> Tensor:
    """(N, D) float -> (N, DIMENSIONS) float32, linear: lengths and distances stay nearly what they are.

    The projection is fixed: the same on every machine and in every version. Up to DIMENSIONS numbers are kept as they are,
    with zeros behind. Raises ConfigError for another shape.
    """
    if features.ndim != 2:
        raise ConfigError(f"features: expected (N, D); got {tuple(features.shape)}")
    wide = features.float()
    if wide.shape[1] <= DIMENSIONS:
        return torch.nn.functional.pad(wide, (0, DIMENSIONS - wide.shape[1]))
    with torch.autocast(wide.device.type, enabled=False):
        projection = _projection(wide.shape[1], wide.device)
        # A product for each row: the bits of one for all rows depend on how many there are, and a run that was killed and
        # goes on has batches of other sizes.
        return torch.bmm(wide[:, None, :], projection.expand(len(wide), -1, -1))[:, 0]


@lru_cache(maxsize=8)
def _projection(dimensions: int, device: torch.device) -> Tensor:
    """(D, DIMENSIONS) float32, normally distributed with variance 1 / DIMENSIONS."""
    # Of numpy's generators it is the old one whose numbers never change.
    drawn = np.random.RandomState(dimensions).standard_normal((dimensions, DIMENSIONS))
    return torch.from_numpy((drawn / np.sqrt(DIMENSIONS)).astype(np.float32)).to(device)


def pack(vector: npt.ArrayLike) -> bytes:
    """DIMENSIONS numbers in PACKED_BYTES bytes: a float32 step, low byte first, and how many steps each number is, int8.

    A number is off by half a step at most, which is 1 / 254 of the largest one. Raises NonFiniteScoreError for what is not
    finite in float32, ConfigError for another shape.
    """
    return pack_rows(np.asarray(vector)[None])[0]


def pack_rows(vectors: npt.NDArray[np.floating]) -> list[bytes]:
    """The rows of (N, DIMENSIONS), each packed."""
    if vectors.ndim != 2 or vectors.shape[1] != DIMENSIONS:
        raise ConfigError(f"embeddings: expected (N, {DIMENSIONS}); got {vectors.shape}")
    with np.errstate(over="ignore"):
        wide = vectors.astype(np.float32)
    if not np.isfinite(wide).all():
        raise NonFiniteScoreError("embeddings: expected finite numbers; the weights or the precision are at fault")
    step = np.abs(wide).max(axis=1, keepdims=True) / np.float32(_MOST_STEPS)
    packed = np.empty(len(wide), dtype=_PACKED)
    packed["step"] = step[:, 0]
    # A step may be too small for a number to be divided by it: such rows are zero for all that matters.
    steps = np.divide(wide, step, out=np.zeros_like(wide), where=step >= np.finfo(np.float32).tiny)
    packed["steps"] = np.rint(steps).clip(-_MOST_STEPS, _MOST_STEPS)
    return [row.tobytes() for row in packed]


def unpack(packed: Sequence[bytes]) -> npt.NDArray[np.float32]:
    """(M, DIMENSIONS) float32, one row each. Raises ConfigError for bytes of another length."""
    if wrong := {len(one) for one in packed} - {PACKED_BYTES}:
        raise ConfigError(f"embeddings: expected {PACKED_BYTES} bytes each; got {sorted(wrong)}")
    rows = np.frombuffer(b"".join(packed), dtype=_PACKED)
    numbers: npt.NDArray[np.float32] = rows["steps"].astype(np.float32)
    numbers *= rows["step"].astype(np.float32)[:, None]
    return numbers
