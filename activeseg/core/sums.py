"""What the ways to reduce coarse logits have in common: what they are given, and the sums they hand back."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from activeseg.core.enlarging import Enlargement, Taps
from activeseg.core.entropy import GRID, SHARE_THRESHOLD, BatchStatistics, check_logits, max_entropy

_LOWEST = -1e30
"""Stands for -inf before the interpolation, where 0 * -inf would be NaN."""


@dataclass(frozen=True, slots=True, eq=False)
class Coarse:
    """Coarse logits made ready.

    logits: (N, C, h, w) float32, contiguous and finite.
    broken: (N,) bool, images with a pixel that depends on a logit of NaN or +inf or, softmax, on a place where all are -inf.
    down, across: from coarse to the image's rows and columns. bands: first row of each row of the grid, and the height.
    threshold: nats above which a pixel is doubtful.
    """

    logits: Tensor
    broken: Tensor
    enlargement: Enlargement
    down: Taps
    across: Taps
    bands: tuple[int, ...]
    sigmoid: bool
    threshold: float

    @property
    def height(self) -> int:
        """Rows of the image."""
        return self.enlargement.height

    @property
    def width(self) -> int:
        """Columns of the image."""
        return self.enlargement.width

    def empty_class_map(self) -> Tensor:
        """(N, H, W) uint8 or, sigmoid, (N, C, H, W) bool, to be filled."""
        count, channels = self.logits.shape[:2]
        shape, dtype = ((channels,), torch.bool) if self.sigmoid else ((), torch.uint8)
        return torch.empty(count, *shape, self.height, self.width, dtype=dtype, device=self.logits.device)


@dataclass(frozen=True, slots=True, eq=False)
class Sums:
    """Over the pixels of N images, all float64.

    columns: (N, GRID, W), entropy of each column of a grid row. pixels: (N, 3): doubtful pixels, 1 - (p_first - p_second),
    1 - p_first. classes: (N, C, 4): entropy of the channel; pixels, entropy and confidence of its region.
    """

    columns: Tensor
    pixels: Tensor
    classes: Tensor

    @classmethod
    def zeros(cls, coarse: Coarse) -> Sums:
        """Of a batch, before anything is added."""
        count, channels = coarse.logits.shape[:2]
        shapes = ((count, GRID, coarse.width), (count, 3), (count, channels, 4))
        return cls(*(torch.zeros(shape, dtype=torch.float64, device=coarse.logits.device) for shape in shapes))


def made_ready(logits: Tensor, enlargement: Enlargement, *, sigmoid: bool) -> Coarse:
    """Raises ConfigError for logits of another shape or dtype than `reduce_logits` takes."""
    check_logits(logits, at_least=1 if sigmoid else 2)
    down, across = enlargement.taps(*logits.shape[-2:])
    largest = logits[..., : int(down.second[-1]) + 1, : int(across.second[-1]) + 1].float().amax(dim=1)
    broken = (largest.isnan() | largest.isposinf() | (largest.isneginf() & (not sigmoid))).flatten(1).any(dim=1)
    finite = logits.float().contiguous().nan_to_num(nan=0.0).clamp_(_LOWEST, -_LOWEST)
    rows = torch.arange(enlargement.height).tensor_split(GRID)
    bands = (0, *torch.tensor([len(band) for band in rows]).cumsum(0).tolist())
    threshold = SHARE_THRESHOLD * max_entropy(logits.shape[1], sigmoid=sigmoid)
    return Coarse(finite, broken, enlargement, down, across, bands, sigmoid, threshold)


def as_statistics(sums: Sums, coarse: Coarse, class_map: Tensor | None) -> BatchStatistics:
    """Broken images get NaN in everything that is not a number of pixels."""
    area = coarse.height * coarse.width
    doubt = torch.where(coarse.broken, math.nan, 0.0).double()
    cells = [cell.sum(dim=-1) for cell in sums.columns.tensor_split(GRID, dim=-1)]
    grid = torch.stack(cells, dim=-1).flatten(1) + doubt[:, None]
    share, margin, least = (sums.pixels / area + doubt[:, None]).unbind(dim=1)
    entropy, pixels, region, confidence = sums.classes.unbind(dim=-1)
    return BatchStatistics(
        entropy_sum=grid.sum(dim=1),
        valid_pixels=torch.full_like(coarse.broken, area, dtype=torch.int64),
        entropy_share=share,
        margin_mean=margin,
        least_confidence_mean=least,
        grid=grid,
        channel_entropy_sum=entropy + doubt[:, None],
        region_pixels=pixels.round().long(),
        region_entropy_sum=region + doubt[:, None],
        mean_confidence=confidence / pixels + doubt[:, None],
        class_map=class_map,
    )
