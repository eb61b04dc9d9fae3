"""COCO segmentations: run lengths (RLE) and polygons to masks (H, W) bool, and masks to run lengths.

Run lengths go down the columns (column-major) and begin with the length of the first run of zeros, which may be 0. As text
each is a number of 5-bit groups, lowest first, in characters from '0' on, from the fourth run on as the difference to the
run two before. Source of formats and rules: maskApi.c of the COCO API (pycocotools); both ways give what it gives.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from activeseg.errors import MaskError

BoolMask = npt.NDArray[np.bool_]
_Ints = npt.NDArray[np.int64]

_GROUP, _MORE, _SIGN, _FIRST = 5, 0x20, 0x10, 48
_MAX_GROUPS = 7  # 35 bits: more than any run of a picture needs, and no sum of them overflows 64 bits

_SCALE = 5  # the COCO API draws outlines five times as large as the picture
_MARGIN = 100
MAX_OUTLINE = 5_000_000
"""Points of one drawn outline, at five points a pixel. A real one has thousands; a hostile file could ask for any number."""


def run_lengths(mask: BoolMask) -> _Ints:
    """Lengths of the runs of a mask (H, W), zeros first, down the columns."""
    flat = mask.ravel(order="F")
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    counts = np.diff(edges, prepend=0, append=flat.size)
    return np.concatenate([[0], counts]) if flat.size and flat[0] else counts


def encode_rle(mask: BoolMask) -> dict[str, Any]:
    """A mask (H, W) as COCO's compressed RLE: {'size': [H, W], 'counts': text}."""
    return {"size": [mask.shape[0], mask.shape[1]], "counts": counts_to_text(run_lengths(mask))}


def counts_to_text(counts: _Ints) -> str:
    """Run lengths as COCO's text."""
    values = counts.astype(np.int64)
    values[3:] -= counts[1:-2]
    groups = np.empty((len(values), _MAX_GROUPS), np.int64)
    needed = np.ones(len(values), np.int64)
    for place in range(_MAX_GROUPS):
        groups[:, place] = values & 0x1F
        values = values >> _GROUP
        # The sign of the last group is the number's: a group is the last if the rest repeats its sign bit.
        rest = np.where(groups[:, place] & _SIGN, -1, 0)
        needed[values != rest] = place + 2
    places = np.arange(_MAX_GROUPS)
    groups += np.where(places < needed[:, None] - 1, _MORE, 0) + _FIRST
    return groups[places < needed[:, None]].astype(np.uint8).tobytes().decode("ascii")


def text_to_counts(text: str) -> _Ints:
    """The inverse of `counts_to_text`. Raises MaskError for what is no such text; lengths may still be wrong or negative."""
    try:
        codes = np.frombuffer(text.encode("ascii"), np.uint8).astype(np.int64) - _FIRST
    except UnicodeEncodeError:
        codes = np.full(1, -1)
    if codes.size and (codes.min() < 0 or codes.max() >= 1 << (_GROUP + 1)):
        raise MaskError("segmentation: its run lengths are no text of the COCO API")
    last = np.flatnonzero(codes & _MORE == 0)
    if codes.size and (not last.size or last[-1] != codes.size - 1):
        raise MaskError("segmentation: its run lengths break off")
    sizes = np.diff(last, prepend=-1)
    if sizes.size and sizes.max() > _MAX_GROUPS:
        raise MaskError("segmentation: a run length has more digits than any picture needs")
    place = np.arange(codes.size) - np.repeat(last - sizes + 1, sizes)
    digits = (codes & 0x1F) << (_GROUP * place)
    values: _Ints = np.add.reduceat(digits, last - sizes + 1) if last.size else digits
    values -= np.where(codes[last] & _SIGN, 1 << (_GROUP * sizes), 0)
    values[1::2], values[2::2] = np.cumsum(values[1::2]), np.cumsum(values[2::2])
    return values


def decode_counts(counts: Sequence[int] | str, size: tuple[int, int]) -> BoolMask:
    """The mask (H, W) of run lengths, a list or text. Raises MaskError unless they cover H x W pixels exactly.

    Nothing of the picture's size is allocated before that is known.
    """
    height, width = size
    if len(counts) > (height * width + 2) * (_MAX_GROUPS if isinstance(counts, str) else 1):
        raise MaskError(f"segmentation: it has more run lengths than its image of {width}x{height} has pixels")
    lengths = text_to_counts(counts) if isinstance(counts, str) else _whole_numbers(counts)
    total = sum(lengths.tolist())  # Python's integers do not overflow
    if total != height * width or (lengths.size and lengths.min() < 0):
        raise MaskError(f"segmentation: its runs cover {total} pixels, its image of {width}x{height} has {height * width}")
    values = np.arange(lengths.size) % 2 == 1
    return np.repeat(values, lengths).reshape(width, height).T


