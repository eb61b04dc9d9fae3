"""What is in one image's prediction and annotation, class by class. Counts masks with numpy: no torch is loaded.

The figures are those of `core.metrics` for one image.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from activeseg.core.labels import UNLABELED, LabelSet, Mask
from activeseg.errors import MaskError

_ROWS = 256  # counted at a time: the pairs of a large image, widened, would need eight times its memory

_Counts = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class ClassRow:
    """A class in an image. predicted, annotated: its share of all pixels, None where there is no such mask.

    iou, dice: from the pixels somebody labelled, the ignored class left out; None where the annotation has no such pixel.
    """

    index: int
    predicted: float | None
    annotated: float | None
    iou: float | None = None
    dice: float | None = None


def class_table(prediction: Mask | None, annotation: Mask | None, label_set: LabelSet) -> list[ClassRow]:
    """The classes in either mask: best IoU first, then by their larger share.

    A pixel without a class has no row; where classes overlap the shares may add up to more than 1. Raises MaskError for
    arrays that are no masks of these classes or of different sizes.
    """
    shares = [None if mask is None else _shares(mask, label_set) for mask in (prediction, annotation)]
    scores = _scores(prediction, annotation, label_set) if prediction is not None and annotation is not None else {}
    rows = [
        ClassRow(index, *(None if share is None else float(share[index]) for share in shares), *scores.get(index, (None, None)))
        for index in range(len(label_set.names))
    ]
    there = [row for row in rows if row.predicted or row.annotated]
    return sorted(there, key=_rank, reverse=True)


def _rank(row: ClassRow) -> tuple[float, float]:
    return (-1.0 if row.iou is None else row.iou, max(row.predicted or 0.0, row.annotated or 0.0))


def _shares(mask: Mask, label_set: LabelSet) -> npt.NDArray[np.float64]:
    label_set.check_mask(mask)
    count = len(label_set.names)
    if label_set.overlap:
        pixels = np.array([np.count_nonzero(plane) for plane in mask])
    else:
        pixels = sum((np.bincount(strip.ravel(), minlength=256) for strip in _strips(mask)), np.zeros(256, np.int64))[:count]
    shares: npt.NDArray[np.float64] = pixels / (mask.shape[-2] * mask.shape[-1])
    return shares


def _scores(prediction: Mask, annotation: Mask, label_set: LabelSet) -> dict[int, tuple[float, float]]:
    """(IoU, Dice) by class index, of the classes in the annotation."""
    if prediction.shape != annotation.shape:
        raise MaskError(
            f"the prediction is {prediction.shape[-1]}x{prediction.shape[-2]}, "
            f"the annotation {annotation.shape[-1]}x{annotation.shape[-2]}"
        )
    count = _overlapping if label_set.overlap else _exclusive
    hits, true, predicted = count(prediction, annotation, label_set)
    return {
        index: (
            float(hits[index] / (true[index] + predicted[index] - hits[index])),
            float(2 * hits[index] / (true[index] + predicted[index])),
        )
        for index in label_set.channels
        if true[index]
    }


def _exclusive(prediction: Mask, annotation: Mask, label_set: LabelSet) -> tuple[_Counts, _Counts, _Counts]:
    pairs = np.zeros(256 * 256, np.int64)
    for true, predicted in zip(_strips(annotation), _strips(prediction), strict=True):
        pairs += np.bincount((true.astype(np.uint16) << 8 | predicted).ravel(), minlength=len(pairs))
    table = pairs.reshape(256, 256)
    table[[UNLABELED] if label_set.ignore_index is None else [UNLABELED, label_set.ignore_index]] = 0
    return np.diagonal(table), table.sum(axis=1), table.sum(axis=0)


def _overlapping(prediction: Mask, annotation: Mask, label_set: LabelSet) -> tuple[_Counts, _Counts, _Counts]:
    ignored = label_set.ignore_index
    counted = np.True_ if ignored is None else ~annotation[ignored]
    counts = [
        [np.count_nonzero(plane & counted) for plane in (guess & truth, truth, guess)]
        for guess, truth in zip(prediction, annotation, strict=True)
    ]
    hits, true, predicted = np.array(counts, np.int64).T
    return hits, true, predicted


def _strips(mask: Mask) -> Iterator[Mask]:
    return (mask[start : start + _ROWS] for start in range(0, len(mask), _ROWS))
