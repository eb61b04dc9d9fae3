"""Neighbours in a clip, many images of one site: limits on what one query asks of them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath

import numpy as np

from activeseg.core.acquisition import Whole
from activeseg.core.ranking import Flags, Limits

NONE = -1
_MOST_DIGITS = 18


def frame_number(uri: str) -> int | None:
    """The last number in the file's name without its ending: 930 for '0016E5/0016E5_00930.png'.

    None where there is none, or one of more than 18 digits, which is a hash or a moment and counts no frames.
    """
    numbers = re.findall(r"[0-9]+", PurePosixPath(uri.partition("?")[0]).stem)
    return int(numbers[-1]) if numbers and len(numbers[-1]) <= _MOST_DIGITS else None


class ClipLimits(Limits):
    """No frame near one that is asked about, and not too many images of a group.

    clips: (N,), a whole number for each group of images; NONE for an image without one, which nothing limits.
    frames: (N,), frame numbers; NONE for an image without one, which no gap limits.
    asked: clip -> frames of earlier queries.
    min_frame_gap: frames of a clip closer than this to one that is taken, now or earlier, are not free; 0 = no gap.
    max_per_group: after so many of a clip are taken, none of it is free; those taken in spite of the limits count. 0 = any.
    """

    def __init__(
        self,
        clips: Whole,
        frames: Whole,
        *,
        min_frame_gap: int,
        max_per_group: int,
        asked: Mapping[int, Sequence[int]],
    ) -> None:
        super().__init__(len(clips))
        self._clips, self._frames = clips, frames
        self._gap, self._most = min_frame_gap, max_per_group
        self._taken: dict[int, int] = {}
        if self._gap:
            self.free &= ~_near(clips, frames, asked, self._gap)

    def take(self, place: int) -> None:
        """Take a place, and close its neighbours and, where the group has its share, the group."""
        super().take(place)
        clip, frame = int(self._clips[place]), int(self._frames[place])
        if clip == NONE:
            return
        if self._gap and frame != NONE:
            apart = np.abs(self._frames - frame) >= self._gap
            self.free &= (self._clips != clip) | (self._frames == NONE) | apart
        self._taken[clip] = self._taken.get(clip, 0) + 1
        if self._most and self._taken[clip] >= self._most:
            self.free &= self._clips != clip


def _near(clips: Whole, frames: Whole, asked: Mapping[int, Iterable[int]], gap: int) -> Flags:
    """(N,) whether a frame lies closer than `gap` to one of its clip that was asked about."""
    near = np.zeros(len(clips), dtype=bool)
    order = np.argsort(clips, kind="stable")
    ordered = clips[order]
    for clip, known in asked.items():
        rows = order[np.searchsorted(ordered, clip) : np.searchsorted(ordered, clip, side="right")]
        rows = rows[frames[rows] != NONE]
        marks = np.unique(np.array(list(known), dtype=np.int64))
        if not len(rows) or not len(marks) or clip == NONE:
            continue
        after = np.searchsorted(marks, frames[rows])
        above = np.abs(marks[np.minimum(after, len(marks) - 1)] - frames[rows])
        below = np.abs(marks[np.maximum(after - 1, 0)] - frames[rows])
        near[rows] = np.minimum(above, below) < gap
    return near
