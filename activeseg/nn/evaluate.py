"""Evaluation: a network's predictions against the truth, at each image's own size."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import numpy.typing as npt
import torch

from activeseg.core.calibration import Calibration, CalibrationFigures
from activeseg.core.entropy import predicted_channels
from activeseg.core.labels import LabelSet, Mask
from activeseg.core.metrics import ConfusionMatrix, Counts, Metrics, OverlapCounts, Smoothed, smoothed
from activeseg.core.temperature import FittedTemperature, TemperatureFit, scaled
from activeseg.errors import NotReadyError
from activeseg.imaging.decode import resize_short_side
from activeseg.nn.batches import BATCH_SIZE, Loaded, batches_by_size
from activeseg.nn.checkpoint import Segmenter
from activeseg.nn.data import LabeledImage, load_checked, to_pixels
from activeseg.nn.decoding import default_readers
from activeseg.nn.heap import kept_heap
from activeseg.nn.infer import at_size, forward
from activeseg.nn.prefetch import map_ahead
from activeseg.records import ClassMetric

PLANES_READERS = 2
"""Threads that read where the truth is planes, which take the memory of an image for every few classes."""


@dataclass(frozen=True, slots=True, eq=False)
class _Waiting:
    """The mask of the image at a position of the images given, one bit for each pixel of its planes where it has planes."""

    position: int
    mask: npt.NDArray[np.uint8]
    shape: tuple[int, ...]

    @classmethod
    def of(cls, position: int, mask: Mask) -> _Waiting:
        return cls(position, np.packbits(mask) if mask.ndim == 3 else mask, mask.shape)

    def channels(self, label_set: LabelSet) -> npt.NDArray[np.uint8]:
        """The mask as `LabelSet.to_channels` gives it."""
        if len(self.shape) == 2:
            return label_set.to_channels(self.mask)
        bits = np.unpackbits(self.mask, count=math.prod(self.shape))
        return label_set.to_channels(bits.view(np.bool_).reshape(self.shape))


@dataclass(frozen=True, slots=True, eq=False)
class Evaluation:
    """How a network does on labelled images; classes are network channels.

    metrics: dataset-level. counts: (N, 3, C) int64, hits, truth pixels and predicted pixels of each image, in the order
    of image_ids. confusion: (C, C) int64, rows = truth, over all images; None where classes overlap. smoothed: the
    source documents' form of IoU and Dice, per image. temperature: the one that was given. scaled: calibration with it, None
    where it is 1. fitted: the temperature that suits these images, where it was asked for.
    """

    metrics: Metrics
    counts: Counts
    confusion: npt.NDArray[np.int64] | None
    calibration: CalibrationFigures
    smoothed: Smoothed
    image_ids: tuple[int, ...]
    temperature: float = 1.0
    scaled: CalibrationFigures | None = None
    fitted: FittedTemperature | None = None

    def overall(self) -> dict[str, float]:
        """The figures over all classes by the names they are stored under; NaN where nothing was counted."""
        return {
            "mean_iou": self.metrics.mean_iou,
            "mean_dice": self.metrics.mean_dice,
            "pixel_accuracy": self.metrics.pixel_accuracy,
            "nll": self.calibration.nll,
            "ece": self.calibration.ece,
            "smoothed_iou": self.smoothed.mean_iou,
            "smoothed_dice": self.smoothed.mean_dice,
        }

    def by_class(self, label_set: LabelSet) -> tuple[ClassMetric, ...]:
        """One record per network channel of `label_set`. Raises ConfigError where the counts differ."""
        records = zip(self.metrics.by_class(label_set), self.smoothed.iou, self.smoothed.dice, strict=True)
        return tuple(replace(record, smoothed_iou=iou, smoothed_dice=dice) for record, iou, dice in records)


@kept_heap()
def evaluate(
    segmenter: Segmenter,
    images: Sequence[LabeledImage],
    *,
    device: torch.device,
    precision: str = "auto",
    batch_size: int = BATCH_SIZE,
    temperature: float = 1.0,
    fit_temperature: bool = False,
) -> Evaluation:
    """Counts and calibration at each image's own size; the ignored class and unlabelled pixels are not counted.

    What is kept of an image is its counts: memory does not grow with the masks. temperature: what logits are divided by for
    `Evaluation.scaled`; fit_temperature: whether to find the one that suits these images.
    Raises NotReadyError without images, MaskError for a mask that does not fit its image.
    """
    if not images:
        raise NotReadyError("no validation images: annotate some, or import them with `activeseg dataset import --split val`")
    sigmoid = segmenter.spec.head == "sigmoid"
    load = partial(_load_truth, segmenter)
    readers = PLANES_READERS if segmenter.spec.label_set.overlap else default_readers()
    fit = TemperatureFit(sigmoid=sigmoid) if fit_temperature else None
    tally = _Tally(segmenter.spec.label_set, len(images), sigmoid=sigmoid, temperature=temperature, fit=fit)
    with closing(map_ahead(load, enumerate(images), workers=readers, ahead=2 * batch_size)) as loaded:
        batches: Iterator[list[Loaded[_Waiting]]] = batches_by_size(loaded, batch_size)
        for batch in batches:
            logits = forward(segmenter, batch, device=device, precision=precision)
            for one, own in zip(batch, logits.unsqueeze(1), strict=True):
                tally.add(one.tag, at_size(own, one.size))
    return tally.evaluation(tuple(image.image_id for image in images))


class _Tally:
    """Sums over images, and the counts of each by its position."""

    def __init__(
        self, label_set: LabelSet, images: int, *, sigmoid: bool, temperature: float, fit: TemperatureFit | None
    ) -> None:
        num_classes = label_set.num_classes
        self.label_set, self.sigmoid = label_set, sigmoid
        self.total: ConfusionMatrix | OverlapCounts = OverlapCounts(num_classes) if sigmoid else ConfusionMatrix(num_classes)
        self.calibration = Calibration(sigmoid=sigmoid)
        self.temperature, self.fit = temperature, fit
        self.scaled = Calibration(sigmoid=sigmoid) if temperature != 1.0 else None
        self.counts: Counts = np.zeros((images, 3, num_classes), np.int64)

    def add(self, waiting: _Waiting, logits: torch.Tensor) -> None:
        """Count one image: logits (1, C, H, W) of its mask's size."""
        true = torch.from_numpy(waiting.channels(self.label_set))[None]
        before = self.total.counts
        self.total.update(predicted_channels(logits, sigmoid=self.sigmoid).cpu(), true)
        self.counts[waiting.position] = self.total.counts - before
        self.calibration.update(logits, true)
        if self.scaled is not None:
            self.scaled.update(scaled(logits, self.temperature), true)
        if self.fit is not None:
            self.fit.update(logits[0], true[0], seed=waiting.position)

    def evaluation(self, image_ids: tuple[int, ...]) -> Evaluation:
        """All figures."""
        return Evaluation(
            metrics=self.total.compute(),
            counts=self.counts,
            confusion=self.total.matrix.numpy() if isinstance(self.total, ConfusionMatrix) else None,
            calibration=self.calibration.compute(),
            smoothed=smoothed(self.counts),
            image_ids=image_ids,
            temperature=self.temperature,
            scaled=None if self.scaled is None else self.scaled.compute(),
            fitted=None if self.fit is None else self.fit.fit(),
        )


def _load_truth(segmenter: Segmenter, numbered: tuple[int, LabeledImage]) -> Loaded[_Waiting]:
    position, image = numbered
    found, mask = load_checked(image, segmenter.spec.label_set)
    resized = to_pixels(resize_short_side(found.pixels, segmenter.spec.input_policy.short_side))
    return Loaded(_Waiting.of(position, mask), resized, found.size)
