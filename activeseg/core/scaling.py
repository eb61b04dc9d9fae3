"""Masks at the size annotators see and back at the image's own, so that nothing changes that nobody touched.

Pixels are areas: pixel y of H rows covers [y, y + 1) / H of the height, and its centre decides in which pixel of another
raster it lies. All in whole numbers, so that every machine and every version agrees.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from activeseg.core.labels import Mask
from activeseg.errors import MaskError

_Indices = npt.NDArray[np.int64]


def shown_size(height: int, width: int, longest_side: int | None) -> tuple[int, int]:
    """(height, width) in pixels of the picture annotators see: the longer side at most `longest_side`.

    Never enlarged; the aspect is kept by rounding the shorter side, which stays at least 1. None: the image's own size.
    """
    longest = max(height, width)
    if longest_side is None or longest <= longest_side:
        return height, width
    # Rounded half up in whole numbers: floats would round 2.5 down and 3.5 up.
    rows, columns = (max(1, (2 * side * longest_side + longest) // (2 * longest)) for side in (height, width))
    return rows, columns


def shrink_mask(mask: Mask, size: tuple[int, int]) -> Mask:
    """A mask, (H, W) uint8 or planes (K, H, W) bool, at a smaller size (height, width): `mask` itself where it has it.

    Each pixel takes the value at its own centre. Raises MaskError where a side would grow.
    """
    height, width = mask.shape[-2:]
    if (height, width) == size:
        return mask
    if size[0] > height or size[1] > width:
        raise MaskError(f"expected a size of at most {width}x{height} to shrink a mask to; got {size[1]}x{size[0]}")
    return _sampled(mask, _containing(size[0], height), _containing(size[1], width))


def restore_mask(drawn: Mask, size: tuple[int, int], *, shown: Mask | None = None, full: Mask | None = None) -> Mask:
    """What a person drew on a shrunk picture, at the image's own size (height, width); of the same kind and dtype.

    Each pixel takes the value of the drawn pixel it lies in. With `shown`, the shrunk prediction the person started from,
    and `full`, that prediction before it was shrunk: where drawn equals shown, the pixel keeps the value of `full`, plane
    by plane. So an untouched submission is `full` bit for bit, and shrinking the outcome always gives `drawn` back.

    Raises MaskError where sizes, kinds or dtypes do not belong together, or only one of `shown` and `full` is given.
    """
    _check(drawn, size, shown, full)
    if drawn.shape[-2:] == size and full is None:
        return drawn
    rows, columns = _containing(size[0], drawn.shape[-2]), _containing(size[1], drawn.shape[-1])
    if shown is None or full is None:
        return _sampled(drawn, rows, columns)
    restored = full.copy()
    planes = (drawn, shown, restored) if drawn.ndim == 3 else (drawn[None], shown[None], restored[None])
    for now, before, plane in zip(*planes, strict=True):  # one by one: all planes of a large image are much memory
        if (differs := now != before).any():
            np.copyto(plane, _sampled(now, rows, columns), where=_sampled(differs, rows, columns))
    return restored


def _containing(count: int, total: int) -> _Indices:
    """For each of `count` pixels of a side the number of the pixel, of `total` on the same side, that holds its centre."""
    return (2 * np.arange(count, dtype=np.int64) + 1) * total // (2 * count)


def _sampled(mask: Mask, rows: _Indices, columns: _Indices) -> Mask:
    sampled: Mask = mask.take(rows, axis=-2).take(columns, axis=-1)
    return sampled


def _check(drawn: Mask, size: tuple[int, int], shown: Mask | None, full: Mask | None) -> None:
    if (shown is None) != (full is None):
        raise MaskError("expected both the shown prediction and the full one, or neither; got one of them")
    if drawn.shape[-2] > size[0] or drawn.shape[-1] > size[1]:
        given = f"{drawn.shape[-1]}x{drawn.shape[-2]}"
        raise MaskError(f"expected a mask drawn on at most {size[1]}x{size[0]} pixels; got {given}")
    whole = (*drawn.shape[:-2], *size)
    for name, mask, shape in (("shown", shown, drawn.shape), ("full", full, whole)):
        if mask is not None and (mask.shape, mask.dtype) != (shape, drawn.dtype):
            expected = f"{shape} {drawn.dtype}"
            raise MaskError(f"expected the {name} prediction as {expected}; got {mask.shape} {mask.dtype}")
