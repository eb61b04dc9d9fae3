"""Forward passes over images: scores for the pool, masks and entropy maps for the query."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from activeseg.core.entropy import entropy_map, predicted_channels, reduce_logits
from activeseg.core.labels import Mask
from activeseg.nn.batches import BATCH_SIZE, BatchLimit, Fitting, Loaded, batches_by_size, find_batch_size
from activeseg.nn.checkpoint import Segmenter
from activeseg.nn.data import stack_pixels, to_input
from activeseg.nn.decoding import Loader, Read
from activeseg.nn.device import autocast, describe_device
from activeseg.nn.heap import kept_heap
from activeseg.nn.pace import Pace
from activeseg.nn.scoring import Scorer, Submitted, evaluating, image_scores
from activeseg.records import ImageRef, ImageScore, ScoreFailure

Tag = TypeVar("Tag")

Batches = Iterator[list[Loaded[ImageRef]] | ScoreFailure]


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


def score_images(
    segmenter: Segmenter,
    images: Iterable[ImageRef],
    read: Read,
    *,
    device: torch.device,
    precision: str = "auto",
    batch_size: int = BATCH_SIZE,
    readers: int = 0,
    compile: str = "never",
    cache: Path | None = None,
    left: Callable[[], float] = lambda: 0.0,
    pace: Pace | None = None,
    needs: Collection[str] = (),
    temperature: float = 1.0,
) -> Generator[ImageScore | ScoreFailure, None, None]:
    """Scores as they are finished, one result per image, in the images' order as far as their sizes allow.

    images: taken one by one, a few batches ahead of the scores; memory does not grow with their number.
    read: what an image holds, see `decoding.Read`; called from several threads (`readers`, 0 = by the cores). A DataError it
    raises becomes a ScoreFailure; anything else is raised here. Entropies are summed at the size the input policy gives.
    batch_size: 0 = found by trying on a GPU, BATCH_SIZE on a CPU; smaller ones are made where memory is short.
    compile, cache, left, needs, temperature: see `scoring.Scorer`. pace: is told where the time goes.

    Raises NonFiniteScoreError naming the image whose score is NaN or infinite, DeviceMemoryError where memory is too small
    even for one image; an image that alone is too large where others fit becomes a ScoreFailure.
    """
    pace = pace or Pace()
    scorer = Scorer(
        segmenter,
        device=device,
        precision=precision,
        pace=pace,
        compile=compile,
        cache=cache,
        left=left,
        needs=needs,
        temperature=temperature,
    )
    loader = Loader(read, segmenter.spec.input_policy)
    images, limit = (images, BatchLimit(batch_size)) if batch_size else _tried(scorer, loader, iter(images))
    with kept_heap(), closing(loader.ahead(images, readers=readers, ahead=2 * limit.images)) as loaded:
        batches: Batches = batches_by_size(pace.each("decode", loaded), limit)
        fitting = Fitting(scorer.submit, limit, describe_device(device))
        yield from _scores(scorer, fitting, batches, pace)


def predict_masks(
    segmenter: Segmenter,
    images: Iterable[ImageRef],
    read: Read,
    *,
    device: torch.device,
    precision: str = "auto",
    batch_size: int = BATCH_SIZE,
) -> Generator[Prediction | ScoreFailure, None, None]:
    """Masks, entropy maps and class confidences at each image's own size; order and errors of reading as `score_images`."""
    loader = Loader(read, segmenter.spec.input_policy)
    with kept_heap(), closing(loader.ahead(images, readers=0, ahead=2 * batch_size)) as loaded:
        batches: Batches = batches_by_size(loaded, batch_size)
        for batch in batches:
            if isinstance(batch, ScoreFailure):
                yield batch
                continue
            logits = forward(segmenter, batch, device=device, precision=precision)
            for one, own in zip(batch, logits.unsqueeze(1), strict=True):
                yield _prediction(one, at_size(own, one.size), segmenter)


def forward(segmenter: Segmenter, batch: list[Loaded[Tag]], *, device: torch.device, precision: str) -> Tensor:
    """Logits (N, C, h, w) float32 of images of one size, in eval mode; the module's training flag stays as it was."""
    module = segmenter.module.to(device)  # not under inference_mode: weights moved there could not be trained again
    pixels = stack_pixels([loaded.pixels for loaded in batch])
    with evaluating(module), torch.inference_mode(), autocast(device, precision):
        logits: Tensor = module(to_input(pixels, segmenter.spec.input_policy, device))["out"]
    return logits.float()


def at_size(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """(N, C, h, w) -> (N, C, H, W), bilinear; undoes the input policy's resize."""
    if tuple(logits.shape[-2:]) == size:
        return logits
    return F.interpolate(logits, size=size, mode="bilinear", align_corners=False)


def _scores(
    scorer: Scorer, fitting: Fitting[ImageRef, Submitted], batches: Batches, pace: Pace
) -> Iterator[ImageScore | ScoreFailure]:
    """On a GPU the scores of a batch are read while the next one computes."""
    behind = 1 if scorer.device.type == "cuda" else 0
    computing: deque[Submitted] = deque()
    for batch in batches:
        if isinstance(batch, ScoreFailure):
            pace.failed += 1
            yield batch
            continue
        for submitted in pace.each("device", fitting.of(batch)):
            computing.append(submitted)
            if len(computing) > behind:
                with pace.waiting("device"):
                    scores = scorer.scores(computing.popleft())
                yield from scores
    for submitted in computing:
        yield from scorer.scores(submitted)
    for item in pace.each("device", fitting.rest()):
        if isinstance(item, Submitted):
            yield from scorer.scores(item)
        else:
            pace.failed += 1
            yield ScoreFailure(item[0].tag.image_id, item[1])


def _tried(scorer: Scorer, loader: Loader, images: Iterator[ImageRef]) -> tuple[Iterator[ImageRef], BatchLimit]:
    """The same images, and the batches that suit the first one that can be read."""
    taken: list[ImageRef] = []
    for image in images if scorer.device.type == "cuda" else ():
        taken.append(image)
        loaded = loader(image)
        if isinstance(loaded, Loaded):
            found = find_batch_size(partial(_seconds, scorer, loaded))
            return chain(taken, images), BatchLimit(found, found * loaded.area)
    return chain(taken, images), BatchLimit()


def _seconds(scorer: Scorer, loaded: Loaded[ImageRef], count: int) -> float:
    return scorer.seconds(stack_pixels([loaded.pixels] * count))


def _prediction(loaded: Loaded[ImageRef], logits: Tensor, segmenter: Segmenter) -> Prediction:
    sigmoid = segmenter.spec.head == "sigmoid"
    statistics = reduce_logits(logits, sigmoid=sigmoid)
    [score] = image_scores(statistics, [loaded.tag], segmenter.spec.label_set.channels)
    return Prediction(
        loaded.tag.image_id,
        segmenter.spec.label_set.to_indices(predicted_channels(logits, sigmoid=sigmoid)[0].cpu().numpy()),
        entropy_map(logits, sigmoid=sigmoid)[0].cpu().numpy(),
        {one.class_index: one.mean_confidence for one in score.classes if one.mean_confidence is not None},
    )
