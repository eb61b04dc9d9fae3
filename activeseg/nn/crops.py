"""What one training step sees: random windows of images with their targets, or whole images.

Through torchvision.transforms.v2, whose functions treat an Image and a Mask each in its own way. Their random classes are
not used: they draw from the global random state, which several threads and the network's dropout would share.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F
from torchvision.tv_tensors import Image
from torchvision.tv_tensors import Mask as MaskTensor

from activeseg.config import TrainingSection
from activeseg.core.labels import UNLABELED
from activeseg.nn.data import Samples, UnlabeledSamples, resize_mask
from activeseg.records import InputPolicy

# Streams of random numbers that must not repeat each other; `fit` has 2 for dropout.
_ORDER, _CROPS = 0, 1
_UNLABELED_ORDER, _UNLABELED_CROPS = 3, 4

STRONG_JITTER = 0.5
"""Share by which brightness, contrast and saturation of the student's view vary at most."""

PASTED_SHARE = 0.5
"""Of the student's view: what CutMix replaces (French et al., 2020)."""


class Views(NamedTuple):
    """Unlabelled windows as teacher and student see them.

    weak: (batch, 3, h, w) uint8, as they are. strong: (batch, 3, h, w) uint8, in other colours and with a rectangle replaced
    by that of the window before. pasted: (batch, h, w) bool, that rectangle. inside: (batch, h, w) bool, which pixels of `weak`
    are of the image.
    """

    weak: Tensor
    strong: Tensor
    pasted: Tensor
    inside: Tensor


class Batch(NamedTuple):
    """What one step sees: labelled pixels (batch, 3, h, w) uint8, their targets, and views of unlabelled images, if any."""

    pixels: Tensor
    targets: Tensor
    views: Views | None = None


def draw_step(samples: Samples, unlabeled: UnlabeledSamples, config: TrainingSection, step: int) -> Batch:
    """The batch of a step: labelled crops alone for the first [training] unlabelled_after steps."""
    views = draw_views(unlabeled, config, step) if len(unlabeled) and step >= config.unlabelled_after else None
    return Batch(*draw_batch(samples, config, step), views)


def draw_batch(samples: Samples, config: TrainingSection, step: int) -> tuple[Tensor, Tensor]:
    """What one step sees: pixels (batch, 3, h, w) uint8 and targets (batch, h, w) or (batch, C, h, w) uint8.

    Depends on samples, config and step only, whichever thread asks. Every image comes once before any comes again.
    """
    random = np.random.default_rng([config.seed, _CROPS, step])
    first = step * config.batch_size
    positions = [_position(turn, len(samples), config.seed, _ORDER) for turn in range(first, first + config.batch_size)]
    drawn = [_draw(*samples[position], samples.policy, config, random) for position in positions]
    return torch.stack([pixels for pixels, _ in drawn]), torch.stack([targets for _, targets in drawn])


def draw_views(unlabeled: UnlabeledSamples, config: TrainingSection, step: int) -> Views:
    """The unlabelled windows of a step, as many as labelled ones; depends on images, config and step only."""
    random = np.random.default_rng([config.seed, _UNLABELED_CROPS, step])
    first = step * config.batch_size
    turns = range(first, first + config.batch_size)
    positions = [_position(turn, len(unlabeled), config.seed, _UNLABELED_ORDER) for turn in turns]
    drawn = [_draw_window(unlabeled[position], unlabeled.policy, config, random) for position in positions]
    weak, strong, inside = (torch.stack(parts) for parts in zip(*drawn, strict=True))
    pasted = torch.stack([_rectangle(*config.crop, random) for _ in drawn])
    return Views(weak, mixed(strong, pasted), pasted, inside)


def mixed(values: Tensor, pasted: Tensor) -> Tensor:
    """CutMix (Yun et al., 2019): values (batch, ..., h, w), where `pasted` (batch, h, w) replaced by the window before's."""
    mask = pasted.view(len(pasted), *(1,) * (values.ndim - 3), *pasted.shape[1:])
    return torch.where(mask, values.roll(1, dims=0), values)


