"""What one training step sees: random windows of images with their targets, or whole images.

Through torchvision.transforms.v2, whose functions treat an Image and a Mask each in its own way. Their random classes are
not used: they draw from the global random state, which several threads and the network's dropout would share.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F
from torchvision.tv_tensors import Image
from torchvision.tv_tensors import Mask as MaskTensor

from activeseg.config import TrainingSection
from activeseg.core.labels import UNLABELED
from activeseg.nn.data import Samples, resize_mask
from activeseg.records import InputPolicy

# Streams of random numbers that must not repeat each other.
_ORDER, _CROPS = 0, 1


def draw_batch(samples: Samples, config: TrainingSection, step: int) -> tuple[Tensor, Tensor]:
    """What one step sees: pixels (batch, 3, h, w) uint8 and targets (batch, h, w) or (batch, C, h, w) uint8.

    Depends on samples, config and step only, whichever thread asks. Every image comes once before any comes again.
    """
    random = np.random.default_rng([config.seed, _CROPS, step])
    first = step * config.batch_size
    positions = [_position(turn, len(samples), config.seed) for turn in range(first, first + config.batch_size)]
    drawn = [_draw(*samples[position], samples.policy, config, random) for position in positions]
    return torch.stack([pixels for pixels, _ in drawn]), torch.stack([targets for _, targets in drawn])


def _position(turn: int, count: int, seed: int) -> int:
    """Which image has the given turn in an endless series of shuffles."""
    shuffle, place = divmod(turn, count)
    return int(np.random.default_rng([seed, _ORDER, shuffle]).permutation(count)[place])


def _draw(
    pixels: Tensor, targets: Tensor, policy: InputPolicy, config: TrainingSection, random: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """One image's part of a batch, of size config.crop."""
    image, mask = Image(pixels), MaskTensor(targets)
    if config.augment == "crop":
        image, mask = _cut_window(image, mask, policy, config, random)
    image = F.resize(image, list(config.crop), antialias=True)
    labels = resize_mask(mask.as_subclass(Tensor), *config.crop)
    if config.augment == "crop" and random.random() < 0.5:
        image, labels = F.horizontal_flip(image), labels.flip(-1)
    if config.color_jitter:
        brightness, contrast, saturation = 1 + config.color_jitter * random.uniform(-1, 1, size=3)
        image = F.adjust_saturation(F.adjust_contrast(F.adjust_brightness(image, brightness), contrast), saturation)
    return image.as_subclass(Tensor), labels


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
