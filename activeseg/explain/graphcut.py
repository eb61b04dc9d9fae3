"""Weakly supervised localisation (Simonyan, Vedaldi and Zisserman 2013, section 3.2): from a saliency map to a mask.

The most salient pixels are seeds of the object, the least salient ones seeds of what is around it. Gaussian mixtures of
the seeds' colours say how likely each pixel belongs to either, and a graph cut (Boykov and Jolly 2001, in OpenCV's
implementation of GrabCut) draws the border where the colours change. The largest connected component is the object.
"""

from __future__ import annotations

from typing import TypeVar

import cv2
import numpy as np
import numpy.typing as npt

from activeseg.errors import ConfigError, ImageError, SaliencyError

LONGEST_SIDE = 640
"""Larger images are cut at this size: the time of a cut grows faster than the number of pixels."""

Pixels = npt.NDArray[np.uint8]
Saliency = npt.NDArray[np.float32]
BoolMask = npt.NDArray[np.bool_]
_Kind = TypeVar("_Kind", bound=np.generic)


def graph_cut_mask(
    image: Pixels, saliency: Saliency, *, foreground: float = 0.95, background: float = 0.30, iterations: int = 0
) -> BoolMask:
    """The object a saliency map points at: (H, W) bool, one 4-connected component.

    image: (H, W, 3) uint8. saliency: (H, W), larger = more salient. foreground, background: quantiles of the saliency at
    and above, at and below which pixels are seeds; seeds keep their side. iterations: further cuts, each with colour
    models learned from the cut before (GrabCut, Rother et al. 2004); 0 = one cut by the seeds' colours. The same arguments
    give the same mask. Images with a side above LONGEST_SIDE are cut at that size.
    Raises SaliencyError as `seed_map`, ImageError where sizes differ, and ConfigError for quantiles out of order.
    """
    return graph_cut(image, saliency, foreground=foreground, background=background, iterations=iterations)[0]


def graph_cut(
    image: Pixels, saliency: Saliency, *, foreground: float = 0.95, background: float = 0.30, iterations: int = 0
) -> tuple[BoolMask, npt.NDArray[np.int8]]:
    """The mask (H, W) bool of `graph_cut_mask` and the seeds it was cut from, (H, W) int8 as `seed_map` gives them.

    Of images with a side above LONGEST_SIDE they are the seeds of the smaller image, enlarged.
    """
    if image.shape != (*saliency.shape, 3) or image.dtype != np.uint8:
        raise ImageError(f"expected an image {(*saliency.shape, 3)} uint8, as its saliency; got {image.shape} {image.dtype}")
    small, seeds = _shrunk(image), seed_map(_shrunk(saliency), foreground=foreground, background=background)
    found = _largest_component(_cut(small, seeds, iterations))
    return _enlarged(found.astype(np.uint8), saliency.shape).astype(np.bool_), _enlarged(seeds, saliency.shape)


def seed_map(saliency: Saliency, *, foreground: float = 0.95, background: float = 0.30) -> npt.NDArray[np.int8]:
    """(H, W) int8: 1 where the saliency reaches its `foreground` quantile, -1 up to its `background` quantile, else 0.

    Raises SaliencyError where the map is constant, not finite or so flat that the quantiles are equal, and ConfigError
    unless 0 <= background < foreground <= 1.
    """
    if not 0 <= background < foreground <= 1:
        raise ConfigError(f"expected quantiles 0 <= background < foreground <= 1; got {background} and {foreground}")
    if saliency.ndim != 2 or not saliency.size or not np.isfinite(saliency).all():
        raise SaliencyError(f"expected finite saliency (H, W); got {saliency.shape} with NaN or infinite values or none at all")
    low, high = np.quantile(saliency, [background, foreground])
    if not low < high:
        raise SaliencyError(
            f"the saliency map points nowhere: its {background:.0%} and {foreground:.0%} quantiles are both {high:g}; "
            "take another class or another network"
        )
    return np.where(saliency >= high, 1, np.where(saliency <= low, -1, 0)).astype(np.int8)


def _cut(image: Pixels, seeds: npt.NDArray[np.int8], iterations: int) -> BoolMask:
    cv2.setRNGSeed(0)  # k-means begins somewhere
    back, front = np.zeros((1, 65)), np.zeros((1, 65))  # OpenCV's two mixtures of five Gaussians
    # The colour models of the seeds alone: a picture of nothing but seeds, looked at without a cut.
    seeded = np.ascontiguousarray(image[seeds != 0][None])
    sides = np.where(seeds[seeds != 0] > 0, cv2.GC_FGD, cv2.GC_BGD).astype(np.uint8)[None]
    cv2.grabCut(seeded, sides, None, back, front, 0, cv2.GC_INIT_WITH_MASK)
    mask = np.select([seeds > 0, seeds < 0], [cv2.GC_FGD, cv2.GC_BGD], cv2.GC_PR_BGD).astype(np.uint8)
    cv2.grabCut(image, mask, None, back, front, 1, cv2.GC_EVAL_FREEZE_MODEL)
    if iterations:
        cv2.grabCut(image, mask, None, back, front, iterations, cv2.GC_EVAL)
    return (mask & 1).astype(np.bool_)  # GC_FGD and GC_PR_FGD are odd


def _largest_component(mask: BoolMask) -> BoolMask:
    _, numbers, statistics, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=4)
    return np.asarray(numbers == 1 + np.argmax(statistics[1:, cv2.CC_STAT_AREA]), np.bool_)


def _enlarged(values: npt.NDArray[_Kind], shape: tuple[int, ...]) -> npt.NDArray[_Kind]:
    return np.asarray(cv2.resize(values, (shape[1], shape[0]), interpolation=cv2.INTER_NEAREST), values.dtype)


def _shrunk(values: npt.NDArray[_Kind]) -> npt.NDArray[_Kind]:
    height, width = values.shape[:2]
    scale = LONGEST_SIDE / max(height, width)
    if scale >= 1:
        return values
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return np.asarray(cv2.resize(values, size, interpolation=cv2.INTER_AREA), values.dtype)
