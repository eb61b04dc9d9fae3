"""Planes without specks and holes, by OpenCV: 0.3 s for 12 planes of 1280x720 with 1 % of noise, where numpy takes 9 s."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Planes = npt.NDArray[np.bool_]
_Plane = npt.NDArray[np.bool_]
_Numbers = npt.NDArray[np.int32]

_ALL, _NOT_FIRST, _NOT_LAST = slice(None), slice(1, None), slice(None, -1)
_NEIGHBOURS = (
    ((_NOT_FIRST, _ALL), (_NOT_LAST, _ALL)),
    ((_NOT_LAST, _ALL), (_NOT_FIRST, _ALL)),
    ((_ALL, _NOT_FIRST), (_ALL, _NOT_LAST)),
    ((_ALL, _NOT_LAST), (_ALL, _NOT_FIRST)),
)


def despeckle_planes(planes: Planes, min_pixels: int) -> Planes:
    """Planes (K, H, W) bool without 4-connected components, and without holes, that are smaller than min_pixels.

    Each plane equals `core.masks.despeckle` of it: what is small takes the value around it, what lies in something small
    last. A plane of small components only is returned as it is.
    """
    if min_pixels <= 1:
        return planes
    return np.stack([_despeckled(plane, min_pixels) if plane.any() else plane for plane in planes])


def _despeckled(plane: _Plane, min_pixels: int) -> _Plane:
    components, small = _components(plane, min_pixels)
    if small.all():
        return plane
    plane, waiting = plane.copy(), small[components]
    while waiting.any():
        # What lies beside something settled takes its value. All that touches a component had the other value, and what was
        # settled in the same round took the same one: which of its neighbours is asked does not matter.
        value = np.full(small.size, -1, np.int8)
        for here, there in _NEIGHBOURS:
            border = waiting[here] & ~waiting[there]
            value[components[here][border]] = plane[there][border]
        chosen = value[components]
        settled = chosen >= 0
        plane[settled] = chosen[settled] == 1
        waiting[settled] = False
    return plane


def _components(plane: _Plane, min_pixels: int) -> tuple[_Numbers, npt.NDArray[np.bool_]]:
    """Numbers (H, W) of the components of both values, and which of them are smaller than min_pixels."""
    import cv2  # half a second that commands without masks should not pay

    numbers, sizes = np.zeros(plane.shape, np.int32), np.empty(0, np.int64)
    for area in (plane, ~plane):
        count, labels, stats, _ = cv2.connectedComponentsWithStats(area.astype(np.uint8), connectivity=4)
        # Label 0 is the other value.
        numbers[area] = labels[area] + (len(sizes) - 1)
        sizes = np.concatenate([sizes, stats[1:count, cv2.CC_STAT_AREA]])
    return numbers, sizes < min_pixels
