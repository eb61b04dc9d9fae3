"""Whether one model beats another on the same images: paired bootstrap intervals of IoU differences."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from activeseg.core.metrics import class_iou, mean_present
from activeseg.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Interval:
    """Challenger minus champion, > 0 where the challenger is better; NaN where a class is absent from the truth."""

    difference: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class BootstrapResult:
    """Intervals of the difference in dataset-level mIoU and in each class's IoU, from the same draws."""

    mean_iou: Interval
    iou: tuple[Interval, ...]


def paired_bootstrap(
    champion: npt.NDArray[Any] | Tensor,
    challenger: npt.NDArray[Any] | Tensor,
    *,
    samples: int = 1000,
    confidence: float = 0.9,
    seed: int,
) -> BootstrapResult:
    """Percentile bootstrap of dataset-level differences over images (Efron and Tibshirani 1993, ch. 13).

    champion, challenger: (N, 3, C) whole numbers, the counts of `core.metrics` (hits, truth pixels, predicted pixels),
    the same images in the same order. Each of `samples` times N images are drawn with replacement, the same for both
    models, mIoU and all classes. low and high are the (1 - confidence) / 2 quantiles from either end; a draw without
    any pixel of a class says nothing of that class. One image gives an interval without width.
    Raises ConfigError for other shapes or numbers, for counts that do not pair (different truth), for truth without a
    pixel, and for samples < 1 or confidence outside (0, 1).
    """
    old, new = _whole("champion", champion), _whole("challenger", challenger)
    _check(old, new, samples, confidence)
    rng = np.random.default_rng(seed)
    # How often each image was drawn; matrix products with it are the resampled sums.
    draws = rng.multinomial(len(old), np.full(len(old), 1 / len(old)), size=samples)
    resampled = _differences(old, new, draws.astype(np.float64))
    [whole] = _differences(old, new, np.ones((1, len(old))))
    ends = (1 - confidence) / 2, (1 + confidence) / 2
    first, *classes = (_interval(whole[k], resampled[:, k], ends) for k in range(len(whole)))
    return BootstrapResult(first, tuple(classes))


def _interval(whole: float, resampled: npt.NDArray[np.float64], ends: tuple[float, float]) -> Interval:
    drawn = resampled[~np.isnan(resampled)]
    low, high = np.quantile(drawn, ends) if drawn.size else (np.nan, np.nan)
    return Interval(float(whole), float(low), float(high))


def _differences(
    old: npt.NDArray[np.int64], new: npt.NDArray[np.int64], weights: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Counts (N, 3, C) and weights (S, N) -> (S, 1 + C): differences of mIoU and of each class's IoU."""
    before, after = (class_iou(np.tensordot(weights, counts, axes=1)) for counts in (old, new))
    return np.column_stack([mean_present(after) - mean_present(before), after - before])


def _whole(name: str, counts: npt.NDArray[Any] | Tensor) -> npt.NDArray[np.int64]:
    array = counts.cpu().numpy() if isinstance(counts, torch.Tensor) else counts
    if array.dtype.kind not in "iu":
        raise ConfigError(f"{name}: expected whole numbers; got {array.dtype}")
    return array.astype(np.int64)


def _check(old: npt.NDArray[np.int64], new: npt.NDArray[np.int64], samples: int, confidence: float) -> None:
    if old.shape != new.shape or old.ndim != 3 or old.shape[1] != 3 or not len(old):
        raise ConfigError(f"expected two (N, 3, C) stacks of one shape, N >= 1; got {old.shape} and {new.shape}")
    if not np.array_equal(old[:, 1], new[:, 1]):
        raise ConfigError("champion and challenger were not evaluated on the same images and masks in the same order")
    if not old[:, 1].any():
        raise ConfigError("no counted pixel in any image: there is nothing to compare on")
    if samples < 1 or not 0 < confidence < 1:
        raise ConfigError(f"expected samples >= 1 and 0 < confidence < 1; got {samples} and {confidence}")
