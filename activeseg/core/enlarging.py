"""From coarse logits to the image's size."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True, slots=True)
class Enlargement:
    """The last step of a network: coarse logits are interpolated bilinearly to `size`, then cropped at the top left.

    size: (rows, columns) interpolated to, as `torch.nn.functional.interpolate` does it. align_corners: the corners' centres
    lie on each other; False: half-pixel centres. height, width: of the image, at most `size`.
    """

    size: tuple[int, int]
    align_corners: bool
    height: int
    width: int

    def apply(self, logits: Tensor) -> Tensor:
        """(N, C, h, w) -> (N, C, height, width) of the same dtype; only cropped where (h, w) is `size` already."""
        if tuple(logits.shape[-2:]) != self.size:
            logits = F.interpolate(logits, size=self.size, mode="bilinear", align_corners=self.align_corners)
        return logits[..., : self.height, : self.width]

    def taps(self, rows: int, columns: int) -> tuple[Taps, Taps]:
        """Where the image's rows and columns lie between those of (rows, columns) coarse logits."""
        return (
            _taps(rows, self.size[0], self.height, self.align_corners),
            _taps(columns, self.size[1], self.width, self.align_corners),
        )


@dataclass(frozen=True, slots=True, eq=False)
class Taps:
    """Position i of the enlarged line is (1 - weight[i]) * coarse[first[i]] + weight[i] * coarse[second[i]].

    first, second: (length,) int32, neither ever falls. weight: (length,) float32 in 0..1. All on the CPU; not to be written to.
    """

    first: Tensor
    second: Tensor
    weight: Tensor

    def to(self, device: torch.device) -> Taps:
        """The same on another device."""
        return Taps(self.first.to(device), self.second.to(device), self.weight.to(device))


@lru_cache(maxsize=64)
def _taps(before: int, after: int, kept: int, align_corners: bool) -> Taps:
    """The first `kept` of `after` positions over `before` coarse ones."""
    position = torch.arange(kept, dtype=torch.float64)
    if align_corners:
        at = position * ((before - 1) / (after - 1) if after > 1 else 0.0)
    else:
        at = ((position + 0.5) * (before / after) - 0.5).clamp(min=0)
    first = at.long().clamp(max=before - 1)
    second = (first + 1).clamp(max=before - 1)
    return Taps(first.int(), second.int(), (at - first).float())
