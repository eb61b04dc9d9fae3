"""The temperature with the smallest likelihood loss, found in one pass; masks stay as they are."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar

from activeseg.core import temperature as module
from activeseg.core.entropy import predicted_channels
from activeseg.core.labels import UNLABELED
from activeseg.core.temperature import HIGHEST, LOWEST, TemperatureFit, scaled, serving
from activeseg.errors import MaskError


def drawn(
    images: int, classes: int, *, sharpness: float, seed: int, sigmoid: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (N, C, 24, 32), too sure by `sharpness`, and truth drawn from the probabilities they ought to have meant."""
    rng = np.random.default_rng(seed)
    honest = rng.normal(0, 2, (images, classes, 24, 32))
    if sigmoid:
        truth = (rng.random(honest.shape) < 1 / (1 + np.exp(-honest))).astype(np.uint8)
    else:
        truth = (honest + rng.gumbel(size=honest.shape)).argmax(axis=1).astype(np.uint8)
    truth[..., -3:, :] = UNLABELED
    return torch.from_numpy(honest * sharpness).float(), torch.from_numpy(truth)


def loss(logits: torch.Tensor, truth: torch.Tensor, temperature: float, *, sigmoid: bool) -> float:
    """Mean NLL of all labelled decisions, by the formula, in float64."""
    z, y = logits.double().numpy() / temperature, truth.numpy()
    if sigmoid:
        kept = y != UNLABELED
        return float(np.logaddexp(0, np.where(y == 1, -z, z))[kept].mean())
    picked = np.take_along_axis(z, np.where(y == UNLABELED, 0, y)[:, None].astype(np.int64), axis=1)[:, 0]
    return float((np.log(np.exp(z).sum(axis=1)) - picked)[y != UNLABELED].mean())


@pytest.mark.parametrize("sigmoid", [False, True])
@pytest.mark.parametrize("sharpness", [0.5, 1.0, 1.7, 3.0])
def test_the_fit_is_the_minimum_that_a_general_optimiser_finds(
    sharpness: float, sigmoid: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "DECISIONS", 10**9)  # every pixel
    logits, truth = drawn(5, 4, sharpness=sharpness, seed=1, sigmoid=sigmoid)
    fit = TemperatureFit(sigmoid=sigmoid)
    for number in range(5):
        fit.update(logits[number], truth[number], seed=number)
    found = fit.fit()
    assert found is not None
    best = minimize_scalar(lambda t: loss(logits, truth, t, sigmoid=sigmoid), bounds=(LOWEST, HIGHEST), method="bounded")
    assert found.temperature == pytest.approx(best.x, abs=0.005)
    assert found.nll_before == pytest.approx(loss(logits, truth, 1.0, sigmoid=sigmoid), rel=1e-4)
    assert found.nll == pytest.approx(best.fun, rel=2e-3)
    assert found.decisions == int((truth != UNLABELED).sum())


@pytest.mark.parametrize("sigmoid", [False, True])
def test_drawn_pixels_give_nearly_what_all_give(sigmoid: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DECISIONS", 200)
    logits, truth = drawn(20, 3, sharpness=2.0, seed=2, sigmoid=sigmoid)
    fits = [TemperatureFit(sigmoid=sigmoid) for _ in range(2)]
    for fit in fits:
        for number in range(20):
            fit.update(logits[number], truth[number], seed=number)
    first, again = (fit.fit() for fit in fits)
    assert first == again, "the draw is seeded"
    assert first is not None
    assert first.temperature == pytest.approx(2.0, rel=0.1)
    assert first.decisions == 20 * 200


def test_no_mask_changes() -> None:
    logits, _ = drawn(2, 5, sharpness=1.0, seed=3)
    for sigmoid in (False, True):
        before = predicted_channels(logits, sigmoid=sigmoid)
        for temperature in (0.31, 1.0, 2.77):
            assert torch.equal(predicted_channels(scaled(logits, temperature), sigmoid=sigmoid), before)
    assert scaled(logits, 1.0) is logits


def test_what_no_temperature_suits_ends_at_the_edge_and_nothing_labelled_fits_nothing() -> None:
    sure = torch.zeros(2, 8, 8)
    sure[0] = 3.0
    right, wrong = torch.zeros(8, 8, dtype=torch.uint8), torch.ones(8, 8, dtype=torch.uint8)
    for truth, expected in ((right, LOWEST), (wrong, HIGHEST)):
        fit = TemperatureFit()
        fit.update(sure, truth, seed=0)
        found = fit.fit()
        assert found is not None
        assert found.temperature == pytest.approx(expected)
        assert found.nll <= found.nll_before
    empty = TemperatureFit()
    empty.update(sure, torch.full((8, 8), UNLABELED, dtype=torch.uint8), seed=0)
    assert empty.fit() is None
    infinite = TemperatureFit()
    infinite.update(torch.full((2, 4, 4), float("-inf")).index_fill_(0, torch.tensor([1]), 0.0), wrong[:4, :4], seed=0)
    found = infinite.fit()
    assert found is not None
    assert np.isfinite(found.nll)


def test_a_truth_that_does_not_fit_is_refused() -> None:
    with pytest.raises(MaskError, match="does not fit"):
        TemperatureFit().update(torch.zeros(2, 4, 4), torch.zeros(4, 5, dtype=torch.uint8), seed=0)


@pytest.mark.parametrize(
    ("stored", "mode", "expected"), [(None, "validation", 1.0), (1.236, "validation", 1.24), (1.236, "none", 1.0)]
)
def test_scores_are_made_with_two_decimals_of_what_is_stored(stored: float | None, mode: str, expected: float) -> None:
    assert serving(stored, mode) == expected
