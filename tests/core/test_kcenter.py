"""Greedy k-center against the textbook's loop in numpy and float64."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from activeseg.core.kcenter import greedy_k_center
from activeseg.errors import ConfigError, NonFiniteScoreError

Array = npt.NDArray[np.float64]


def brute_force(features: Array, k: int, labeled: Array | None = None, start: int = 0) -> list[int]:
    """Every distance computed anew for every choice; the first of the farthest; stops where nothing is apart."""
    centers = [] if labeled is None else list(labeled)
    chosen: list[int] = []
    while len(chosen) < k:
        if not centers:
            index = start
        else:
            nearest = np.min([((features - center) ** 2).sum(axis=1) for center in centers], axis=0)
            index = int(np.flatnonzero(nearest == nearest.max())[0])
            if nearest[index] == 0:
                break
        chosen.append(index)
        centers.append(features[index])
    return chosen


def whole_numbers(rows: st.SearchStrategy[int]) -> st.SearchStrategy[Array]:
    """Small whole numbers: exact in float32, with many ties and duplicates."""

    def draw(shape: tuple[int, int], seed: int, span: int) -> Array:
        return np.random.default_rng(seed).integers(-span, span + 1, shape).astype(np.float64)

    return st.builds(draw, st.tuples(rows, st.just(5)), st.integers(0, 999), st.integers(0, 4))


@settings(max_examples=80, deadline=None)
@given(whole_numbers(st.integers(1, 60)), st.integers(1, 70), st.one_of(st.none(), whole_numbers(st.integers(0, 9))), st.data())
def test_it_chooses_what_brute_force_chooses_ties_and_duplicates_included(
    features: Array, k: int, labeled: Array | None, data: st.DataObject
) -> None:
    start = data.draw(st.integers(0, len(features) - 1))
    centers = None if labeled is None else torch.tensor(labeled, dtype=torch.float32)
    chosen = greedy_k_center(torch.tensor(features, dtype=torch.float32), k, labeled=centers, start=start)
    assert chosen == brute_force(features, k, labeled if labeled is not None and len(labeled) else None, start)


@pytest.mark.parametrize("offset", [0.0, 1000.0])
@pytest.mark.parametrize("kind", ["random", "clustered"])
def test_each_row_it_chooses_is_the_farthest_also_far_from_the_origin(kind: str, offset: float) -> None:
    rng = np.random.default_rng(3)
    features = rng.normal(size=(3000, 40))
    if kind == "clustered":
        features = rng.normal(size=(30, 40))[rng.integers(30, size=3000)] * 5 + features * 0.01
    # The product form of the distances would lose all digits here: squares of 4e7, distances of 0.01.
    rounded = torch.tensor(features + offset, dtype=torch.float32)
    exact = rounded.double().numpy()
    chosen = greedy_k_center(rounded, 150)
    nearest = np.full(len(exact), np.inf)
    for index in chosen:
        assert nearest[index] == np.inf or nearest[index] >= nearest.max() * (1 - 1e-5)
        nearest = np.minimum(nearest, ((exact - exact[index]) ** 2).sum(axis=1))
    assert len(set(chosen)) == 150


def test_labeled_rows_are_centers_from_the_beginning() -> None:
    features = torch.tensor([[0.0], [1.0], [9.0], [10.0]])
    assert greedy_k_center(features, 2, labeled=torch.tensor([[0.0]])) == [3, 1]
    assert greedy_k_center(features, 2, labeled=torch.zeros(0, 1), start=1) == [1, 3]


def test_it_stops_where_every_row_left_lies_on_a_center() -> None:
    features = torch.tensor([[0.0], [2.0], [2.0], [0.0], [5.0]])
    assert greedy_k_center(features, 5) == [0, 4, 1]
    assert greedy_k_center(features, 5, labeled=features) == []


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_every_precision_is_taken(dtype: torch.dtype) -> None:
    features = torch.tensor([[0.0, 0.0], [3.0, 4.0], [1.0, 1.0]], dtype=dtype)
    assert greedy_k_center(features, 3) == [0, 1, 2]


def test_lowered_precision_of_products_changes_nothing() -> None:
    features = torch.tensor(np.random.default_rng(1).normal(size=(400, 30)), dtype=torch.float32)
    expected = greedy_k_center(features, 60)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert greedy_k_center(features, 60) == expected
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e19])
def test_features_without_finite_distances_are_refused(value: float) -> None:
    features = torch.ones(3, 2)
    features[1, 1] = value
    with pytest.raises(NonFiniteScoreError, match="features"):
        greedy_k_center(features, 1)
    with pytest.raises(NonFiniteScoreError, match="labeled"):
        greedy_k_center(torch.ones(3, 2), 1, labeled=features)


@pytest.mark.parametrize(
    ("features", "options", "told"),
    [
        (torch.ones(3), {}, "features"),
        (torch.ones(3, 2, dtype=torch.int64), {}, "features"),
        (torch.ones(0, 2), {}, "at least one row"),
        (torch.ones(3, 2), {"k": 0}, "k: expected 1"),
        (torch.ones(3, 2), {"start": 3}, "start: expected 0 to 2"),
        (torch.ones(3, 2), {"labeled": torch.ones(1, 3)}, "labeled: expected rows of 2"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(features: torch.Tensor, options: dict[str, object], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        greedy_k_center(features, **{"k": 1} | options)  # type: ignore[arg-type]
