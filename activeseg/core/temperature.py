"""Temperature scaling: one number that makes a network's probabilities mean what they say (Guo et al. 2017, section 4.2).

Logits are divided by T before softmax or sigmoid. The largest logit stays the largest and a sign stays a sign, so no mask
changes. T is the one with the smallest negative log-likelihood on labelled images that were not trained on.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from activeseg.core.labels import UNLABELED
from activeseg.errors import MaskError

LOWEST, HIGHEST = 0.2, 5.0
"""Fitted temperatures lie between: beyond them it is the images that are too few."""
ENOUGH_IMAGES = 4
"""With fewer validation images nothing is fitted."""
GRID = 49
DECISIONS = 2048
"""Of an image, at most, drawn at random: neighbouring pixels say the same."""
_LARGEST = 1e4
"""Of a logit: 0 times infinity is nothing to add up."""
DECIMALS = 2
"""Scores are made with a temperature rounded to so many, so that what is written of it is all there is to it."""


@dataclass(frozen=True, slots=True)
class FittedTemperature:
    """temperature: in LOWEST..HIGHEST. nll, nll_before: mean nats a decision with it and without, over `decisions`."""

    temperature: float
    nll: float
    nll_before: float
    decisions: int


def scaled(logits: Tensor, temperature: float) -> Tensor:
    """logits / temperature; the very tensor where that is 1."""
    return logits if temperature == 1.0 else logits / temperature


def serving(stored: float | None, mode: str) -> float:
    """The temperature to score with. stored: a checkpoint's, None where none was fitted. mode: 'validation' or 'none'."""
    return 1.0 if stored is None or mode == "none" else round(stored, DECIMALS)


class TemperatureFit:
    """Sums of the negative log-likelihood and its slope over a grid of temperatures; keeps no pixel.

    As a function of b = 1 / T the NLL of a pixel is log sum_c exp(b z_c) - b z_truth, which is convex, with the slope
    sum_c p_c z_c - z_truth. So the smallest is where the summed slope crosses zero: found between two points of the grid by
    interpolating the slope. Where classes overlap, a decision is (pixel, class): log(1 + exp(-b s z)) with s = +1 or -1.
    """

    def __init__(self, *, sigmoid: bool = False) -> None:
        self.sigmoid = sigmoid
        # 1 is in the middle of the grid: the likelihood before is one of its points.
        self._inverse = torch.from_numpy(1 / np.geomspace(HIGHEST, LOWEST, GRID))
        self._sums = torch.zeros(2, GRID, dtype=torch.float64)
        self._weight = 0.0
        self._decisions = 0

    @torch.no_grad()
    def update(self, logits: Tensor, truth: Tensor, *, seed: int) -> None:
        """Count an image.

        logits: (C, H, W) floating point. truth: whole numbers, UNLABELED where nothing is counted: channels (H, W) or, where
        classes overlap, 0 or 1 (C, H, W). seed: of the draw of pixels; those drawn stand for all. Raises MaskError for
        other shapes.
        """
        if tuple(truth.shape) != tuple(logits.shape if self.sigmoid else logits.shape[1:]):
            raise MaskError(f"truth: {tuple(truth.shape)} does not fit logits {tuple(logits.shape)}")
        true = truth.flatten().numpy(force=True)
        places = np.flatnonzero(true != UNLABELED)
        if not places.size:
            return
        taken = places
        if places.size > DECISIONS:
            taken = np.random.default_rng(seed).choice(places, DECISIONS, replace=False, shuffle=False)
        where, answers = torch.from_numpy(taken).to(logits.device), torch.from_numpy(true[taken].astype(np.int64))
        drawn = (logits.flatten()[where] if self.sigmoid else logits.flatten(1)[:, where].T).float().cpu()
        drawn = drawn.clamp(-_LARGEST, _LARGEST)
        nll, slope = (_binary if self.sigmoid else _categorical)(drawn, answers, self._inverse.float())
        weight = places.size / taken.size
        self._sums += weight * torch.stack([nll, slope]).sum(dim=-1, dtype=torch.float64)
        self._weight += places.size
        self._decisions += taken.size

    def fit(self) -> FittedTemperature | None:
        """The temperature with the smallest NLL of everything counted; None where nothing was."""
        if not self._decisions:
            return None
        nll, slope = (self._sums / self._weight).numpy()
        inverse = self._inverse.numpy()
        # Rounding may leave a flat slope uneven; np.interp wants it to rise.
        best = float(np.interp(0.0, np.maximum.accumulate(slope), inverse))
        after = float(np.interp(best, inverse, nll))
        before = float(nll[GRID // 2])
        return FittedTemperature(1 / best, min(after, before), before, self._decisions)


def _categorical(logits: Tensor, truth: Tensor, inverse: Tensor) -> tuple[Tensor, Tensor]:
    """logits (K, C), truth (K,), inverse temperatures (G,) -> NLL and its slope, each (G, K)."""
    hot = inverse[:, None, None] * logits
    own = logits.gather(1, truth[:, None])[:, 0]
    return hot.logsumexp(dim=-1) - inverse[:, None] * own, (hot.softmax(dim=-1) * logits).sum(dim=-1) - own


def _binary(logits: Tensor, truth: Tensor, inverse: Tensor) -> tuple[Tensor, Tensor]:
    """logits (K,), truth 0 or 1 (K,), inverse temperatures (G,) -> as `_categorical`."""
    against = torch.where(truth == 1, -logits, logits)
    hot = inverse[:, None] * against
    return F.softplus(hot), torch.sigmoid(hot) * against
