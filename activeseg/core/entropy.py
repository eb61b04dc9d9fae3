"""Uncertainty from logits: per-pixel entropy maps and the one-pass reduction of a batch to a few numbers per image.

Logits are (N, C, H, W) floating point on any device; classes are counted along dim 1 as network channels
(LabelSet.channels translates). Entropies are in nats and computed as sum(entr(p)), which is right where p = 0: the
textbook p * log p gives NaN there, and so does the log-softmax form for a logit of -inf. fp16 and bf16 logits are
widened before the softmax; a logit that is NaN or +inf gives NaN results on purpose, so that the image fails where
scores are checked and never ranks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from activeseg.core.labels import UNLABELED
from activeseg.errors import ConfigError

GRID = 4
"""The regional raster has GRID x GRID cells."""

SHARE_THRESHOLD = 0.5
"""A pixel counts as doubtful above this fraction of the largest possible entropy."""


@dataclass(frozen=True, slots=True, eq=False)
class BatchStatistics:
    """What is kept of a batch of logits; all tensors on the logits' device, N images, C channels.

    Sums and means run over valid pixels. Means are NaN for an image without a valid pixel.

    entropy_sum: (N,) float64, nats.
    valid_pixels: (N,) int64.
    entropy_share: (N,) float64, share of pixels with entropy > SHARE_THRESHOLD * the largest possible one.
    margin_mean: (N,) float64, mean of 1 - (p_first - p_second).
    least_confidence_mean: (N,) float64, mean of 1 - p_first.
    grid: (N, GRID * GRID) float64, row-major regional entropy sums; they add up to entropy_sum.
    channel_entropy_sum: (N, C) float64, nats; the channels add up to entropy_sum.
    region_pixels: (N, C) int64, pixels whose argmax is the channel.
    region_entropy_sum: (N, C) float64, nats over those pixels (all channels' entropy, not only the one's).
    mean_confidence: (N, C) float64, mean p of the channel over those pixels; NaN where there are none.
    class_map: (N, H, W) uint8 channel numbers, the argmax; UNLABELED at invalid pixels.
    """

    entropy_sum: Tensor
    valid_pixels: Tensor
    entropy_share: Tensor
    margin_mean: Tensor
    least_confidence_mean: Tensor
    grid: Tensor
    channel_entropy_sum: Tensor
    region_pixels: Tensor
    region_entropy_sum: Tensor
    mean_confidence: Tensor
    class_map: Tensor


def entropy_map(logits: Tensor, *, normalized: bool = False, classes: Sequence[int] | None = None) -> Tensor:
    """Per-pixel Shannon entropy of the softmax over dim 1: -sum_c p_c log p_c.

    logits: (N, C, H, W), C >= 2. Returns (N, H, W) float32, nats in 0..log C.
    normalized: divide by log C, so that 1 is a uniform distribution (also with `classes`).
    classes: channel numbers; only their terms -p_c log p_c are summed, p still normalised over all channels.
    Raises ConfigError for another shape or dtype, or for channels that are unknown or repeated.
    """
    _check_logits(logits, at_least=2)
    probabilities = torch.softmax(_widened(logits), dim=1)
    if classes is not None:
        probabilities = probabilities[:, _checked_channels(classes, logits.shape[1])]
    entropy: Tensor = torch.special.entr(probabilities).sum(dim=1)
    return (entropy / math.log(logits.shape[1]) if normalized else entropy).float()


def image_entropy(logits: Tensor, valid: Tensor | None = None) -> Tensor:
    """Summed per-pixel entropy of each image, the default acquisition score.

    logits: (N, C, H, W); valid: (N, H, W) bool, pixels that count (default all). Returns (N,) float64, nats.
    Raises ConfigError as `entropy_map`, and for a `valid` of another shape or dtype.
    """
    _check_valid(valid, logits)
    entropy = entropy_map(logits)
    return _pixel_sum(entropy if valid is None else entropy.masked_fill(~valid, 0.0))


@torch.no_grad()
def reduce_logits(logits: Tensor, valid: Tensor | None = None, *, sigmoid: bool = False) -> BatchStatistics:
    """All statistics of a batch from one pass over its logits, reduced on their device, without gradients.

    logits: (N, C, H, W) with 2 <= C <= 255 (1 <= C with sigmoid); valid: (N, H, W) bool, pixels that count (all by
    default).
    sigmoid: the channels are independent yes/no labels (multi-label). A pixel's labelling is then a joint distribution
    over 2^C outcomes whose entropy is the sum of binary entropies (at most C log 2); p_first and p_second are the
    probabilities of the two likeliest outcomes: prod_c max(p_c, 1 - p_c), and the same with the least sure channel
    flipped. The class map is the argmax of p_c, and mean_confidence the mean of that p_c.
    At most three float32 tensors of the logits' size exist at once besides the logits (five with sigmoid).
    Raises ConfigError for another shape or dtype.
    """
    _check_logits(logits, at_least=1 if sigmoid else 2)
    _check_valid(valid, logits)
    if valid is None:
        valid = torch.ones(logits.shape[0], *logits.shape[2:], dtype=torch.bool, device=logits.device)
    likelihoods = _sigmoid_likelihoods if sigmoid else _softmax_likelihoods
    channel_entropy, confidence, winner, first, second = likelihoods(_widened(logits))
    largest = logits.shape[1] * math.log(2) if sigmoid else math.log(logits.shape[1])

    # A rounded probability may exceed 1 by an ulp: no statistic of a perfectly sure image may fall below 0 for that.
    channel_entropy.clamp_(min=0.0).masked_fill_(~valid[:, None], 0.0)
    entropy = channel_entropy.sum(dim=1)  # (N, H, W), 0 at invalid pixels
    grid = _grid_sums(entropy)
    pixels = valid.sum(dim=(1, 2))
    regions = winner.masked_fill(~valid, logits.shape[1])  # invalid pixels form a region of their own
    region_pixels = _region_sums(regions, torch.ones_like(regions), logits.shape[1])
    # A comparison with NaN is false, and the share would look like that of a sure image.
    doubtful = torch.where(entropy.isnan(), entropy, (entropy > SHARE_THRESHOLD * largest).to(entropy.dtype))
    return BatchStatistics(
        entropy_sum=grid.sum(dim=1),
        valid_pixels=pixels,
        entropy_share=_pixel_sum(doubtful) / pixels,
        margin_mean=_pixel_sum((1 - (first - second)).clamp(min=0.0).masked_fill(~valid, 0.0)) / pixels,
        least_confidence_mean=_pixel_sum((1 - first).clamp(min=0.0).masked_fill(~valid, 0.0)) / pixels,
        grid=grid,
        channel_entropy_sum=_pixel_sum(channel_entropy),
        region_pixels=region_pixels,
        region_entropy_sum=_region_sums(regions, entropy.double(), logits.shape[1]),
        mean_confidence=_region_sums(regions, confidence.double(), logits.shape[1]) / region_pixels,
        class_map=winner.masked_fill(~valid, UNLABELED).to(torch.uint8),
    )


def _softmax_likelihoods(logits: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(channel entropy (N, C, H, W), p of the winner, winner, p_first, p_second), the last four (N, H, W)."""
    probabilities = torch.softmax(logits, dim=1)
    channel_entropy = torch.special.entr(probabilities)
    first, winner = probabilities.max(dim=1)
    # Several times faster than topk(2); the probabilities are not needed any more.
    second = probabilities.scatter_(1, winner[:, None], -1.0).amax(dim=1)
    return channel_entropy, first, winner, first, second


