"""Uncertainty from logits: per-pixel entropy maps and the one-pass reduction of a batch to a few numbers per image.

Logits are (N, C, H, W) floating point on any device; classes are counted along dim 1 as network channels
(LabelSet.channels translates). Where classes exclude each other p is the softmax over dim 1; where they overlap
(`sigmoid`) each p_c is a sigmoid of its own, and a pixel's labelling is a joint distribution over 2^C outcomes whose
entropy is the sum of the channels' binary entropies.

Entropies are in nats and computed as sum(entr(p)), which is right where p = 0: the textbook p * log p gives NaN there,
and so does the log-softmax form for a logit of -inf. fp16 and bf16 logits are widened first; a logit that is NaN or
+inf gives NaN results on purpose, so that the image fails where scores are checked and never ranks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from activeseg.core.bounds import max_entropy as max_entropy
from activeseg.core.cells import GRID as GRID
from activeseg.core.labels import UNLABELED
from activeseg.errors import ConfigError

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
    region_pixels: (N, C) int64, pixels predicted as the channel: its region. Regions exclude each other with softmax
        (the argmax); with sigmoid (p_c > 0.5) a pixel may lie in several or in none.
    region_entropy_sum: (N, C) float64, nats over the region (all channels' entropy, not only the one's).
    mean_confidence: (N, C) float64, mean p of the channel over its region; NaN where that is empty.
    class_map: softmax: (N, H, W) uint8 channel numbers, UNLABELED at invalid pixels. sigmoid: (N, C, H, W) bool, the
        regions, False at invalid pixels. None where it was not asked for.
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
    class_map: Tensor | None


def predicted_channels(logits: Tensor, *, sigmoid: bool) -> Tensor:
    """What the network says: (N, C, H, W) -> (N, H, W) uint8 argmax or, where classes overlap, (N, C, H, W) bool p_c > 0.5."""
    return logits > 0 if sigmoid else logits.argmax(dim=1).to(torch.uint8)


def entropy_map(
    logits: Tensor, *, normalized: bool = False, classes: Sequence[int] | None = None, sigmoid: bool = False
) -> Tensor:
    """Per-pixel Shannon entropy -sum_c p_c log p_c of the softmax over dim 1, or the sum of binary entropies.

    logits: (N, C, H, W), C >= 2 (1 <= C with sigmoid). Returns (N, H, W) float32, nats in 0..max_entropy(C).
    sigmoid: classes overlap; a pixel's entropy is sum_c -p_c log p_c - (1 - p_c) log(1 - p_c).
    normalized: divide by `max_entropy` of all C channels, so that 1 is total ignorance (also with `classes`).
    classes: channel numbers; only their terms are summed, p still normalised over all channels.
    Raises ConfigError for another shape or dtype, or for channels that are unknown or repeated.
    """
    check_logits(logits, at_least=1 if sigmoid else 2)
    chosen = slice(None) if classes is None else _checked_channels(classes, logits.shape[1])
    if sigmoid:
        yes, no = _yes_and_no(logits[:, chosen])
        terms = torch.special.entr(yes) + torch.special.entr(no)
    else:
        terms = torch.special.entr(torch.softmax(_widened(logits), dim=1)[:, chosen])
    entropy: Tensor = terms.sum(dim=1)
    return (entropy / max_entropy(logits.shape[1], sigmoid=sigmoid) if normalized else entropy).float()


def image_entropy(logits: Tensor, valid: Tensor | None = None, *, sigmoid: bool = False) -> Tensor:
    """Summed per-pixel entropy of each image, the default acquisition score.

    logits: (N, C, H, W); valid: (N, H, W) bool, pixels that count (default all). Returns (N,) float64, nats.
    Raises ConfigError as `entropy_map`, and for a `valid` of another shape or dtype.
    """
    _check_valid(valid, logits)
    entropy = entropy_map(logits, sigmoid=sigmoid)
    return _pixel_sum(entropy if valid is None else entropy.masked_fill(~valid, 0.0))


@torch.no_grad()
def reduce_logits(logits: Tensor, valid: Tensor | None = None, *, sigmoid: bool = False) -> BatchStatistics:
    """All statistics of a batch from one pass over its logits, reduced on their device, without gradients.

    logits: (N, C, H, W) with 2 <= C <= 255 (1 <= C with sigmoid); valid: (N, H, W) bool, pixels that count (all by
    default).
    sigmoid: classes overlap. p_first and p_second are then the probabilities of the two likeliest outcomes of the joint
    distribution: prod_c max(p_c, 1 - p_c), and the same with the least sure channel flipped. A pixel belongs to the
    region of every channel with p_c > 0.5.
    At most three float32 tensors of the logits' size exist at once besides the logits (five with sigmoid).
    Raises ConfigError for another shape or dtype.
    """
    check_logits(logits, at_least=1 if sigmoid else 2)
    _check_valid(valid, logits)
    if valid is None:
        valid = torch.ones(logits.shape[0], *logits.shape[2:], dtype=torch.bool, device=logits.device)
    likelihoods = _sigmoid_likelihoods(logits) if sigmoid else _softmax_likelihoods(logits)

    # A rounded probability may exceed 1 by an ulp: no statistic of a perfectly sure image may fall below 0 for that.
    channel_entropy = likelihoods.channel_entropy.clamp_(min=0.0).masked_fill_(~valid[:, None], 0.0)
    entropy = channel_entropy.sum(dim=1)  # (N, H, W), 0 at invalid pixels
    grid = _grid_sums(entropy)
    pixels = valid.sum(dim=(1, 2))
    # A comparison with NaN is false, and the share would look like that of a sure image.
    threshold = SHARE_THRESHOLD * max_entropy(logits.shape[1], sigmoid=sigmoid)
    doubtful = torch.where(entropy.isnan(), entropy, (entropy > threshold).to(entropy.dtype))
    first, second = likelihoods.first, likelihoods.second
    regions = _overlapping_regions(likelihoods, entropy, valid) if sigmoid else _exclusive_regions(likelihoods, entropy, valid)
    return BatchStatistics(
        entropy_sum=grid.sum(dim=1),
        valid_pixels=pixels,
        entropy_share=_pixel_sum(doubtful) / pixels,
        margin_mean=_pixel_sum((1 - (first - second)).clamp(min=0.0).masked_fill(~valid, 0.0)) / pixels,
        least_confidence_mean=_pixel_sum((1 - first).clamp(min=0.0).masked_fill(~valid, 0.0)) / pixels,
        grid=grid,
        channel_entropy_sum=_pixel_sum(channel_entropy),
        region_pixels=regions.pixels,
        region_entropy_sum=regions.entropy_sum,
        mean_confidence=regions.confidence_sum / regions.pixels,
        class_map=regions.class_map,
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Likelihoods:
    """channel_entropy: (N, C, H, W). first, second: (N, H, W), of the two likeliest outcomes.

    winner, confidence: softmax: (N, H, W) the argmax and its p. sigmoid: (N, C, H, W) p_c > 0.5 and p_c.
    """

    channel_entropy: Tensor
    first: Tensor
    second: Tensor
    winner: Tensor
    confidence: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class _Regions:
    """Sums over the pixels predicted as each channel, (N, C), and the class map."""

    pixels: Tensor
    entropy_sum: Tensor
    confidence_sum: Tensor
    class_map: Tensor


def _softmax_likelihoods(logits: Tensor) -> _Likelihoods:
    probabilities = torch.softmax(_widened(logits), dim=1)
    channel_entropy = torch.special.entr(probabilities)
    first, winner = probabilities.max(dim=1)
    # Several times faster than topk(2); the probabilities are not needed any more.
    second = probabilities.scatter_(1, winner[:, None], -1.0).amax(dim=1)
    return _Likelihoods(channel_entropy, first, second, winner, first)


def _sigmoid_likelihoods(logits: Tensor) -> _Likelihoods:
    yes, no = _yes_and_no(logits)
    channel_entropy = torch.special.entr(yes).add_(torch.special.entr(no))
    surer = torch.maximum(yes, no)
    first = surer.prod(dim=1)
    flipped = torch.minimum(yes, no, out=no).div_(surer).amax(dim=1)  # odds of flipping the least sure channel
    return _Likelihoods(channel_entropy, first, first * flipped, predicted_channels(logits, sigmoid=True), yes)


def _yes_and_no(logits: Tensor) -> tuple[Tensor, Tensor]:
    """p_c and 1 - p_c without loss in either; NaN where a logit is +inf, which the sigmoid alone would take for sure."""
    wide = _widened(logits)
    wide = wide.masked_fill(wide.isposinf(), math.nan)
    return torch.sigmoid(wide), torch.sigmoid(-wide)


def _exclusive_regions(likelihoods: _Likelihoods, entropy: Tensor, valid: Tensor) -> _Regions:
    channels = likelihoods.channel_entropy.shape[1]
    regions = likelihoods.winner.masked_fill(~valid, channels)  # invalid pixels form a region of their own
    return _Regions(
        _region_sums(regions, torch.ones_like(regions), channels),
        _region_sums(regions, entropy.double(), channels),
        _region_sums(regions, likelihoods.confidence.double(), channels),
        likelihoods.winner.masked_fill(~valid, UNLABELED).to(torch.uint8),
    )


def _overlapping_regions(likelihoods: _Likelihoods, entropy: Tensor, valid: Tensor) -> _Regions:
    members = likelihoods.winner & valid[:, None]
    return _Regions(
        members.sum(dim=(2, 3)),
        _pixel_sum(torch.where(members, entropy[:, None], 0.0)),
        _pixel_sum(likelihoods.confidence.masked_fill_(~members, 0.0)),
        members,
    )


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


def check_logits(logits: Tensor, *, at_least: int) -> None:
    """Raises ConfigError for anything but floating point (N, C, H, W) with at_least to 255 channels."""
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
