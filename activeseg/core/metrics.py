"""Segmentation metrics of a whole dataset: one confusion matrix, then IoU, Dice and accuracy from its sums.

mIoU is the one of the FCN paper (Long et al. 2015): intersection and union summed over all images first, then one IoU
per class, then their mean over the classes that occur in the truth. It is not the mean of per-image values, and nothing
is smoothed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from activeseg.core.labels import UNLABELED, LabelSet
from activeseg.errors import ConfigError, MaskError
from activeseg.records import ClassMetric

Labels = Tensor | npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Metrics:
    """Dataset-level figures in 0..1; NaN where the truth holds no pixel of the class (or, for the first two, no pixel).

    mean_iou: mean of iou over the classes that occur in the truth.
    pixel_accuracy: correct pixels / counted pixels.
    iou: per class TP / (TP + FP + FN).
    dice: per class 2 TP / (2 TP + FP + FN).
    accuracy: per class TP / (TP + FN).
    truth_pixels: per class TP + FN.
    """

    mean_iou: float
    pixel_accuracy: float
    iou: tuple[float, ...]
    dice: tuple[float, ...]
    accuracy: tuple[float, ...]
    truth_pixels: tuple[int, ...]

    def by_class(self, label_set: LabelSet) -> tuple[ClassMetric, ...]:
        """One record per network channel of `label_set`, NaN as None. Raises ConfigError where the counts differ."""
        if len(self.iou) != label_set.num_classes:
            raise ConfigError(f"label_set has {label_set.num_classes} channels; these metrics have {len(self.iou)}")
        return tuple(
            ClassMetric(
                class_index=index,
                name=label_set.names[index],
                iou=_none_if_nan(self.iou[channel]),
                dice=_none_if_nan(self.dice[channel]),
                accuracy=_none_if_nan(self.accuracy[channel]),
                truth_pixels=self.truth_pixels[channel],
            )
            for channel, index in enumerate(label_set.channels)
        )


class ConfusionMatrix:
    """Counts of (truth, prediction) pairs over a dataset; keeps sums, never masks.

    num_classes: C; labels are 0..C-1.
    ignore_index: truth value that is not counted, inside or outside 0..C-1, or None. UNLABELED is never counted either.
    matrix: (C, C) int64 on the CPU, rows = truth, columns = prediction.
    """

    def __init__(self, num_classes: int, ignore_index: int | None = None) -> None:
        if not 1 <= num_classes <= UNLABELED:
            raise ConfigError(f"num_classes: expected 1 to {UNLABELED}; got {num_classes}")
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self.matrix = torch.zeros(num_classes, num_classes, dtype=torch.int64)

    def update(self, prediction: Labels, truth: Labels) -> None:
        """Count one or many masks: tensors or arrays of whole numbers, both of one shape, on any device.

        Raises MaskError where shapes differ, values are not whole numbers or a counted pixel holds no class.
        """
        # int64 before anything else: the product below overflows uint8, and comparisons wrap in narrow types.
        predicted, true = _widened("prediction", prediction), _widened("truth", truth)
        if predicted.shape != true.shape:
            raise MaskError(
                f"prediction {tuple(predicted.shape)} and truth {tuple(true.shape)} must have one shape; "
                "take the argmax of logits and resize to the truth's size first"
            )
        counted = true != UNLABELED
        if self.ignore_index is not None:
            counted &= true != self.ignore_index
        predicted, true = predicted.to(true.device)[counted], true[counted]
        self._check_range("truth", true)
        self._check_range("prediction", predicted)
        pairs = torch.bincount(true * self.num_classes + predicted, minlength=self.num_classes**2)
        self.matrix += pairs.reshape(self.num_classes, self.num_classes).cpu()

    def compute(self) -> Metrics:
        """The metrics of everything counted so far."""
        matrix = self.matrix.numpy()
        hits, truth, predicted = _marginals(matrix)
        iou, dice, accuracy = _ratio(hits, truth, predicted)
        return Metrics(
            mean_iou=float(_mean_iou(hits, truth, predicted)),
            pixel_accuracy=float(hits.sum() / truth.sum()) if truth.sum() else math.nan,
            iou=tuple(iou.tolist()),
            dice=tuple(dice.tolist()),
            accuracy=tuple(accuracy.tolist()),
            truth_pixels=tuple(int(pixels) for pixels in truth),
        )

    def __add__(self, other: ConfusionMatrix) -> ConfusionMatrix:
        """The counts of both. Raises ConfigError where they count different things."""
        if (self.num_classes, self.ignore_index) != (other.num_classes, other.ignore_index):
            raise ConfigError(
                f"cannot add confusion matrices of {self.num_classes} classes ignoring {self.ignore_index} "
                f"and {other.num_classes} ignoring {other.ignore_index}"
            )
        total = ConfusionMatrix(self.num_classes, self.ignore_index)
        total.matrix = self.matrix + other.matrix
        return total

    def _check_range(self, name: str, labels: Tensor) -> None:
        unknown = np.unique(labels[(labels < 0) | (labels >= self.num_classes)].cpu())
        if unknown.size:
            raise MaskError(
                f"{name}: expected classes 0..{self.num_classes - 1}, ignored {self.ignore_index} or {UNLABELED}; "
                f"got {unknown[:5].tolist()}"
            )


@dataclass(frozen=True, slots=True)
class BootstrapResult:
    """mIoU of the challenger minus that of the champion, and its interval; > 0 means the challenger is better."""

    difference: float
    low: float
    high: float


def paired_bootstrap(
    champion: Labels, challenger: Labels, *, samples: int = 1000, confidence: float = 0.9, seed: int
) -> BootstrapResult:
    """Percentile bootstrap of the difference in dataset-level mIoU over images (Efron and Tibshirani 1993, ch. 13).

    champion, challenger: (N, C, C) whole counts, one confusion matrix (rows = truth) per image, the same images in the
    same order. Each of `samples` times N images are drawn with replacement, the same for both. low and high are the
    (1 - confidence) / 2 quantiles from either end. One image gives an interval without width.
    Raises ConfigError for other shapes, for rows that do not pair (different truth), for truth without a pixel, and for
    samples < 1 or confidence outside (0, 1).
    """
    old, new = (_widened(name, m).cpu().numpy() for name, m in (("champion", champion), ("challenger", challenger)))
    _check_bootstrap(old, new, samples, confidence)
    rng = np.random.default_rng(seed)
    # How often each image was drawn; matrix products with it are the resampled sums.
    draws = rng.multinomial(len(old), np.full(len(old), 1 / len(old)), size=samples).astype(np.float64)
    resampled = _weighted_mean_iou(new, draws) - _weighted_mean_iou(old, draws)
    low, high = np.nanquantile(resampled, [(1 - confidence) / 2, (1 + confidence) / 2])
    everything = np.ones((1, len(old)))
    difference = _weighted_mean_iou(new, everything) - _weighted_mean_iou(old, everything)
    return BootstrapResult(difference=float(difference[0]), low=float(low), high=float(high))


def _check_bootstrap(old: npt.NDArray[Any], new: npt.NDArray[Any], samples: int, confidence: float) -> None:
    if old.shape != new.shape or old.ndim != 3 or old.shape[1] != old.shape[2] or not len(old):
        raise ConfigError(f"expected two (N, C, C) stacks of one shape, N >= 1; got {old.shape} and {new.shape}")
    if not np.array_equal(old.sum(axis=2), new.sum(axis=2)):
        raise ConfigError("champion and challenger were not evaluated on the same images and masks in the same order")
    if not old.any():
        raise ConfigError("no counted pixel in any image: there is nothing to compare on")
    if samples < 1 or not 0 < confidence < 1:
        raise ConfigError(f"expected samples >= 1 and 0 < confidence < 1; got {samples} and {confidence}")


def _weighted_mean_iou(matrices: npt.NDArray[Any], weights: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """(N, C, C) counts and (S, N) weights -> (S,) mIoU of each weighted sum of matrices."""
    hits, truth, predicted = (weights @ part.astype(np.float64) for part in _marginals(matrices))
    return _mean_iou(hits, truth, predicted)


def _marginals(matrix: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]]:
    """(..., C, C) -> hits, truth pixels, predicted pixels, each (..., C)."""
    return np.diagonal(matrix, axis1=-2, axis2=-1), matrix.sum(axis=-1), matrix.sum(axis=-2)


def _ratio(
    hits: npt.NDArray[Any], truth: npt.NDArray[Any], predicted: npt.NDArray[Any]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """IoU, Dice and accuracy per class, NaN where the truth has none of it."""
    present = np.where(truth > 0, truth, np.nan)  # NaN spreads through the three divisions
    return hits / (present + predicted - hits), 2 * hits / (present + predicted), hits / present


def _mean_iou(hits: npt.NDArray[Any], truth: npt.NDArray[Any], predicted: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """(..., C) -> (...) mean IoU over the classes present; NaN where none is."""
    iou = _ratio(hits, truth, predicted)[0]
    present = (truth > 0).sum(axis=-1)
    mean: npt.NDArray[np.float64] = np.nansum(iou, axis=-1) / np.where(present > 0, present, np.nan)
    return mean


def _widened(name: str, labels: Labels) -> Tensor:
    """Whole numbers as int64 on their device. Raises MaskError for any other type."""
    if isinstance(labels, np.ndarray):
        if labels.dtype.kind in "iu":
            return torch.from_numpy(np.array(labels, dtype=np.int64))  # a copy: torch warns of read-only arrays
    elif not (labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool):
        return labels.long()
    raise MaskError(f"{name}: expected whole numbers; got {labels.dtype}")


def _none_if_nan(value: float) -> float | None:
    return None if math.isnan(value) else value
