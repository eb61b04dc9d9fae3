"""How alike the images of a query are, by where they lie in an embedding."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt


def mean_nearest_distance(vectors: npt.NDArray[Any], *, block: int = 256) -> float | None:
    """Mean over rows (N, D) of the Euclidean distance to the nearest other row; None with fewer than two.

    0 = each image has a twin. Memory: block * N distances at a time.
    """
    rows = vectors.astype(np.float64)
    if len(rows) < 2:
        return None
    nearest = np.empty(len(rows))
    for first in range(0, len(rows), block):
        part = rows[first : first + block]
        squares = (part * part).sum(1)[:, None] - 2 * part @ rows.T + (rows * rows).sum(1)
        squares[np.arange(len(part)), np.arange(first, first + len(part))] = np.inf
        # Which row is nearest is told well enough by the product; how far it is, by the difference.
        nearest[first : first + len(part)] = np.linalg.norm(part - rows[squares.argmin(1)], axis=1)
    return float(nearest.mean())
