"""Forward passes over images: scores for the pool, masks and entropy maps for the query."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from activeseg.core.entropy import BatchStatistics, entropy_map, reduce_logits
from activeseg.core.labels import Mask
from activeseg.errors import DataError, NonFiniteScoreError
from activeseg.imaging.decode import resize_short_side
from activeseg.nn.checkpoint import Segmenter
from activeseg.nn.data import Array, to_input, to_pixels
from activeseg.nn.device import autocast
from activeseg.nn.prefetch import map_ahead
from activeseg.records import ClassScore, ImageRef, ImageScore, ScoreFailure

READERS = 4
"""Threads that read and decode while the network computes."""

MAX_BATCH_PIXELS = 4 * 1024**2
"""A batch holds fewer images than asked for where it would exceed this; one image always makes a batch."""

Read = Callable[[ImageRef], Array]
Tag = TypeVar("Tag")
Other = TypeVar("Other")


@dataclass(frozen=True, slots=True, eq=False)
class Prediction:
    """What the network says about one image, at the image's own size.

    mask: as the label set describes masks: (H, W) uint8 class indices or, where classes overlap, planes (K, H, W) bool
    with p_c > 0.5. entropy: (H, W) float32 nats, of all classes.
    confidences: mean probability of each predicted class over the pixels predicted as it, by class index.
    """

    image_id: int
    mask: Mask
    entropy: npt.NDArray[np.float32]
    confidences: dict[int, float]


@dataclass(frozen=True, slots=True, eq=False)
class Loaded(Generic[Tag]):
    """An image ready for the network. pixels: (3, h, w) uint8 after the input policy's resize. size: its own (H, W)."""

    tag: Tag
    pixels: Tensor
    size: tuple[int, int]


def score_images(
    segmenter: Segmenter,
    images: Iterable[ImageRef],
    read: Read,
    *,
    device: torch.device,
    precision: str = "auto",
    batch_size: int = 8,
) -> Iterator[ImageScore | ScoreFailure]:
    """Scores as they are finished, one result per image, in the images' order as far as their sizes allow.

    read: decoded pixels (H, W, 3) uint8 of an image; called from several threads. A DataError it raises becomes a
    ScoreFailure; anything else is raised here. Entropies are summed at the size the input policy gives.

    Raises NonFiniteScoreError naming the image whose score is NaN or infinite.
    """
    for batch in _batches(segmenter, images, read, batch_size):
        if isinstance(batch, ScoreFailure):
            yield batch
            continue
        logits = forward(segmenter, batch, device=device, precision=precision)
        statistics = reduce_logits(logits, sigmoid=segmenter.spec.head == "sigmoid")
        yield from _image_scores(statistics, [loaded.tag for loaded in batch], segmenter.spec.label_set.channels)


def predict_masks(
    segmenter: Segmenter,
    images: Iterable[ImageRef],
    read: Read,
    *,
    device: torch.device,
    precision: str = "auto",
    batch_size: int = 8,
) -> Iterator[Prediction | ScoreFailure]:
    """Masks, entropy maps and class confidences at each image's own size; order and errors as `score_images`."""
    for batch in _batches(segmenter, images, read, batch_size):
        if isinstance(batch, ScoreFailure):
            yield batch
            continue
        logits = forward(segmenter, batch, device=device, precision=precision)
        for loaded, one in zip(batch, logits.unsqueeze(1), strict=True):
            yield _prediction(loaded, at_size(one, loaded.size), segmenter)


def forward(segmenter: Segmenter, batch: list[Loaded[Tag]], *, device: torch.device, precision: str) -> Tensor:
    """Logits (N, C, h, w) float32 of images of one size, in eval mode; the module's training flag stays as it was."""
    module = segmenter.module.to(device)  # not under inference_mode: weights moved there could not be trained again
    pixels = torch.stack([loaded.pixels for loaded in batch])
    was_training = module.training
    module.eval()
    try:
        with torch.inference_mode(), autocast(device, precision):
            logits: Tensor = module(to_input(pixels, segmenter.spec.input_policy, device))["out"]
    finally:
        module.train(was_training)
    return logits.float()


