"""One mask of several annotators', and how much they agree. Pure; all masks of one image, one kind and one size.

Where classes exclude each other a mask is (H, W) uint8 class indices or UNLABELED; where they overlap, planes (K, H, W) bool.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from activeseg.core.labels import UNLABELED, Mask
from activeseg.core.masks import changed_share
from activeseg.errors import MaskError


def majority(masks: Sequence[Mask]) -> Mask:
    """The mask most people drew, pixel by pixel; of the masks' kind, whatever their order.

    Exclusive classes: each pixel takes the class with the most votes. Who left a pixel UNLABELED has no vote there. Where
    several classes have equally many votes, the pixel becomes UNLABELED: nobody knows, so nothing is learned from it and
    nothing is judged by it (as in the label voting of ITK, whose undecided pixels get a value of their own).
    Planes: a class is where more than half of the masks have it; of two masks, where both have it.

    Raises MaskError for no mask at all and where kinds or sizes differ.
    """
    _check(masks, least=1)
    if masks[0].ndim == 3:
        united: Mask = _sum(masks) > len(masks) // 2
        return united
    shape = masks[0].shape
    outcome, most = np.full(shape, UNLABELED, np.uint8), np.zeros(shape, np.uint16)
    for value in sorted({int(value) for mask in masks for value in np.unique(mask)} - {UNLABELED}):
        count = _sum(mask == value for mask in masks)
        outcome[(count == most) & (count > 0)] = UNLABELED
        outcome[count > most] = value
        np.maximum(most, count, out=most)
    return outcome


def agreement(masks: Sequence[Mask]) -> list[float]:
    """For each of two or more masks, the mean over the others of the share (0..1) of pixels on which both are equal.

    Planes are equal at a pixel where all its classes are. Raises MaskError for one mask and where kinds or sizes differ.
    """
    _check(masks, least=2)
    equal = np.zeros((len(masks), len(masks)))
    for one in range(len(masks)):
        for other in range(one):
            equal[one, other] = equal[other, one] = 1.0 - changed_share(masks[one], masks[other])
    return [float(share) for share in equal.sum(axis=1) / (len(masks) - 1)]


def _sum(parts: Iterable[Mask]) -> npt.NDArray[np.uint16]:
    """How many of some boolean arrays are true, one by one: stacking those of a large image would be much memory."""
    waiting = iter(parts)
    total = next(waiting).astype(np.uint16)
    for part in waiting:
        total += part
    return total


def _check(masks: Sequence[Mask], *, least: int) -> None:
    if len(masks) < least:
        raise MaskError(f"expected at least {least} masks of an image; got {len(masks)}")
    if len(kinds := {(mask.shape, str(mask.dtype)) for mask in masks}) > 1:
        raise MaskError(f"expected masks of one size and kind; got {' and '.join(str(kind) for kind in sorted(kinds))}")
