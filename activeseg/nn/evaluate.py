"""Evaluation: a network's predictions against the truth, at each image's own size."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
import torch

from activeseg.core.labels import UNLABELED
from activeseg.core.metrics import ConfusionMatrix, Metrics
from activeseg.errors import NotReadyError
from activeseg.imaging.decode import resize_short_side
from activeseg.nn.checkpoint import Segmenter
from activeseg.nn.data import LabeledImage, load_checked, to_pixels
from activeseg.nn.infer import READERS, Loaded, at_size, batches_by_size, forward
from activeseg.nn.prefetch import map_ahead

NumberedTruth = tuple[int, npt.NDArray[np.uint8]]


@dataclass(frozen=True, slots=True, eq=False)
class Evaluation:
    """How a network does on labelled images. per_image: (N, C, C) int64, rows = truth, in the order of image_ids."""

    metrics: Metrics
    per_image: npt.NDArray[np.int64]
    image_ids: tuple[int, ...]


def evaluate(
    segmenter: Segmenter,
    images: Sequence[LabeledImage],
    *,
    device: torch.device,
    precision: str = "auto",
    batch_size: int = 8,
) -> Evaluation:
    """Confusion matrices at each image's own size; the ignored class and unlabelled pixels are not counted.

    Raises NotReadyError without images, MaskError for a mask that does not fit its image.
    """
    if not images:
        raise NotReadyError("no validation images: annotate some, or import them with `activeseg dataset import --split val`")
    label_set = segmenter.spec.label_set
    load = partial(_load_truth, segmenter)
    loaded = map_ahead(load, enumerate(images), workers=READERS, ahead=2 * batch_size)
    matrices: dict[int, ConfusionMatrix] = {}
    batches: Iterator[list[Loaded[NumberedTruth]]] = batches_by_size(loaded, batch_size)
    for batch in batches:
        logits = forward(segmenter, batch, device=device, precision=precision)
        for one, own in zip(batch, logits.unsqueeze(1), strict=True):
            position, truth = one.tag
            matrices[position] = ConfusionMatrix(label_set.num_classes, UNLABELED)
            matrices[position].update(at_size(own, one.size)[0].argmax(dim=0).cpu(), truth)
    ordered = [matrices[position] for position in range(len(images))]
    total = sum(ordered, ConfusionMatrix(label_set.num_classes, UNLABELED))
    per_image = np.stack([matrix.matrix.numpy() for matrix in ordered])
    return Evaluation(total.compute(), per_image, tuple(image.image_id for image in images))


def _load_truth(segmenter: Segmenter, numbered: tuple[int, LabeledImage]) -> Loaded[NumberedTruth]:
    position, image = numbered
    pixels, mask = load_checked(image, segmenter.spec.label_set)
    resized = to_pixels(resize_short_side(pixels, segmenter.spec.input_policy.short_side))
    return Loaded((position, segmenter.spec.label_set.to_channels(mask)), resized, (mask.shape[0], mask.shape[1]))
