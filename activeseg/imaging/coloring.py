"""Masks in the colours of their label set, alone or over the image, one output pixel per mask pixel; and their legend."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
from PIL import Image

from activeseg.core.labels import UNLABELED, LabelSet, Mask
from activeseg.core.palette import voc_palette
from activeseg.errors import ConfigError, MaskError

UNLABELED_COLOR = (224, 224, 192)
"""Colour of pixels nobody labelled: the one VOC draws its border in."""

NO_CLASS_COLOR = (255, 255, 255)
"""Colour of pixels that have none of the classes of a label set whose classes may overlap."""

SEVERAL_CLASSES = "several classes: the mean of their colours"

PALETTES = ("labels", "voc")

Pixels = npt.NDArray[np.uint8]
Color = tuple[int, int, int]


def colorize(mask: Mask, label_set: LabelSet) -> Image.Image:
    """RGB picture (H, W) of a mask, class indices or planes. A pixel of several classes has the mean of their colours.

    Raises MaskError for an array that is no mask of these classes.
    """
    return Image.fromarray(_colors_of(mask, label_set)[0])


def overlay(image: Pixels, mask: Mask, label_set: LabelSet, *, alpha: float = 0.5) -> Image.Image:
    """The image (H, W, 3) uint8 with the mask's colours laid over it.

    `alpha` is the weight of the colours, 0..1; pixels that are unlabelled or have no class keep the image.
    Raises MaskError where the sizes differ or the array is no mask of these classes.
    """
    if image.shape[:2] != mask.shape[-2:]:
        raise MaskError(f"expected a mask of the image's size {image.shape[:2]} (height, width); got {mask.shape[-2:]}")
    if not 0 <= alpha <= 1:
        raise ConfigError(f"expected alpha between 0 and 1; got {alpha}")
    colors, has_class = _colors_of(mask, label_set)
    blend = np.rint((1 - alpha) * image.astype(np.float32) + alpha * colors).astype(np.uint8)
    return Image.fromarray(np.where(has_class[..., None], blend, image))


def with_palette(label_set: LabelSet, palette: str) -> LabelSet:
    """The classes in their own colours ('labels') or, class i in VOC's colour i, in VOC's ('voc')."""
    if palette not in PALETTES:
        raise ConfigError(f"unknown palette {palette!r}; expected {' or '.join(PALETTES)}")
    return label_set if palette == "labels" else replace(label_set, colors=voc_palette(len(label_set.names)))


def seen_classes(masks: Sequence[Mask], label_set: LabelSet, *, over_image: bool = False) -> list[tuple[str, Color]]:
    """Names and colours of the classes in any of the masks, in their order, for a legend.

    Last, unless masks are laid over images, comes the colour of pixels that have no class.
    """
    if label_set.overlap:
        shown = np.zeros(len(label_set.names), np.bool_)
        for mask in masks:
            shown |= mask.any(axis=(1, 2))
        last = [("no class", NO_CLASS_COLOR)] if any((~mask.any(axis=0)).any() for mask in masks) else []
    else:
        shown = np.zeros(256, np.bool_)
        for mask in masks:
            shown[mask.ravel()] = True
        last = [("not labelled", UNLABELED_COLOR)] if shown[UNLABELED] else []
    if over_image:
        last = []
    classes = zip(shown, label_set.names, label_set.colors, strict=False)
    return [(name, color) for is_shown, name, color in classes if is_shown] + last


def has_several(masks: Sequence[Mask], label_set: LabelSet) -> bool:
    """Whether any pixel of these masks has several classes."""
    return label_set.overlap and any((mask.sum(axis=0, dtype=np.uint8) > 1).any() for mask in masks)


def _colors_of(mask: Mask, label_set: LabelSet) -> tuple[Pixels, npt.NDArray[np.bool_]]:
    """Colours (H, W, 3) uint8, and where there is any class (H, W)."""
    label_set.check_mask(mask)
    if not label_set.overlap:
        return _color_table(label_set)[mask], mask != UNLABELED
    count = mask.sum(axis=0, dtype=np.uint8)
    total = np.zeros((*count.shape, 3), np.float32)
    for plane, color in zip(mask, label_set.colors, strict=True):
        total[plane] += color
    colors = np.rint(total / np.maximum(count, 1)[..., None]).astype(np.uint8)
    colors[count == 0] = NO_CLASS_COLOR
    return colors, count > 0


def _color_table(label_set: LabelSet) -> Pixels:
    table = np.empty((256, 3), np.uint8)
    table[:] = UNLABELED_COLOR
    table[: len(label_set.colors)] = label_set.colors
    return table
