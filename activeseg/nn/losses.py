"""What training minimises: cross-entropy per labelled pixel, or per pixel and class where classes overlap."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import functional as F

from activeseg.core.labels import UNLABELED
from activeseg.nn.data import Samples

AUX_WEIGHT = 0.5
"""Weight of an auxiliary head's loss, as in torchvision's reference recipe."""


def segmentation_loss(logits: dict[str, Tensor], targets: Tensor, *, weights: Tensor | None = None) -> Tensor:
    """Mean loss in nats of 'out', plus AUX_WEIGHT times that of 'aux' where there is one; 0 where nothing is labelled.

    logits: (N, C, H, W). targets: uint8, channel numbers (N, H, W) for a softmax, or 0 and 1 for each channel
    (N, C, H, W) for sigmoids; UNLABELED pixels do not count. weights: (C,) float32, of the classes (softmax: a weighted
    mean) or of their presence (sigmoids: `pos_weight`).
    """
    one = _sigmoid_loss if targets.ndim == 4 else _softmax_loss
    loss = one(logits["out"].float(), targets, weights)
    return loss + AUX_WEIGHT * one(logits["aux"].float(), targets, weights) if "aux" in logits else loss


def _softmax_loss(scores: Tensor, targets: Tensor, weights: Tensor | None) -> Tensor:
    targets = targets.long()
    summed = F.cross_entropy(scores, targets, weight=weights, ignore_index=UNLABELED, reduction="sum")
    labeled = targets != UNLABELED
    if weights is None:
        return summed / labeled.sum().clamp(min=1)
    total = weights[targets.where(labeled, 0)].where(labeled, 0).sum()
    return summed / total.where(total > 0, 1)


def _sigmoid_loss(scores: Tensor, targets: Tensor, weights: Tensor | None) -> Tensor:
    counted = (targets != UNLABELED).to(scores.dtype)
    positive = None if weights is None else weights[:, None, None]
    present = (targets == 1).to(scores.dtype)
    summed = F.binary_cross_entropy_with_logits(scores, present, counted, pos_weight=positive, reduction="sum")
    return summed / counted.sum().clamp(min=1)


def median_frequency_weights(samples: Samples) -> Tensor:
    """Weights (C,) float32 that lift rare classes: the median of all frequencies over the class's own.

    A class's frequency is its share of the labelled pixels of the images it is in (Eigen and Fergus, "Predicting Depth,
    Surface Normals and Semantic Labels", 2015). A class that is in no image weighs 1.
    """
    channels = samples.label_set.num_classes
    return median_frequency((_pixels_of_classes(samples[position][1], channels) for position in range(len(samples))), channels)


def median_frequency(counts: Iterable[tuple[Tensor, int]], channels: int) -> Tensor:
    """The weights from (pixels of each class (C,), labelled pixels) of each image."""
    own, around = torch.zeros(channels, dtype=torch.float64), torch.zeros(channels, dtype=torch.float64)
    for pixels, labeled in counts:
        own += pixels
        around += torch.where(pixels > 0, labeled, 0)
    present = own > 0
    frequency = own[present] / around[present]
    weights = torch.ones(channels, dtype=torch.float64)
    if len(frequency):
        weights[present] = frequency.quantile(0.5) / frequency
    return weights.float()


def _pixels_of_classes(targets: Tensor, channels: int) -> tuple[Tensor, int]:
    if targets.ndim == 3:
        return (targets == 1).sum(dim=(1, 2)), int((targets[0] != UNLABELED).sum())
    counts = torch.bincount(targets.flatten(), minlength=256)
    return counts[:channels], int(targets.numel() - counts[UNLABELED])
