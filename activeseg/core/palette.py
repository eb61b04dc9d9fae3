"""The colours of PASCAL VOC's index masks."""

from __future__ import annotations


def voc_palette(n: int) -> tuple[tuple[int, int, int], ...]:
    """The first `n` (at most 256) VOC colours as (r, g, b).

    Bit k of the index, counted in groups of three, goes to red, green and blue in turn, from the highest bit of each
    channel down (`VOCcode/VOClabelcolormap.m` of the VOC development kit).
    """
    if not 0 <= n <= 256:
        raise ValueError(f"expected n between 0 and 256, the number of VOC colours; got {n}")
    return tuple((_channel(index, 0), _channel(index, 1), _channel(index, 2)) for index in range(n))


def _channel(index: int, channel: int) -> int:
    return sum((index >> (3 * group + channel) & 1) << (7 - group) for group in range(3))
