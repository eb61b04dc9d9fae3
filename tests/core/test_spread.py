from __future__ import annotations

import numpy as np
import pytest

from activeseg.core.spread import mean_nearest_distance


def test_the_mean_distance_to_the_nearest_other_is_that_of_all_pairs() -> None:
    rows = np.random.default_rng(0).normal(size=(30, 5)).astype(np.float32) + 1000
    nearest = [min(np.linalg.norm(a.astype(float) - b) for j, b in enumerate(rows) if j != i) for i, a in enumerate(rows)]
    assert mean_nearest_distance(rows, block=7) == pytest.approx(np.mean(nearest), rel=1e-6)


def test_twins_are_no_distance_apart_and_one_image_has_no_nearest() -> None:
    assert mean_nearest_distance(np.ones((4, 3))) == 0
    assert mean_nearest_distance(np.ones((1, 3))) is None
