from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from activeseg.core.calibration import BINS, Calibration
from activeseg.errors import ConfigError, MaskError
from tests.allocations import Allocations


def random_batch(seed: int, *shape: int, scale: float = 2.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (N, C, H, W) and a truth (N, H, W) that follows them loosely, with a strip that is not counted."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(*shape, generator=generator) * scale
    noisy = logits + torch.randn(*shape, generator=generator) * scale
    truth = noisy.argmax(1)
    truth[:, :2] = 255
    return logits, truth


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_figures_equal_those_of_torch_and_torchmetrics(seed: int) -> None:
    """cross_entropy and MulticlassCalibrationError are implementations that share nothing with ours."""
    logits, truth = random_batch(seed, 3, 6, 13, 17)
    calibration = Calibration()
    for one, true in zip(logits, truth, strict=True):  # streamed
        calibration.update(one[None], true[None])
    figures = calibration.compute()
    from torchmetrics.classification import MulticlassCalibrationError  # seconds to import

    error = MulticlassCalibrationError(6, n_bins=15, norm="l1", ignore_index=255)
    error.update(logits, truth)
    assert BINS == 15
    assert figures.ece == pytest.approx(error.compute().item(), rel=1e-5)
    expected = F.cross_entropy(logits.double(), truth, ignore_index=255)
    assert figures.nll == pytest.approx(expected.item(), rel=1e-6)


def test_the_reliability_table_equals_counting_by_hand() -> None:
    logits, truth = random_batch(5, 2, 4, 9, 11)
    calibration = Calibration(bins=7)
    calibration.update(logits, truth)
    p = torch.softmax(logits.double(), 1).numpy()
    counted = truth.numpy() != 255
    confidence, right = p.max(1)[counted], (p.argmax(1) == truth.numpy())[counted]
    bins = calibration.compute().bins
    assert [(one.low, one.high) for one in bins] == [pytest.approx((k / 7, (k + 1) / 7)) for k in range(7)]
    for one in bins:
        inside = (confidence > one.low) & (confidence <= one.high)
        assert one.count == inside.sum()
        if one.count:
            assert one.confidence == pytest.approx(confidence[inside].mean())
            assert one.accuracy == pytest.approx(right[inside].mean())
        else:
            assert math.isnan(one.confidence)
            assert math.isnan(one.accuracy)
    assert bins[0].count == 0  # four classes: never below a quarter


@pytest.mark.slow
def test_overlapping_classes_are_binary_decisions() -> None:
    logits = torch.randn(2, 3, 8, 9, generator=torch.Generator().manual_seed(0)) * 2
    truth = (torch.rand(2, 3, 8, 9, generator=torch.Generator().manual_seed(1)) < 0.4).to(torch.uint8)
    truth[:, :, 0] = 255
    calibration = Calibration(sigmoid=True)
    calibration.update(logits, truth)
    figures = calibration.compute()

    counted = truth != 255
    z, y = logits[counted].double(), truth[counted].double()
    assert figures.nll == pytest.approx(F.binary_cross_entropy_with_logits(z, y).item(), rel=1e-6)
    # As classes no and yes of one decision each, by an implementation that knows nothing of overlap.
    p = torch.sigmoid(z)
    from torchmetrics.classification import MulticlassCalibrationError  # seconds to import

    error = MulticlassCalibrationError(2, n_bins=15, norm="l1")
    error.update(torch.stack([1 - p, p], dim=1).float(), y.long())
    assert figures.ece == pytest.approx(error.compute().item(), rel=1e-5)
    assert sum(one.count for one in figures.bins) == counted.sum()
    assert not any(one.count for one in figures.bins if one.high <= 0.5)


@pytest.mark.filterwarnings("error::UserWarning")
@pytest.mark.parametrize("order", [(0, 1, 2, 3), (0, 2, 3, 1), (0, 1, 3, 2)], ids=["lines", "channels last", "columns"])
def test_overlapping_classes_are_counted_a_channel_at_a_time(order: tuple[int, ...]) -> None:
    """The decisions of all channels at once, with their places and weights, would take many times the logits."""
    generator = torch.Generator().manual_seed(4)
    logits = torch.randn(2, 16, 40, 64, generator=generator)
    logits = logits.permute(order).contiguous().permute(*np.argsort(order).tolist())  # as it lies in memory
    truth = (torch.rand(logits.shape, generator=generator) < 0.3).to(torch.uint8)
    calibration = Calibration(sigmoid=True)
    with Allocations() as made:
        calibration.update(logits, truth)
    one_channel = 8 * 40 * 64  # int64 or float64
    assert 0 < made.largest <= one_channel
    by_hand = F.binary_cross_entropy_with_logits(logits.double(), truth.double())
    assert calibration.compute().nll == pytest.approx(by_hand.item(), rel=1e-6)


def test_closed_forms() -> None:
    """Ten pixels, two classes, p = 0.8 for the first; right in six: NLL and |0.6 - 0.8| by hand."""
    logits = torch.tensor([math.log(0.8), math.log(0.2)]).reshape(1, 2, 1, 1).expand(1, 2, 2, 5)
    truth = torch.tensor([[[0, 0, 0, 0, 0], [0, 1, 1, 1, 1]]])
    calibration = Calibration()
    calibration.update(logits, truth)
    figures = calibration.compute()
    assert figures.nll == pytest.approx(-(0.6 * math.log(0.8) + 0.4 * math.log(0.2)))
    assert figures.ece == pytest.approx(0.2)
    [full] = [one for one in figures.bins if one.count]
    assert (full.count, full.confidence, full.accuracy) == (10, pytest.approx(0.8), pytest.approx(0.6))
    assert full.low < 0.8 <= full.high

    binary = Calibration(sigmoid=True)
    binary.update(torch.full((1, 1, 2, 5), math.log(0.8 / 0.2)), (truth == 0)[:, None].long())
    assert (binary.compute().nll, binary.compute().ece) == (pytest.approx(figures.nll), pytest.approx(0.2))


def test_uniform_logits_cost_log_classes_and_a_sure_right_network_nothing() -> None:
    truth = torch.zeros(1, 6, 6, dtype=torch.int64)
    nothing, sure = Calibration(), Calibration()
    nothing.update(torch.zeros(1, 5, 6, 6), truth)
    assert nothing.compute().nll == pytest.approx(math.log(5))
    logits = torch.full((1, 5, 6, 6), -200.0)
    logits[:, 0] = 200
    sure.update(logits, truth)
    assert (sure.compute().nll, sure.compute().ece) == (0, 0)
    assert sure.compute().bins[-1].count == 36  # confidence 1 belongs to the last bin


def test_half_precision_logits_are_widened() -> None:
    logits, truth = random_batch(1, 1, 5, 20, 20)
    half = Calibration()
    half.update(logits.half(), truth)
    expected = F.cross_entropy(logits.half().double(), truth, ignore_index=255)
    assert half.compute().nll == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("sigmoid", [False, True])
def test_a_logit_that_is_no_number_shows(sigmoid: bool) -> None:
    logits = torch.zeros(1, 2, 3, 3)
    logits[0, 0, 0, 0] = math.nan
    calibration = Calibration(sigmoid=sigmoid)
    calibration.update(logits, torch.zeros(1, 2, 3, 3).long() if sigmoid else torch.zeros(1, 3, 3).long())
    assert math.isnan(calibration.compute().nll)
    assert math.isnan(calibration.compute().ece)


def test_what_is_not_counted_changes_nothing() -> None:
    logits, truth = random_batch(2, 1, 4, 6, 6)
    clean, odd = Calibration(), Calibration()
    clean.update(logits, truth)
    spoiled = logits.clone()
    spoiled[:, :, :2] = math.nan
    odd.update(spoiled, truth)
    assert odd.compute().nll == clean.compute().nll
    empty = Calibration()
    empty.update(logits, torch.full_like(truth, 255))
    assert math.isnan(empty.compute().nll)
    assert math.isnan(empty.compute().ece)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**32 - 1), st.integers(1, 30), st.booleans())
