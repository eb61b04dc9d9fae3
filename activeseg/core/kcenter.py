"""Greedy k-center: points that lie as far as possible from each other and from what is labeled already."""

from __future__ import annotations

import torch
from torch import Tensor

from activeseg.errors import ConfigError, NonFiniteScoreError

_LEAST_AHEAD, _MOST_AHEAD = 2, 64
_ROWS = 2048


@torch.no_grad()
def greedy_k_center(features: Tensor, k: int, *, labeled: Tensor | None = None, start: int = 0) -> list[int]:
    """Rows of `features`, each the farthest from `labeled` and from the rows before it, in the order they were chosen.

    Sener & Savarese, Active Learning for Convolutional Neural Networks: A Core-Set Approach (2018), algorithm 1: with the
    rows returned as centers, the largest Euclidean distance of a row to its nearest center is at most twice the smallest
    that k centers allow.

    features: (N, D) floats on any device; half precision is computed in float32. labeled: (M, D), centers from the
    beginning, of the same device. k: at most this many, >= 1. start: the first row, where `labeled` is None or empty.

    Among rows equally far the lowest index is taken. Fewer than k come back where N is smaller, or where every row left
    coincides with a center. Distances are those of the differences, in the features' precision: rows that are equal have
    distance 0 and rows far from the origin lose nothing. Memory besides the features: a few hundred numbers a row at most.

    Raises ConfigError for shapes, k or start that do not fit, NonFiniteScoreError for features that are not finite or
    whose squared distances would not be.
    """
    features = _checked("features", features)
    centers = features[:0] if labeled is None else _checked("labeled", labeled).to(features.dtype)
    _check_arguments(features, centers, k, start)
    cover = Cover(features)
    cover.add_all(centers)
    chosen: list[int] = []
    ahead: dict[int, Tensor] = {}
    width = _LEAST_AHEAD
    while len(chosen) < k:
        index = int(cover.distances.argmax()) if chosen or len(centers) else start
        if cover.distances[index] == 0:
            break
        if index not in ahead:
            # One pass over the features serves several centers: those that are farthest now are probably next.
            likely = [index, *cover.distances.topk(min(width, len(features))).indices.tolist()]
            likely = list(dict.fromkeys(likely))[:width]
            ahead.clear()
            ahead = dict(zip(likely, cover.rough_distances(features[likely]), strict=True))
            width = _LEAST_AHEAD
        width = min(width + 2, _MOST_AHEAD)
        cover.add(features[index], ahead[index])
        chosen.append(index)
    return chosen


class Cover:
    """Squared distances (N,) of all rows to their nearest center; infinite before there is one."""

    def __init__(self, features: Tensor) -> None:
        self.features = features
        self.squares = _squares(features)
        self.distances = torch.full_like(self.squares, torch.inf)
        # Of a sum of D products, and of products of rounded factors where the user allows matrix units those.
        exact = torch.get_float32_matmul_precision() == "highest" or features.dtype == torch.float64
        self.error = (features.shape[1] + 4) * torch.finfo(features.dtype).eps + (0 if exact else 2**-7)

    def rough_distances(self, centers: Tensor) -> Tensor:
        """Lower bounds (B, N) of the squared distances to (B, D) centers.

        |x - c|^2 = |x|^2 - 2xc + |c|^2 is one product of matrices but loses all digits where x and c are close compared
        to their norms, so what rounding may have added is taken off.
        """
        norms = (centers * centers).sum(1, keepdim=True) + self.squares
        with torch.autocast(self.features.device.type, enabled=False):
            return norms.addmm_(centers, self.features.T, beta=1 - self.error, alpha=-2)

    def add_all(self, centers: Tensor) -> None:
        """Take in centers (M, D), a few at a time."""
        for begin in range(0, len(centers), _MOST_AHEAD):
            block = centers[begin : begin + _MOST_AHEAD]
            for center, bounds in zip(block, self.rough_distances(block), strict=True):
                self.add(center, bounds)

    def add(self, center: Tensor, bounds: Tensor) -> None:
        """Take in a center (D,). Differences are computed only for rows whose lower bound is below their distance."""
        for rows in torch.split((bounds < self.distances).nonzero().squeeze(1), _ROWS):
            differences = self.features[rows].sub_(center)
            self.distances[rows] = torch.minimum(self.distances[rows], differences.square_().sum(1))


def _checked(name: str, features: Tensor) -> Tensor:
    if features.ndim != 2 or not features.is_floating_point():
        raise ConfigError(f"{name}: expected floats (N, D); got {tuple(features.shape)} {features.dtype}")
    features = features if features.dtype == torch.float64 else features.float()
    # Squared distances reach four times the largest square.
    if features.numel() and not 4 * _squares(features).max().item() < torch.finfo(features.dtype).max:
        raise NonFiniteScoreError(f"{name}: not finite, or too large for squared distances in {features.dtype}")
    return features


def _squares(features: Tensor) -> Tensor:
    """Squared norms (N,), without a second copy of the features."""
    norms: Tensor = torch.linalg.vector_norm(features, dim=1)
    return norms.square_()


def _check_arguments(features: Tensor, centers: Tensor, k: int, start: int) -> None:
    if not len(features):
        raise ConfigError("features: expected at least one row; got none")
    if centers.shape[1] != features.shape[1]:
        raise ConfigError(f"labeled: expected rows of {features.shape[1]} numbers as in features; got {centers.shape[1]}")
    if k < 1:
        raise ConfigError(f"k: expected 1 or more; got {k}")
    if not 0 <= start < len(features):
        raise ConfigError(f"start: expected 0 to {len(features) - 1}; got {start}")