def draw_polygons(polygons: Sequence[Sequence[float]], size: tuple[int, int]) -> BoolMask:
    """The union of polygons [x1, y1, x2, y2, ...] (pixels from the upper left corner) on a picture of (H, W).

    Which pixels of the border belong to a polygon is decided as the COCO API does: the outline is drawn at five times the
    size, and a pixel counts where its centre line is inside. Overlapping itself, a polygon is filled by the even-odd rule.
    Raises MaskError for fewer than three points, for what is no number and for points further than a picture's size away.
    """
    mask = np.zeros(size, np.bool_)
    for polygon in polygons:
        _draw(mask, _points(polygon, size))
    return mask


def _whole_numbers(counts: Sequence[int]) -> _Ints:
    if not all(isinstance(count, int) and not isinstance(count, bool) and 0 <= count < 1 << 40 for count in counts):
        raise MaskError("segmentation: its run lengths must be whole numbers, 0 or more")
    return np.array(counts, np.int64)


def _points(polygon: Sequence[float], size: tuple[int, int]) -> npt.NDArray[np.float64]:
    numbers = isinstance(polygon, list) and all(
        isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e9 for value in polygon
    )
    if not numbers or len(polygon) < 6 or len(polygon) % 2:
        raise MaskError("segmentation: expected polygons [x1, y1, x2, y2, x3, y3, ...] of three points or more")
    points = np.array(polygon, np.float64).reshape(-1, 2)
    limits = np.array([size[1], size[0]]) + _MARGIN
    if (points < -limits).any() or (points > 2 * limits).any():
        raise MaskError(f"segmentation: a polygon lies far outside of its image of {size[1]}x{size[0]}")
    return points


def _draw(mask: BoolMask, points: npt.NDArray[np.float64]) -> None:
    """rleFrPoly: where the outline crosses the middle of a column, what lies below it changes sides.

    An outline is closed and crosses each column an even number of times, so that nothing changes outside of its box.
    """
    height, width = mask.shape
    x, y = _outline(np.trunc(_SCALE * points + 0.5).astype(np.int64))
    before, after = slice(None, -1), slice(1, None)
    step = x[after] != x[before]
    column = (np.minimum(x[after], x[before])[step] + 0.5) / _SCALE - 0.5
    row = np.ceil(np.clip((np.minimum(y[after], y[before])[step] + 0.5) / _SCALE - 0.5, 0, height))
    counts = (np.floor(column) == column) & (column >= 0) & (column <= width - 1)
    columns, rows = column[counts].astype(np.int64), row[counts].astype(np.int64)
    if not columns.size:
        return
    left, top = int(columns.min()), int(rows.min())
    wide, high = int(columns.max()) - left + 1, int(rows.max()) - top
    place = (columns - left) * high + rows - top
    turns = np.bincount(place, minlength=high * wide + 1)[: high * wide] & 1
    inside = np.bitwise_xor.accumulate(turns.astype(np.uint8)) == 1
    mask[top : top + high, left : left + wide] |= inside.reshape(wide, high).T


def _outline(corners: _Ints) -> tuple[_Ints, _Ints]:
    """All points (x, y) of the closed outline, each edge drawn from its corner of lesser main coordinate, as the API does."""
    start, end = corners, np.roll(corners, -1, axis=0)
    length = np.abs(end - start)
    flat = length[:, 0] >= length[:, 1]
    if (number := int((length.max(axis=1) + 1).sum())) > MAX_OUTLINE:
        raise MaskError(f"segmentation: the outline of a polygon has {number} points, at most {MAX_OUTLINE} are drawn")
    xs, ys = zip(*(_edge(a, b, bool(f)) for a, b, f in zip(start, end, flat, strict=True)), strict=True)
    return np.concatenate(xs), np.concatenate(ys)


def _edge(start: _Ints, end: _Ints, flat: bool) -> tuple[_Ints, _Ints]:
    main, other = (0, 1) if flat else (1, 0)
    flip = start[main] > end[main]
    low, high = (end, start) if flip else (start, end)
    steps = np.arange(high[main] - low[main] + 1)
    slope = (high[other] - low[other]) / max(1, int(high[main] - low[main]))
    along, across = low[main] + steps, np.trunc(low[other] + slope * steps + 0.5).astype(np.int64)
    if flip:
        along, across = along[::-1], across[::-1]
    return (along, across) if flat else (across, along)
