"""How far several predictions of one image disagree: what is left of the entropy of their mean once their own is taken off.

With the members of a committee p_1 .. p_T at a pixel, I = H(mean_t p_t) - mean_t H(p_t) in nats, from 0 to log T (and never
above log C). For passes with dropout it is BALD, the mutual information of prediction and weights (Houlsby et al. 2011; Gal,
Islam, Ghahramani 2017); for views of the image it is the Jensen-Shannon divergence (as EquAL, Golestaneh, Kitani 2020).
Doubt that all members share, as on a border between classes, cancels.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from activeseg.errors import ConfigError

_GOLDEN = 0x9E3779B9


def disagreement(members: Iterable[Tensor], *, sigmoid: bool) -> Tensor:
    """Logits (N, C, h, w) of each member, one after the other -> (N,) float64, nats, mean over the pixels.

    sigmoid: classes overlap; binary entropies are summed over the channels. Each member is let go of before the next one.
    Raises ConfigError where there is no member.
    """
    count, mean, own = 0, torch.zeros(()), torch.zeros(())
    for logits in members:
        wide = logits.float()
        p = torch.sigmoid(wide) if sigmoid else torch.softmax(wide, dim=1)
        count, mean, own = count + 1, mean.to(p.device) + p, own.to(p.device) + _entropy(p, sigmoid)
    if not count:
        raise ConfigError("disagreement: expected at least one member; got none")
    # Equal members may leave a rounding error below 0; NaN stays NaN.
    information = (_entropy(mean / count, sigmoid) - own / count).clamp(min=0.0)
    total: Tensor = information.sum(dim=-1).sum(dim=-1, dtype=torch.float64)
    return total / math.prod(information.shape[1:])


def _entropy(p: Tensor, sigmoid: bool) -> Tensor:
    """(N, C, h, w) -> (N, h, w)."""
    terms: Tensor = torch.special.entr(p) + torch.special.entr(1 - p) if sigmoid else torch.special.entr(p)
    return terms.sum(dim=1)


def dropped(features: Tensor, seeds: Tensor, *, share: float, draw: int) -> Tensor:
    """Features (N, D, h, w) with this share of their numbers set to 0 and the rest raised to keep the mean.

    seeds: (N,) int32 of the features' device, one for each image. draw: number of the draw. Which numbers fall is decided by
    seed, draw and place alone: the same on every device, in every version and whatever else is in the batch.
    """
    shape = features.shape[1:]
    places = torch.arange(math.prod(shape), dtype=torch.int32, device=features.device)
    turn = (draw * _GOLDEN + 2**31) % 2**32 - 2**31  # as a signed number of 32 bits
    drawn = _mixed(_mixed(seeds + turn)[:, None] ^ places)
    kept = drawn >= round(share * 2**32) - 2**31
    return features * (kept.view(-1, *shape) / (1 - share)).to(features.dtype)


def _mixed(x: Tensor) -> Tensor:
    """int32 -> int32, all bits depending on all bits: `lowbias32` of Wellons, "Prospecting for Hash Functions" (2018)."""
    x = x ^ (x >> 16 & 0xFFFF)
    x = x * 0x7FEB352D
    x = x ^ (x >> 15 & 0x1FFFF)
    x = x * (0x846CA68B - 2**32)
    return x ^ (x >> 16 & 0xFFFF)