def at_size(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """(N, C, h, w) -> (N, C, H, W), bilinear; undoes the input policy's resize."""
    if tuple(logits.shape[-2:]) == size:
        return logits
    return F.interpolate(logits, size=size, mode="bilinear", align_corners=False)


@dataclass(slots=True)
class _Waiting(Generic[Tag]):
    """Images by size, sizes in the order in which their oldest image came."""

    batch_size: int
    by_size: dict[torch.Size, list[Loaded[Tag]]] = field(default_factory=dict)

    def add(self, loaded: Loaded[Tag]) -> list[Loaded[Tag]] | None:
        """Keep an image; hand out a batch when its size has enough, or the oldest one when too much is waiting."""
        shape = loaded.pixels.shape
        same_size = self.by_size.setdefault(shape, [])
        same_size.append(loaded)
        if len(same_size) >= min(self.batch_size, MAX_BATCH_PIXELS // (shape[1] * shape[2])):
            return self.by_size.pop(shape)
        waiting = [one for several in self.by_size.values() for one in several]
        pixels = sum(one.pixels[0].numel() for one in waiting)
        return self.pop_oldest() if len(waiting) >= 4 * self.batch_size or pixels > 4 * MAX_BATCH_PIXELS else None

    def pop_oldest(self) -> list[Loaded[Tag]]:
        return self.by_size.pop(next(iter(self.by_size)))


def batches_by_size(images: Iterable[Loaded[Tag] | Other], batch_size: int) -> Iterator[list[Loaded[Tag]] | Other]:
    """Group images of one size into batches; a bounded number waits for others of its size. What is none passes."""
    waiting: _Waiting[Tag] = _Waiting(batch_size)
    for loaded in images:
        if not isinstance(loaded, Loaded):
            yield loaded
        elif batch := waiting.add(loaded):
            yield batch
    while waiting.by_size:
        yield waiting.pop_oldest()


def _batches(
    segmenter: Segmenter, images: Iterable[ImageRef], read: Read, batch_size: int
) -> Iterator[list[Loaded[ImageRef]] | ScoreFailure]:
    """Batches of one size, and failures as they come."""
    short_side = segmenter.spec.input_policy.short_side

    def load(image: ImageRef) -> Loaded[ImageRef] | ScoreFailure:
        try:
            pixels = read(image)
            resized = to_pixels(resize_short_side(pixels, short_side))
        except DataError as error:
            return ScoreFailure(image.image_id, str(error))
        return Loaded(image, resized, (pixels.shape[0], pixels.shape[1]))

    return batches_by_size(map_ahead(load, images, workers=READERS, ahead=2 * batch_size), batch_size)


def _image_scores(statistics: BatchStatistics, images: list[ImageRef], channels: tuple[int, ...]) -> Iterator[ImageScore]:
    finite = torch.isfinite(statistics.grid).all(dim=1) & torch.isfinite(statistics.channel_entropy_sum).all(dim=1)
    for image, is_finite, value in zip(images, finite.tolist(), statistics.entropy_sum.tolist(), strict=True):
        if not is_finite:
            raise NonFiniteScoreError(
                f"image {image.image_id} ({image.uri}) has entropy {value}: the checkpoint's weights or the precision are "
                'at fault; evaluate the checkpoint, roll back, or set [model] precision = "float32"'
            )
    classes = _class_scores(statistics, channels)
    columns = (
        statistics.entropy_sum,
        statistics.valid_pixels,
        statistics.entropy_share,
        statistics.margin_mean,
        statistics.least_confidence_mean,
        statistics.grid,
    )
    rows = zip(*(column.tolist() for column in columns), strict=True)
    for image, (total, pixels, share, margin, least, grid), per_class in zip(images, rows, classes, strict=True):
        yield ImageScore(image.image_id, total, total / pixels, pixels, share, margin, least, tuple(grid), per_class)


def _class_scores(statistics: BatchStatistics, channels: tuple[int, ...]) -> Iterator[tuple[ClassScore, ...]]:
    tables = (
        statistics.channel_entropy_sum.tolist(),
        statistics.region_pixels.tolist(),
        statistics.region_entropy_sum.tolist(),
        statistics.mean_confidence.tolist(),
    )
    for rows in zip(*tables, strict=True):  # one image: a row of C values from each table
        yield tuple(
            ClassScore(index, entropy, pixels, region, confidence if pixels else None)
            for index, entropy, pixels, region, confidence in zip(channels, *rows, strict=True)
        )


def _prediction(loaded: Loaded[ImageRef], logits: Tensor, segmenter: Segmenter) -> Prediction:
    sigmoid = segmenter.spec.head == "sigmoid"
    statistics = reduce_logits(logits, sigmoid=sigmoid)
    [score] = _image_scores(statistics, [loaded.tag], segmenter.spec.label_set.channels)
    return Prediction(
        loaded.tag.image_id,
        segmenter.spec.label_set.to_indices(statistics.class_map[0].cpu().numpy()),
        entropy_map(logits, sigmoid=sigmoid)[0].cpu().numpy(),
        {one.class_index: one.mean_confidence for one in score.classes if one.mean_confidence is not None},
    )
