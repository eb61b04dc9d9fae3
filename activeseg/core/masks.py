"""Masks and binary regions: taking apart, painting together, comparing, removing specks.

Where classes exclude each other a mask is (H, W) uint8 class indices; where they overlap, planes (K, H, W) bool.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from activeseg.core.labels import Mask

IndexMask = npt.NDArray[np.uint8]
BoolMask = npt.NDArray[np.bool_]
_Ints = npt.NDArray[np.int64]


def split_regions(mask: Mask, class_indices: Iterable[int]) -> list[tuple[int, BoolMask]]:
    """One (class index, (H, W) bool) per listed class that occurs in the mask, in the listed order.

    mask: (H, W) uint8 class indices, or planes (K, H, W) bool.
    """
    if mask.ndim == 3:
        return [(index, mask[index]) for index in class_indices if mask[index].any()]
    present = set(np.unique(mask).tolist())
    return [(index, mask == index) for index in class_indices if index in present]


def compose_regions(shape: tuple[int, int], regions: Iterable[tuple[int, BoolMask]], *, fill: int) -> IndexMask:
    """The inverse of split_regions: regions (class index, (H, W) bool) painted in order, later over earlier.

    fill: value of the pixels under no region.
    """
    mask = np.full(shape, fill, np.uint8)
    for index, region in regions:
        mask[region] = index
    return mask


def unite_regions(shape: tuple[int, int], regions: Iterable[tuple[int, BoolMask]], *, planes: int) -> BoolMask:
    """Planes (planes, H, W) bool: in each the union of the regions of that class index."""
    united = np.zeros((planes, *shape), np.bool_)
    for index, region in regions:
        united[index] |= region
    return united


def changed_share(before: Mask, after: Mask) -> float:
    """Share of pixels (0..1) whose class, or any of whose classes, differs between two masks of one kind and size."""
    differs = before != after
    return float(np.mean(differs.any(axis=0) if differs.ndim == 3 else differs))


def despeckle(mask: IndexMask, min_pixels: int) -> IndexMask:
    """The mask (H, W) uint8 without 4-connected components smaller than min_pixels.

    A speck takes the class it shares its longest border with, specks beside other specks last; ties go to the lower
    index. A mask of specks only is returned as it is.
    """
    mask = mask.copy()
    components = label_components(mask)
    small = np.bincount(components.ravel()) < min_pixels
    while small.any():
        component, value = _borders(mask, components, small)
        if component.size == 0:
            break
        winners, new_value = _most_frequent(component, value)
        table = np.full(small.size, -1, np.int64)
        table[winners] = new_value
        chosen = table[components]
        mask[chosen >= 0] = chosen[chosen >= 0]
        small[winners] = False
    return mask


def label_components(mask: IndexMask) -> _Ints:
    """Numbers (H, W) int64, from 0, of the 4-connected components of equal value."""
    if mask.size == 0:
        return np.zeros(mask.shape, np.int64)
    starts = np.ones(mask.shape, np.bool_)
    starts[:, 1:] = mask[:, 1:] != mask[:, :-1]
    runs = np.cumsum(starts).reshape(mask.shape) - 1  # horizontal runs, joined below where they touch vertically
    touching = mask[1:] == mask[:-1]
    upper, lower = np.unique(np.stack([runs[:-1][touching], runs[1:][touching]]), axis=1)
    parent = np.arange(runs[-1, -1] + 1)
    while (differ := parent[upper] != parent[lower]).any():
        a, b = parent[upper[differ]], parent[lower[differ]]
        np.minimum.at(parent, np.maximum(a, b), np.minimum(a, b))
        while (shorter := parent[parent]).tobytes() != parent.tobytes():
            parent = shorter
    numbers: _Ints = np.unique(parent, return_inverse=True)[1][runs]
    return numbers


def _borders(mask: IndexMask, components: _Ints, small: BoolMask) -> tuple[_Ints, _Ints]:
    """(small component, value beside it) once for every pixel border with a component that is not small."""
    found = []
    for axis in (0, 1):
        for step in (1, -1):
            here, there = (_without_edge(components, axis, -step), _without_edge(components, axis, step))
            border = small[here] & ~small[there]
            found.append((here[border], _without_edge(mask, axis, step)[border].astype(np.int64)))
    return np.concatenate([f[0] for f in found]), np.concatenate([f[1] for f in found])


def _without_edge(array: npt.NDArray[np.generic], axis: int, step: int) -> npt.NDArray[np.generic]:
    """The array without its first (step 1) or last (step -1) row or column."""
    keep = slice(1, None) if step > 0 else slice(None, -1)
    return array[keep] if axis == 0 else array[:, keep]


def _most_frequent(component: _Ints, value: _Ints) -> tuple[_Ints, _Ints]:
    """Each component once, with the value it occurs with most often (the lowest of several)."""
    pairs, counts = np.unique(component * 256 + value, return_counts=True)
    owner = pairs // 256
    order = np.lexsort((pairs, -counts, owner))
    winners, first = np.unique(owner[order], return_index=True)
    return winners, pairs[order][first] % 256