def _rectangle(height: int, width: int, random: np.random.Generator) -> Tensor:
    """(height, width) bool: a rectangle of PASTED_SHARE of the area, of any shape that fits, at any place."""
    rows = PASTED_SHARE ** random.random()
    sides = round(height * rows), round(width * PASTED_SHARE / rows)
    top, left = (int(random.integers(0, whole - side + 1)) for whole, side in zip((height, width), sides, strict=True))
    pasted = torch.zeros(height, width, dtype=torch.bool)
    pasted[top : top + sides[0], left : left + sides[1]] = True
    return pasted


def _draw_window(
    pixels: Tensor, policy: InputPolicy, config: TrainingSection, random: np.random.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """One window as it is, in other colours, and which of its pixels are of the image."""
    nothing = torch.zeros(pixels.shape[-2:], dtype=torch.uint8)
    image, inside = _place(pixels, nothing, policy, config, random)
    return image.as_subclass(Tensor), _jittered(image, STRONG_JITTER, random).as_subclass(Tensor), inside != UNLABELED


def _position(turn: int, count: int, seed: int, stream: int) -> int:
    """Which image has the given turn in an endless series of shuffles."""
    shuffle, place = divmod(turn, count)
    return int(np.random.default_rng([seed, stream, shuffle]).permutation(count)[place])


def _draw(
    pixels: Tensor, targets: Tensor, policy: InputPolicy, config: TrainingSection, random: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """One image's part of a batch, of size config.crop."""
    image, labels = _place(pixels, targets, policy, config, random)
    if config.color_jitter:
        image = _jittered(image, config.color_jitter, random)
    return image.as_subclass(Tensor), labels


def _place(
    pixels: Tensor, targets: Tensor, policy: InputPolicy, config: TrainingSection, random: np.random.Generator
) -> tuple[Image, Tensor]:
    """A window of the image, or all of it, of size config.crop, mirrored half of the time."""
    image, mask = Image(pixels), MaskTensor(targets)
    if config.augment == "crop":
        image, mask = _cut_window(image, mask, policy, config, random)
    image = F.resize(image, list(config.crop), antialias=True)
    labels = resize_mask(mask.as_subclass(Tensor), *config.crop)
    if config.augment == "crop" and random.random() < 0.5:
        image, labels = F.horizontal_flip(image), labels.flip(-1)
    return image, labels


def _jittered(image: Image, most: float, random: np.random.Generator) -> Image:
    brightness, contrast, saturation = 1 + most * random.uniform(-1, 1, size=3)
    jittered: Image = F.adjust_saturation(F.adjust_contrast(F.adjust_brightness(image, brightness), contrast), saturation)
    return jittered


def _cut_window(
    image: Image, mask: MaskTensor, policy: InputPolicy, config: TrainingSection, random: np.random.Generator
) -> tuple[Image, MaskTensor]:
    """A window of random size and place; where it reaches beyond the image, the mean colour and UNLABELED."""
    scale = random.uniform(*config.scale)
    height, width = (max(1, round(side / scale)) for side in config.crop)
    rows, columns = image.shape[-2:]
    top, left = _offset(rows, height, random), _offset(columns, width, random)
    margins = [max(0, -left), max(0, -top), max(0, left + width - columns), max(0, top + height - rows)]
    if any(margins):
        image = F.pad(image, margins, fill=[round(255 * mean) for mean in policy.mean])  # 0 after scaling
        mask = F.pad(mask, margins, fill=UNLABELED)
    top, left = top + margins[1], left + margins[0]
    return F.crop(image, top, left, height, width), F.crop(mask, top, left, height, width)


def _offset(side: int, window: int, random: np.random.Generator) -> int:
    """Where a window begins: anywhere inside the side, or, where it is larger, anywhere that holds the whole side."""
    slack = side - window
    return int(random.integers(min(0, slack), max(0, slack) + 1))
