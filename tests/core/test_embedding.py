"""Embeddings keep distances, in few bytes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from activeseg.core.embedding import DIMENSIONS, PACKED_BYTES, pack, pack_rows, project, shorten, unpack
from activeseg.errors import ConfigError, NonFiniteScoreError


def features(count: int, dimensions: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, dimensions, generator=torch.Generator().manual_seed(seed)).relu()


def distances(rows: torch.Tensor) -> np.ndarray:
    wide = rows.double().numpy()
    return np.array([[np.sqrt(((one - other) ** 2).sum()) for other in wide] for one in wide])


@pytest.mark.parametrize("dimensions", [129, 1280, 4096])
def test_projected_distances_are_nearly_those_of_the_features(dimensions: int) -> None:
    rows = features(30, dimensions)
    expected = distances(torch.nn.functional.normalize(rows.double(), dim=1))
    apart = ~np.eye(30, dtype=bool)
    ratio = distances(project(rows))[apart] / expected[apart]
    # One part in sqrt(2 * 128) is one standard deviation.
    assert abs(ratio.mean() - 1) < 0.05
    assert ratio.std() < 1.3 / np.sqrt(2 * DIMENSIONS)


@pytest.mark.parametrize("dimensions", [1, 5, 128])
def test_few_numbers_are_kept_as_they_are(dimensions: int) -> None:
    rows = features(4, dimensions) + 0.1
    found = project(rows)
    assert found.shape == (4, DIMENSIONS)
    assert torch.allclose(found[:, :dimensions], rows / rows.norm(dim=1, keepdim=True))
    assert not found[:, dimensions:].any()


def test_a_projection_depends_on_the_features_direction_alone_and_a_shortening_on_their_length_too() -> None:
    rows = features(3, 300)
    assert torch.allclose(project(10 * rows), project(rows), atol=1e-6)
    assert torch.allclose(shorten(10 * rows), 10 * shorten(rows), rtol=1e-4, atol=1e-4)
    # The very numbers: embeddings written by another version must stay comparable.
    assert shorten(torch.eye(200))[:2, :2].flatten().tolist() == pytest.approx(
        (np.random.RandomState(200).standard_normal((200, 128))[:2, :2] / np.sqrt(128)).ravel().tolist(), rel=1e-6
    )


@pytest.mark.parametrize("dimensions", [129, 960, 1280])
def test_a_row_has_the_same_bits_in_a_batch_of_any_size(dimensions: int) -> None:
    """A run that was killed and goes on has batches of other sizes, and ends with the very rows."""
    rows = features(16, dimensions)
    together = shorten(rows)
    for count in (1, 2, 3, 5, 7, 8):
        assert torch.equal(shorten(rows[3 : 3 + count]), together[3 : 3 + count])


def test_no_features_at_all_have_no_direction_and_no_distance() -> None:
    assert not project(torch.zeros(2, 300)).any()
    assert not unpack([pack(np.zeros(DIMENSIONS))]).any()


def test_a_packed_number_is_off_by_half_a_step_at_most() -> None:
    rows = np.random.default_rng(0).normal(size=(50, DIMENSIONS)) * np.logspace(-30, 30, 50)[:, None]
    packed = pack_rows(rows)
    assert {len(one) for one in packed} == {PACKED_BYTES} == {132}
    bound = np.abs(rows).max(axis=1, keepdims=True) / 127 / 2
    assert (np.abs(unpack(packed) - rows) <= bound * 1.0001).all()
    assert pack(rows[3]) == packed[3]


@pytest.mark.parametrize("tiny", [1e-45, 1e-40, 1e-37])
def test_numbers_too_small_to_divide_by_stay_small_and_finite(tiny: float) -> None:
    found = unpack([pack(np.full(DIMENSIONS, tiny))])
    assert np.isfinite(found).all()
    assert (np.abs(found) <= 2 * tiny).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e39])
def test_what_is_not_finite_is_never_packed(value: float) -> None:
    with pytest.raises(NonFiniteScoreError, match="finite"):
        pack(np.full(DIMENSIONS, value))


def test_other_shapes_and_lengths_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"\(N, 128\)"):
        pack(np.zeros(5))
    with pytest.raises(ConfigError, match="132 bytes"):
        unpack([bytes(132), bytes(131)])
    with pytest.raises(ConfigError, match=r"\(N, D\)"):
        project(torch.zeros(3))
    assert unpack([]).shape == (0, DIMENSIONS)
