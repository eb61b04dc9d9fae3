"""Where the features of a strided network lie on the image, and upsampling that keeps them there.

A 3x3 convolution of stride 2 with symmetric padding centres its output i on input 2i. Through a whole encoder, feature
i at stride s is centred on pixel s*i, not on the middle of an s-wide block. Upsampling with half-pixel centres
(`align_corners=False`) would move every mask by (s - 1) / 2 pixels.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

MIN_SIDE = 33
"""Smaller images are padded to this: at stride 32 that is two features a side, so batch norm can train on one image."""


def pad_input(x: Tensor, stride: int) -> Tensor:
    """Repeat the last row and column of (N, C, H, W) until both sides are 1 more than a multiple of `stride`.

    They are at least MIN_SIDE. The last feature at that stride is then centred on the last pixel: `enlarge` reaches all.
    """
    height, width = x.shape[-2:]
    return extend(x, *padded_size(height, width, stride))


def padded_size(height: int, width: int, stride: int) -> tuple[int, int]:
    """The rows and columns that `pad_input` makes of an image's."""
    rows, columns = (max(MIN_SIDE, -(-(side - 1) // stride) * stride + 1) for side in (height, width))
    return rows, columns


def enlarge(x: Tensor, factor: int) -> Tensor:
    """(N, C, h, w) -> (N, C, factor*(h-1)+1, factor*(w-1)+1), bilinear; feature i lands exactly on factor*i."""
    height, width = (factor * (side - 1) + 1 for side in x.shape[-2:])
    return F.interpolate(x, size=(height, width), mode="bilinear", align_corners=True)


def extend(x: Tensor, height: int, width: int) -> Tensor:
    """Repeat the last row and column of (N, C, h, w) out to (N, C, height, width)."""
    right, bottom = width - x.shape[-1], height - x.shape[-2]
    return F.pad(x, (0, right, 0, bottom), mode="replicate") if right or bottom else x
