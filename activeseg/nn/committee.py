"""What a scoring pass can give besides the usual statistics: committees of one network, and gradients of its last layer.

All of it looks at coarse logits, before they are enlarged: at the places of those inside the image.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from activeseg.core.disagreement import disagreement, dropped
from activeseg.core.temperature import scaled
from activeseg.nn.network import Network
from activeseg.records import ImageRef

PASSES = 8
DROPOUT = 0.3
SCALES = (0.75, 1.25)

_Axis = tuple[Tensor, Tensor, Tensor]
"""Where to read along a side: the place before, the place after, and the weight of the latter."""


def seeds_of(images: Sequence[ImageRef]) -> Tensor:
    """(N,) int32 that depend on the images' contents alone: scored again, an image gets the same number."""
    return torch.tensor([zlib.crc32(image.sha256.encode()) - 2**31 for image in images], dtype=torch.int32)


def bald(
    network: Network, features: Sequence[Tensor], size: tuple[int, int], seeds: Tensor, *, temperature: float, sigmoid: bool
) -> Tensor:
    """(N,) float64: the disagreement of PASSES of the head over features of which a share of DROPOUT fell out each time.

    features: of images of `size` (H, W), from the encoder that runs once. seeds: (N,) int32.
    """

    def passes() -> Iterator[Tensor]:
        for number in range(PASSES):
            draws = range(number * len(features), (number + 1) * len(features))
            thinned = [dropped(one, seeds, share=DROPOUT, draw=draw) for one, draw in zip(features, draws, strict=True)]
            logits = network.scores(tuple(thinned))
            rows, columns = cells_inside(network, logits, size)
            yield scaled(logits[..., : len(rows), : len(columns)].float(), temperature)

    return disagreement(passes(), sigmoid=sigmoid)


def tta_jsd(network: Network, x: Tensor, logits: Tensor, *, temperature: float, sigmoid: bool) -> Tensor:
    """(N,) float64: the disagreement of the network on the image, mirrored, and scaled by SCALES.

    x: images (N, 3, H, W) as the network takes them. logits: their coarse logits. The logits of the other views are read,
    interpolated, at the places of the image where these lie.
    """
    height, width = x.shape[-2:]
    rows, columns = cells_inside(network, logits, (height, width))

    def members() -> Iterator[Tensor]:
        yield logits[..., : len(rows), : len(columns)].float()
        yield _read(network, x.flip(-1), rows, width - 1 - columns)
        for scale in SCALES:
            h, w = max(1, round(scale * height)), max(1, round(scale * width))
            view = F.interpolate(x.float(), size=(h, w), mode="bilinear", align_corners=False, antialias=True)
            yield _read(network, view, (rows + 0.5) * (h / height) - 0.5, (columns + 0.5) * (w / width) - 0.5)

    return disagreement((scaled(member, temperature) for member in members()), sigmoid=sigmoid)


def class_gradients(logits: Tensor, features: Tensor, *, sigmoid: bool) -> Tensor:
    """g[c] = sum over the places predicted as c of (1 - p_c) * feature, divided by all places: (N, C * D) float32.

    It is what the loss's gradient at a 1x1 score layer would be, were the prediction right, by predicted class: the plain
    gradient's other terms cancel (after Ash et al. 2020, BADGE). Where classes overlap, those with p_c > 0.5.
    logits: (N, C, ...); features: (N, D, h, w), at whose places the logits are read.
    """
    with torch.autocast(logits.device.type, enabled=False):
        at = F.interpolate(logits.float(), size=features.shape[-2:], mode="bilinear", align_corners=True)
        if sigmoid:
            weights = (at > 0) * torch.sigmoid(-at)
        else:
            p = torch.softmax(at, dim=1)
            first, winner = p.max(dim=1, keepdim=True)
            weights = torch.zeros_like(p).scatter_(1, winner, 1 - first)
        gradients = torch.einsum("nchw,ndhw->ncd", weights, features.float())
        return gradients.flatten(1) / features[0, 0].numel()


def cells_inside(network: Network, logits: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Rows and columns of an image (H, W), in pixels, at which its coarse logits lie: of those inside it, at least one."""
    enlargement = network.enlargement(*size)
    sides = zip(logits.shape[-2:], enlargement.size, size, strict=True)
    rows, columns = (_inside(_places(count, full, enlargement.align_corners), side) for count, full, side in sides)
    return rows, columns


def _places(count: int, full: int, align_corners: bool) -> Tensor:
    cells = torch.arange(count, dtype=torch.float64)
    if align_corners:
        return cells * ((full - 1) / (count - 1) if count > 1 else 0.0)
    return (cells + 0.5) * (full / count) - 0.5


def _inside(places: Tensor, side: int) -> Tensor:
    return places[: max(1, int((places <= side - 0.5).sum()))]


def _read(network: Network, x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """The coarse logits of images (N, 3, H, W), interpolated at places (in pixels of these images): (N, C, rows, columns)."""
    logits = network.coarse(x).float()
    enlargement = network.enlargement(*x.shape[-2:])
    sides = zip((rows, columns), logits.shape[-2:], enlargement.size, strict=True)
    down, across = (_axis(at, count, full, enlargement.align_corners, x.device) for at, count, full in sides)
    lines = torch.lerp(logits[..., across[0]], logits[..., across[1]], across[2])
    return torch.lerp(lines[..., down[0], :], lines[..., down[1], :], down[2][:, None])


def _axis(at: Tensor, count: int, full: int, align_corners: bool, device: torch.device) -> _Axis:
    cells = at * ((count - 1) / max(full - 1, 1)) if align_corners else (at + 0.5) * (count / full) - 0.5
    cells = cells.clamp(0, count - 1)
    first = cells.long()
    after = (first + 1).clamp(max=count - 1)
    return first.to(device), after.to(device), (cells - first).float().to(device)
