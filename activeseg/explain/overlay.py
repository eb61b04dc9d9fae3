"""Index masks in the colours of their label set, alone or over the image; one output pixel per mask pixel."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image

from activeseg.core.labels import UNLABELED, LabelSet
from activeseg.errors import ConfigError, MaskError

UNLABELED_COLOR = (224, 224, 192)
"""Colour of pixels nobody labelled: the one VOC draws its border in."""

Pixels = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.uint8]


def colorize(mask: Mask, label_set: LabelSet) -> Image.Image:
    """RGB picture (H, W) of a mask of class indices. Raises MaskError where a value is not a class."""
    label_set.check_mask(mask)
    return Image.fromarray(_color_table(label_set)[mask])


def overlay(image: Pixels, mask: Mask, label_set: LabelSet, *, alpha: float = 0.5) -> Image.Image:
    """The image (H, W, 3) uint8 with the mask's colours laid over it.

    `alpha` is the weight of the colours, 0..1; unlabelled pixels keep the image.
    Raises MaskError where the sizes differ or a value is not a class.
    """
    if image.shape[:2] != mask.shape:
        raise MaskError(f"expected a mask of the image's size {image.shape[:2]} (height, width); got {mask.shape}")
    if not 0 <= alpha <= 1:
        raise ConfigError(f"expected alpha between 0 and 1; got {alpha}")
    label_set.check_mask(mask)
    colors = _color_table(label_set)[mask]
    blend = np.rint((1 - alpha) * image.astype(np.float32) + alpha * colors).astype(np.uint8)
    return Image.fromarray(np.where((mask == UNLABELED)[..., None], image, blend))


def _color_table(label_set: LabelSet) -> Pixels:
    table = np.empty((256, 3), np.uint8)
    table[:] = UNLABELED_COLOR
    table[: len(label_set.colors)] = label_set.colors
    return table