def test_bins_hold_every_decision_and_their_accuracy_is_the_share_that_is_right(seed: int, bins: int, sigmoid: bool) -> None:
    rng = np.random.default_rng(seed)
    logits = torch.from_numpy(rng.normal(size=(1, 3, 4, 5)) * rng.uniform(0, 20)).float()
    truth = torch.from_numpy(rng.integers(0, 2 if sigmoid else 3, logits.shape if sigmoid else (1, 4, 5)))
    calibration = Calibration(sigmoid=sigmoid, bins=bins)
    calibration.update(logits, truth)
    figures = calibration.compute()
    right = (logits > 0) == (truth == 1) if sigmoid else logits.argmax(1) == truth
    full = [one for one in figures.bins if one.count]
    assert sum(one.count for one in full) == right.numel()
    assert sum(one.count * one.accuracy for one in full) == pytest.approx(int(right.sum()))
    assert all(one.low - 1e-6 <= one.confidence <= one.high + 1e-6 for one in full)
    assert 0 <= figures.ece <= 1
    assert figures.nll >= 0


@pytest.mark.parametrize(
    ("sigmoid", "truth"),
    [
        (False, torch.zeros(1, 3, 2, 2, dtype=torch.int64)),
        (True, torch.zeros(1, 2, 2, dtype=torch.int64)),
        (False, torch.zeros(1, 2, 2)),
        (False, torch.full((1, 2, 2), 3)),
        (False, torch.full((1, 2, 2), -1)),
        (True, torch.full((1, 3, 2, 2), 2)),
    ],
)
def test_a_truth_that_does_not_fit_is_refused(sigmoid: bool, truth: torch.Tensor) -> None:
    with pytest.raises(MaskError, match="truth"):
        Calibration(sigmoid=sigmoid).update(torch.zeros(1, 3, 2, 2), truth)


def test_no_bins_are_refused() -> None:
    with pytest.raises(ConfigError, match="bins"):
        Calibration(bins=0)
