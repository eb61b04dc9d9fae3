"""Whether a network's probabilities mean what they say: negative log-likelihood, calibration error, reliability table.

A decision is what one confidence belongs to: where classes exclude each other, a pixel, decided by the argmax with
confidence max_c p_c; where they overlap, each (pixel, class), decided by p_c > 0.5 with confidence max(p_c, 1 - p_c),
which is never below one half.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from activeseg.core.labels import UNLABELED
from activeseg.errors import ConfigError, MaskError

BINS = 15
"""Of equal width over 0..1, as in Guo et al. 2017."""


@dataclass(frozen=True, slots=True)
class ReliabilityBin:
    """Decisions with a confidence in (low, high]. confidence, accuracy: their means; NaN where count is 0."""

    low: float
    high: float
    count: int
    confidence: float
    accuracy: float


@dataclass(frozen=True, slots=True)
class CalibrationFigures:
    """nll: mean nats a decision. ece: expected calibration error in 0..1. Both NaN without a decision.

    bins: the reliability table, by rising confidence.
    """

    nll: float
    ece: float
    bins: tuple[ReliabilityBin, ...]


class Calibration:
    """Sums over decisions; keeps no pixel.

    NLL is the mean of -log p of the truth (of the true answer of each class where classes overlap). ECE is the mean
    over decisions of |accuracy - mean confidence| of their bin, bins of equal width (Guo et al. 2017, equation 3).

    sigmoid: classes overlap. bins: how many.
    """

    def __init__(self, *, sigmoid: bool = False, bins: int = BINS) -> None:
        if bins < 1:
            raise ConfigError(f"bins: expected at least 1; got {bins}")
        self.sigmoid = sigmoid
        self._nll = 0.0
        # By bin: decisions, summed confidence, right decisions.
        self._sums = torch.zeros(3, bins, dtype=torch.float64)

    @torch.no_grad()
    def update(self, logits: Tensor, truth: Tensor) -> None:
        """Count decisions.

        logits: (N, C, H, W) floating point on any device. truth: whole numbers, UNLABELED where nothing is counted:
        channel numbers (N, H, W) or, where classes overlap, 0 or 1 for each channel (N, C, H, W).
        Raises MaskError where truth has another shape or other values.
        """
        self._check_kind(logits, truth)
        bins = self._sums.shape[1]
        # What is not counted falls into a bin of its own: that costs a third of picking out what is.
        sums = torch.zeros(3, bins + 1, dtype=torch.float64, device=logits.device)
        lines = [self._count(own, true, sums) for own, true in self._parts(logits, truth)]
        self._nll += float(torch.cat(lines).sum(dtype=torch.float64))
        self._sums += sums[:, :bins].cpu()

    def _parts(self, logits: Tensor, truth: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """What is counted at once: everything or, where classes overlap, a channel of an image.

        The decisions of all channels would need several times the memory of the logits.
        """
        if not self.sigmoid:
            yield logits, truth
            return
        for image, its_truth in zip(logits, truth, strict=True):
            yield from zip(image, its_truth, strict=True)

    def _count(self, logits: Tensor, truth: Tensor, sums: Tensor) -> Tensor:
        """Add decisions to sums (3, bins + 1) float64; returns the summed NLL of each line of pixels, one after the other."""
        truth = truth.to(logits.device).long()
        self._check_values(logits, truth)
        wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
        nll, confidence, right = (_binary if self.sigmoid else _categorical)(wide, truth)
        ignored = truth == UNLABELED
        self._bin(confidence.masked_fill_(ignored, 0.0), right, ignored, sums)
        return nll.masked_fill_(ignored, 0.0).sum(dim=-1).flatten()

    def compute(self) -> CalibrationFigures:
        """The figures of everything counted so far."""
        count, confidence, right = self._sums
        total, width = float(count.sum()), 1 / len(count)
        columns = zip(count.tolist(), (confidence / count).tolist(), (right / count).tolist(), strict=True)
        bins = [ReliabilityBin(k * width, (k + 1) * width, int(n), mean, share) for k, (n, mean, share) in enumerate(columns)]
        if not total:
            return CalibrationFigures(math.nan, math.nan, tuple(bins))
        return CalibrationFigures(self._nll / total, float((confidence - right).abs().sum()) / total, tuple(bins))

    def _bin(self, confidence: Tensor, right: Tensor, ignored: Tensor, sums: Tensor) -> None:
        """Add confidences, whether each decision was right, and whether it is ignored, of one shape, to (3, bins + 1)."""
        bins = self._sums.shape[1]
        # A confidence on an edge belongs to the bin below.
        edges = torch.linspace(0, 1, bins + 1, device=confidence.device)[1:-1]
        where = torch.bucketize(confidence.float().contiguous(), edges).masked_fill_(ignored, bins).flatten()
        sums[0] += torch.bincount(where, minlength=bins + 1)
        for row, values in ((sums[1], confidence), (sums[2], right)):
            row.index_add_(0, where, values.double().flatten())

    def _check_kind(self, logits: Tensor, truth: Tensor) -> None:
        expected = logits.shape if self.sigmoid else (*logits.shape[:1], *logits.shape[2:])
        if logits.ndim != 4 or tuple(truth.shape) != tuple(expected) or truth.is_floating_point():
            raise MaskError(
                f"truth: expected whole numbers of shape {tuple(expected)} for logits {tuple(logits.shape)}; "
                f"got {truth.dtype} {tuple(truth.shape)}"
            )

    def _check_values(self, logits: Tensor, truth: Tensor) -> None:
        values = 2 if self.sigmoid else logits.shape[1]
        if not ((truth == UNLABELED) | ((truth >= 0) & (truth < values))).all():
            raise MaskError(f"truth: expected 0..{values - 1} or {UNLABELED}; got {int(truth.min())}..{int(truth.max())}")


def _categorical(logits: Tensor, truth: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """NLL, confidence and whether the decision is right, each (N, H, W)."""
    log_p = F.log_softmax(logits, dim=1)
    confidence, winner = log_p.max(dim=1)
    return F.nll_loss(log_p, truth, ignore_index=UNLABELED, reduction="none"), confidence.exp(), winner == truth


def _binary(logits: Tensor, truth: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """As `_categorical`, each of the shape of logits: the decisions of one channel or of any number of them."""
    says_yes, is_yes = logits > 0, truth == 1
    nll = F.softplus(torch.where(is_yes, -logits, logits))
    return nll, torch.sigmoid(logits.abs()), says_yes == is_yes