def _sigmoid_likelihoods(logits: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """As `_softmax_likelihoods`, for independent channels."""
    yes, no = torch.sigmoid(logits), torch.sigmoid(-logits)  # 1 - yes would lose the small values of no
    channel_entropy = torch.special.entr(yes).add_(torch.special.entr(no))
    confidence, winner = yes.max(dim=1)
    surer = torch.maximum(yes, no)
    first = surer.prod(dim=1)
    flipped = torch.minimum(yes, no, out=no).div_(surer).amax(dim=1)  # odds of flipping the least sure channel
    return channel_entropy, confidence, winner, first, first * flipped


def _region_sums(regions: Tensor, values: Tensor, channels: int) -> Tensor:
    """(N, H, W) channel numbers and values -> (N, channels) sums of the values by number; `channels` itself is left out.

    On a GPU the additions come in any order, so the last bits of the float64 sums may differ between runs.
    """
    sums = torch.zeros(regions.shape[0], channels + 1, dtype=values.dtype, device=values.device)
    return sums.scatter_add_(1, regions.flatten(1), values.flatten(1))[:, :channels]


def _grid_sums(entropy: Tensor) -> Tensor:
    """(N, H, W) -> (N, GRID * GRID) float64; first cells are a pixel larger where a side is no multiple."""
    rows = entropy.tensor_split(GRID, dim=1)
    return torch.stack([_pixel_sum(cell) for row in rows for cell in row.tensor_split(GRID, dim=2)], dim=1)


def _pixel_sum(values: Tensor) -> Tensor:
    """(..., H, W) -> (...) float64: lines in the values' own precision (fast), their sums in float64 (exact enough)."""
    return values.sum(dim=-1).sum(dim=-1, dtype=torch.float64)


def _widened(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _check_logits(logits: Tensor, *, at_least: int) -> None:
    if logits.ndim != 4 or not logits.is_floating_point():
        raise ConfigError(f"logits: expected floating point of shape (N, C, H, W); got {logits.dtype} {tuple(logits.shape)}")
    if not at_least <= logits.shape[1] <= UNLABELED:
        raise ConfigError(f"logits: expected {at_least} to {UNLABELED} channels in dim 1; got shape {tuple(logits.shape)}")


def _check_valid(valid: Tensor | None, logits: Tensor) -> None:
    expected = (*logits.shape[:1], *logits.shape[2:])
    if valid is not None and (valid.dtype != torch.bool or tuple(valid.shape) != expected):
        raise ConfigError(f"valid: expected bool of shape {expected} (N, H, W); got {valid.dtype} {tuple(valid.shape)}")


def _checked_channels(classes: Sequence[int], channels: int) -> list[int]:
    wanted = list(classes)
    if not wanted or len(set(wanted)) != len(wanted) or not all(0 <= channel < channels for channel in wanted):
        raise ConfigError(f"classes: expected distinct channel numbers in 0..{channels - 1}; got {wanted}")
    return wanted
