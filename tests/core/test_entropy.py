from __future__ import annotations

import math
import random
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import special, stats

from activeseg.core.entropy import (
    GRID,
    SHARE_THRESHOLD,
    BatchStatistics,
    entropy_map,
    image_entropy,
    max_entropy,
    predicted_channels,
    reduce_logits,
)
from activeseg.core.labels import UNLABELED
from activeseg.errors import ConfigError

Array = npt.NDArray[Any]

logit_arrays = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 2), st.integers(2, 6), st.integers(1, 9), st.integers(1, 9)),
    elements=st.floats(-30, 30, width=32),
)


def random_logits(*shape: int, seed: int = 0, scale: float = 3.0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale


def reference(logits: torch.Tensor) -> Array:
    """(N, H, W) nats in float64, by scipy and no code of ours."""
    return np.asarray(stats.entropy(special.softmax(logits.double().numpy(), axis=1), axis=1))


def test_entropy_map_equals_scipy() -> None:
    logits = random_logits(3, 21, 13, 17)
    result = entropy_map(logits)
    assert result.shape == (3, 13, 17)
    assert result.dtype == torch.float32
    np.testing.assert_allclose(result.numpy(), reference(logits), atol=2e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_image_entropy_of_uniform_logits_is_area_times_log_classes(dtype: torch.dtype) -> None:
    logits = torch.zeros(1, 21, 512, 512, dtype=dtype)
    expected = 512 * 512 * math.log(21)
    assert expected > torch.finfo(torch.float16).max  # a sum in fp16 would be infinite
    result = image_entropy(logits)
    assert result.dtype in (torch.float32, torch.float64)
    assert result.item() == pytest.approx(expected, rel=1e-6)
    statistics = reduce_logits(logits)
    assert statistics.entropy_sum.item() == pytest.approx(expected, rel=1e-6)
    assert statistics.channel_entropy_sum.sum().item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_are_widened_before_the_softmax(dtype: torch.dtype) -> None:
    logits = random_logits(2, 12, 30, 30).to(dtype)
    np.testing.assert_allclose(entropy_map(logits).numpy(), reference(logits.float()), atol=2e-6)
    np.testing.assert_allclose(reduce_logits(logits).entropy_sum.numpy(), reference(logits.float()).sum((1, 2)), rtol=1e-6)


def test_two_class_entropy_has_its_closed_form() -> None:
    p = torch.linspace(0.001, 0.999, 101, dtype=torch.float64)
    logits = torch.stack([p.log(), (1 - p).log()])[None, :, None]
    expected = -(p * p.log() + (1 - p) * (1 - p).log())
    torch.testing.assert_close(entropy_map(logits)[0, 0], expected.float(), atol=1e-6, rtol=0)


def test_entropy_gradient_matches_finite_differences() -> None:
    logits = random_logits(1, 4, 2, 2, scale=1.0).double().requires_grad_()
    (gradient,) = torch.autograd.grad(image_entropy(logits).sum(), logits)
    step = 1e-3
    for index in [(0, 0, 0, 0), (0, 3, 1, 1)]:
        shift = torch.zeros_like(logits)
        shift[index] = step
        with torch.no_grad():
            numeric = (reference(logits + shift).sum() - reference(logits - shift).sum()) / (2 * step)
        assert gradient[index].item() == pytest.approx(numeric, abs=1e-5)


def test_impossible_classes_add_nothing() -> None:
    logits = torch.zeros(1, 4, 2, 2)
    logits[:, 2:] = -math.inf
    torch.testing.assert_close(entropy_map(logits), torch.full((1, 2, 2), math.log(2)))
    statistics = reduce_logits(logits)
    assert statistics.entropy_sum.item() == pytest.approx(4 * math.log(2))
    assert statistics.channel_entropy_sum[0, 2:].tolist() == [0, 0]
    assert statistics.margin_mean.item() == pytest.approx(1)


def test_certainty_has_no_entropy() -> None:
    logits = torch.full((1, 3, 5, 5), -200.0)
    logits[:, 1] = 200.0
    statistics = reduce_logits(logits)
    for name in ("entropy_sum", "entropy_share", "margin_mean", "least_confidence_mean"):
        assert getattr(statistics, name).item() == 0
    assert statistics.region_pixels.tolist() == [[0, 25, 0]]
    assert statistics.mean_confidence[0, 1].item() == 1


@pytest.mark.parametrize("poison", [math.nan, math.inf])
@pytest.mark.parametrize("sigmoid", [False, True])
def test_a_non_finite_logit_shows_in_every_score_of_its_image_only(poison: float, sigmoid: bool) -> None:
    logits = random_logits(2, 3, 8, 8)
    logits[1, 0, 3, 3] = poison
    statistics = reduce_logits(logits, sigmoid=sigmoid)
    for name in ("entropy_sum", "entropy_share", "margin_mean", "least_confidence_mean"):
        values = getattr(statistics, name)
        assert values.isnan().tolist() == [False, True], name
    assert math.isnan(image_entropy(logits, sigmoid=sigmoid)[1])


@pytest.mark.parametrize("sigmoid", [False, True])
def test_a_non_finite_logit_outside_the_valid_pixels_does_no_harm(sigmoid: bool) -> None:
    logits = random_logits(1, 3, 8, 8)
    valid = torch.ones(1, 8, 8, dtype=torch.bool)
    valid[0, 3, 3] = False
    poisoned = logits.clone()
    poisoned[0, :, 3, 3] = math.nan
    assert_same(reduce_logits(poisoned, valid, sigmoid=sigmoid), reduce_logits(logits, valid, sigmoid=sigmoid))
    assert image_entropy(poisoned, valid, sigmoid=sigmoid).item() == image_entropy(logits, valid, sigmoid=sigmoid).item()


def test_normalized_entropy_is_one_for_uniform_logits() -> None:
    torch.testing.assert_close(entropy_map(torch.zeros(1, 7, 2, 2), normalized=True), torch.ones(1, 2, 2))


def test_class_subset_sums_only_its_channels_of_the_full_softmax() -> None:
    logits = random_logits(2, 5, 6, 7)
    p = special.softmax(logits.double().numpy(), axis=1)
    expected = special.entr(p)[:, [3, 1]].sum(1)
    np.testing.assert_allclose(entropy_map(logits, classes=[3, 1]).numpy(), expected, atol=1e-6)
    np.testing.assert_allclose(entropy_map(logits, classes=(3, 1), normalized=True).numpy(), expected / math.log(5), atol=1e-6)
    torch.testing.assert_close(entropy_map(logits, classes=range(5)), entropy_map(logits))


def naive_statistics(logits: torch.Tensor, valid: torch.Tensor) -> dict[str, Array]:
    """Every statistic pixel by pixel in float64."""
    count, channels = logits.shape[:2]
    p = special.softmax(logits.double().numpy(), axis=1)
    names = ("entropy_sum", "entropy_share", "margin_mean", "least_confidence_mean", "valid_pixels")
    result: dict[str, Array] = {name: np.zeros(count) for name in names}
    result |= {n: np.zeros((count, channels)) for n in ("channel_entropy_sum", "region_pixels", "region_entropy_sum")}
    confidence = np.zeros((count, channels))
    for n, y, x in zip(*np.nonzero(valid.numpy()), strict=True):
        pixel = p[n, :, y, x]
        entropy = stats.entropy(pixel)
        second, first = np.sort(pixel)[-2:]
        winner = int(pixel.argmax())
        result["valid_pixels"][n] += 1
        result["entropy_sum"][n] += entropy
        result["entropy_share"][n] += entropy > SHARE_THRESHOLD * math.log(channels)
        result["margin_mean"][n] += 1 - (first - second)
        result["least_confidence_mean"][n] += 1 - first
        result["channel_entropy_sum"][n] += special.entr(pixel)
        result["region_pixels"][n, winner] += 1
        result["region_entropy_sum"][n, winner] += entropy
        confidence[n, winner] += first
    with np.errstate(invalid="ignore"):
        for name in ("entropy_share", "margin_mean", "least_confidence_mean"):
            result[name] /= result["valid_pixels"]
        result["mean_confidence"] = confidence / result["region_pixels"]
    return result


def test_reduction_equals_a_naive_loop_over_valid_pixels() -> None:
    logits = random_logits(3, 6, 11, 14, scale=1.5)
    logits[:, 5] -= 100  # a class predicted nowhere
    valid = torch.rand(3, 11, 14, generator=torch.Generator().manual_seed(1)) > 0.3
    statistics = reduce_logits(logits, valid)
    for name, expected in naive_statistics(logits, valid).items():
        np.testing.assert_allclose(getattr(statistics, name).numpy(), expected, rtol=1e-5, atol=1e-6, err_msg=name)
    assert statistics.mean_confidence[:, 5].isnan().all()
    expected_map = torch.where(valid, logits.argmax(1), UNLABELED)
    assert statistics.class_map.dtype == torch.uint8
    assert torch.equal(statistics.class_map.long(), expected_map)


def test_tied_winners_leave_no_margin() -> None:
    logits = torch.tensor([2.0, 2.0, 0.0]).reshape(1, 3, 1, 1)
    assert reduce_logits(logits).margin_mean.item() == pytest.approx(1)


@pytest.mark.parametrize("size", [(1, 1), (3, 9), (4, 4), (13, 17), (120, 161)])
@pytest.mark.parametrize("sigmoid", [False, True])
def test_grid_and_channels_add_up_to_the_entropy_sum(size: tuple[int, int], sigmoid: bool) -> None:
    logits = random_logits(2, 5, *size)
    statistics = reduce_logits(logits, sigmoid=sigmoid)
    assert statistics.grid.shape == (2, GRID * GRID)
    torch.testing.assert_close(statistics.grid.sum(1), statistics.entropy_sum)
    torch.testing.assert_close(statistics.channel_entropy_sum.sum(1), statistics.entropy_sum, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(statistics.entropy_sum, image_entropy(logits, sigmoid=sigmoid), rtol=1e-6, atol=1e-6)
    if not sigmoid:  # regions of classes that overlap need not cover the image, nor each pixel once
        torch.testing.assert_close(statistics.region_entropy_sum.sum(1), statistics.entropy_sum, rtol=1e-6, atol=1e-6)
        assert statistics.region_pixels.sum(1).tolist() == [size[0] * size[1]] * 2


def test_grid_is_row_major() -> None:
    logits = torch.full((1, 2, 4 * GRID, 4 * GRID), -50.0)
    logits[:, 0] = 50.0
    logits[0, :, 0:4, 4:8] = 0.0  # doubt in the first row, second column
    grid = reduce_logits(logits).grid[0]
    assert grid[1].item() == pytest.approx(16 * math.log(2))
    assert grid.sum().item() == pytest.approx(16 * math.log(2))


def test_an_image_without_valid_pixels_has_sum_zero_and_no_means() -> None:
    logits, valid = random_logits(2, 3, 4, 4), torch.ones(2, 4, 4, dtype=torch.bool)
    valid[0] = False
    statistics = reduce_logits(logits, valid)
    assert statistics.entropy_sum[0] == 0
    assert statistics.valid_pixels.tolist() == [0, 16]
    assert statistics.margin_mean.isnan().tolist() == [True, False]
    assert (statistics.class_map[0] == UNLABELED).all()


def test_sigmoid_statistics_are_those_of_the_joint_distribution() -> None:
    """Enumerate all 2^C labellings of each pixel as one categorical distribution."""
    logits = random_logits(1, 3, 4, 5, scale=1.0)
    p = special.expit(logits.double().numpy())[0]
    masks = np.array(np.meshgrid(*[[0, 1]] * 3)).reshape(3, -1).T
    joint = np.stack([np.prod(np.where(mask[:, None, None] == 1, p, 1 - p), axis=0) for mask in masks])
    ordered = np.sort(joint, axis=0)
    entropy = stats.entropy(joint, axis=0)

    statistics = reduce_logits(logits, sigmoid=True)
    assert statistics.entropy_sum.item() == pytest.approx(entropy.sum(), rel=1e-5)
    assert statistics.margin_mean.item() == pytest.approx((1 - ordered[-1] + ordered[-2]).mean(), rel=1e-5)
    assert statistics.least_confidence_mean.item() == pytest.approx((1 - ordered[-1]).mean(), rel=1e-5)
    assert statistics.entropy_share.item() == pytest.approx((entropy > SHARE_THRESHOLD * 3 * math.log(2)).mean())


def naive_overlap(logits: torch.Tensor, valid: torch.Tensor) -> dict[str, Array]:
    """The statistics of overlapping classes pixel by pixel in float64."""
    count, channels = logits.shape[:2]
    p = special.expit(logits.double().numpy())
    result: dict[str, Array] = {name: np.zeros(count) for name in ("entropy_sum", "entropy_share")}
    result |= {n: np.zeros((count, channels)) for n in ("channel_entropy_sum", "region_pixels", "region_entropy_sum")}
    confidence = np.zeros((count, channels))
    for n, y, x in zip(*np.nonzero(valid.numpy()), strict=True):
        binary = [stats.entropy([q, 1 - q]) for q in p[n, :, y, x]]
        result["entropy_sum"][n] += sum(binary)
        result["entropy_share"][n] += sum(binary) > SHARE_THRESHOLD * channels * math.log(2)
        for c, q in enumerate(p[n, :, y, x]):
            result["channel_entropy_sum"][n, c] += binary[c]
            if q > 0.5:
                result["region_pixels"][n, c] += 1
                result["region_entropy_sum"][n, c] += sum(binary)
                confidence[n, c] += q
    result["entropy_share"] /= valid.sum((1, 2)).numpy()
    with np.errstate(invalid="ignore"):
        result["mean_confidence"] = confidence / result["region_pixels"]
    return result


@pytest.mark.parametrize("channels", [1, 4])
def test_sigmoid_regions_equal_a_naive_loop_and_overlap(channels: int) -> None:
    logits = random_logits(2, channels, 9, 11, scale=1.5)
    logits[1, 0] -= 100  # predicted nowhere
    valid = torch.rand(2, 9, 11, generator=torch.Generator().manual_seed(1)) > 0.3
    statistics = reduce_logits(logits, valid, sigmoid=True)
    for name, expected in naive_overlap(logits, valid).items():
        np.testing.assert_allclose(getattr(statistics, name).numpy(), expected, rtol=1e-5, atol=1e-6, err_msg=name)
    assert statistics.region_pixels.dtype == torch.int64
    assert statistics.mean_confidence[1, 0].isnan()
    assert statistics.class_map.dtype == torch.bool
    assert torch.equal(statistics.class_map, (logits > 0) & valid[:, None])
    if channels > 1:
        members = statistics.class_map.sum(1)[valid]
        assert {0, 2} <= set(members.tolist())  # several classes, and none


def test_sigmoid_entropy_is_the_sum_of_binary_entropies() -> None:
    logits = random_logits(2, 5, 6, 7)
    p = special.expit(logits.double().numpy())
    binary = special.entr(p) + special.entr(1 - p)
    largest = 5 * math.log(2)
    assert max_entropy(5, sigmoid=True) == pytest.approx(largest)
    result = entropy_map(logits, sigmoid=True)
    assert result.dtype == torch.float32
    np.testing.assert_allclose(result.numpy(), binary.sum(1), atol=2e-6)
    np.testing.assert_allclose(image_entropy(logits, sigmoid=True).numpy(), binary.sum((1, 2, 3)), rtol=1e-6)
    np.testing.assert_allclose(entropy_map(logits, sigmoid=True, normalized=True).numpy(), binary.sum(1) / largest, atol=1e-6)
    chosen = entropy_map(logits, sigmoid=True, classes=[3, 1])
    np.testing.assert_allclose(chosen.numpy(), binary[:, [3, 1]].sum(1), atol=1e-6)


def test_the_largest_entropy_is_that_of_logits_that_say_nothing() -> None:
    nothing = torch.zeros(1, 6, 1, 1)
    assert entropy_map(nothing).item() == pytest.approx(max_entropy(6, sigmoid=False)) == pytest.approx(math.log(6))
    assert entropy_map(nothing, sigmoid=True).item() == pytest.approx(max_entropy(6, sigmoid=True))
    assert entropy_map(nothing, sigmoid=True, normalized=True).item() == pytest.approx(1)


def test_sigmoid_entropy_gradient_matches_finite_differences() -> None:
    logits = random_logits(1, 2, 2, 2, scale=1.0).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda z: image_entropy(z, sigmoid=True), logits, eps=1e-3, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_sigmoid_logits_are_widened(dtype: torch.dtype) -> None:
    logits = random_logits(1, 3, 30, 30).to(dtype)
    p = special.expit(logits.double().numpy())
    expected = (special.entr(p) + special.entr(1 - p)).sum((1, 2, 3))
    np.testing.assert_allclose(reduce_logits(logits, sigmoid=True).entropy_sum.numpy(), expected, rtol=1e-6)
    large = torch.zeros(1, 21, 512, 512, dtype=dtype)
    uniform = image_entropy(large, sigmoid=True).item()
    assert uniform == pytest.approx(512 * 512 * 21 * math.log(2), rel=1e-6)


def test_predicted_channels_are_those_of_the_reduction() -> None:
    logits = random_logits(2, 4, 5, 6)
    for sigmoid in (False, True):
        assert torch.equal(predicted_channels(logits, sigmoid=sigmoid), reduce_logits(logits, sigmoid=sigmoid).class_map)


def test_sigmoid_of_saturated_logits_stays_finite() -> None:
    logits = torch.tensor([-math.inf, -300.0, 300.0, 0.0]).reshape(1, 1, 2, 2)
    statistics = reduce_logits(logits, sigmoid=True)
    assert statistics.entropy_sum.item() == pytest.approx(math.log(2))
    assert statistics.margin_mean.item() == pytest.approx(0.25)


@settings(deadline=None, max_examples=40)
@given(logit_arrays)
def test_entropy_lies_between_zero_and_log_classes(array: Array) -> None:
    entropy = entropy_map(torch.from_numpy(array))
    assert ((entropy >= 0) & (entropy <= math.log(array.shape[1]) + 1e-5)).all()


@settings(deadline=None, max_examples=40)
@given(logit_arrays, st.floats(-20, 20))
def test_adding_a_constant_to_all_logits_changes_nothing(array: Array, shift: float) -> None:
    """Softmax normalises over channels at each pixel, and over no other axis."""
    logits = torch.from_numpy(array)
    per_pixel = shift * torch.arange(array[0, 0].size).reshape(array.shape[2:]) / array[0, 0].size
    torch.testing.assert_close(entropy_map(logits + per_pixel), entropy_map(logits), atol=2e-4, rtol=1e-3)


@pytest.mark.slow
@settings(deadline=None, max_examples=40)
@given(logit_arrays, st.randoms(use_true_random=False))
def test_order_of_channels_and_pixels_does_not_matter(array: Array, chance: random.Random) -> None:
    logits = torch.from_numpy(array)
    rng = np.random.default_rng(chance.randrange(2**32))
    channels, rows, columns = (torch.from_numpy(rng.permutation(size)) for size in array.shape[1:])
    before, after = reduce_logits(logits), reduce_logits(logits[:, channels][:, :, rows][:, :, :, columns])
    for name in ("entropy_sum", "margin_mean", "least_confidence_mean"):
        torch.testing.assert_close(getattr(after, name), getattr(before, name), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(after.channel_entropy_sum, before.channel_entropy_sum[:, channels], rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@settings(deadline=None, max_examples=40)
@given(logit_arrays)
def test_channel_sums_and_grid_add_up_for_any_logits(array: Array) -> None:
    statistics = reduce_logits(torch.from_numpy(array))
    torch.testing.assert_close(statistics.channel_entropy_sum.sum(1), statistics.entropy_sum, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(statistics.grid.sum(1), statistics.entropy_sum)
    expected = reference(torch.from_numpy(array)).sum((1, 2))
    np.testing.assert_allclose(statistics.entropy_sum.numpy(), expected, rtol=1e-5, atol=1e-4)


def test_an_image_scores_the_same_in_any_batch() -> None:
    logits = random_logits(4, 5, 9, 10)
    whole, alone = reduce_logits(logits), reduce_logits(logits[2:3])
    assert whole.entropy_sum[2].item() == pytest.approx(alone.entropy_sum.item(), rel=1e-12)
    assert torch.equal(whole.class_map[2], alone.class_map[0])


def test_reduction_leaves_its_input_alone() -> None:
    logits = random_logits(1, 3, 6, 6)
    before = logits.clone()
    reduce_logits(logits)
    reduce_logits(logits, sigmoid=True)
    assert torch.equal(logits, before)


@pytest.mark.parametrize(
    ("logits", "problem"),
    [
        (torch.zeros(3, 4, 4), "shape"),
        (torch.zeros(1, 3, 4, 4, dtype=torch.int64), "floating"),
        (torch.zeros(1, 1, 4, 4), "channels"),
        (torch.zeros(1, 256, 1, 1), "channels"),
    ],
)
def test_logits_of_another_form_are_refused(logits: torch.Tensor, problem: str) -> None:
    for function in (entropy_map, image_entropy, reduce_logits):
        with pytest.raises(ConfigError, match=problem):
            function(logits)


@pytest.mark.parametrize("classes", [[], [0, 0], [3], [-1]])
def test_unknown_or_repeated_channels_are_refused(classes: list[int]) -> None:
    with pytest.raises(ConfigError, match="classes"):
        entropy_map(torch.zeros(1, 3, 2, 2), classes=classes)


@pytest.mark.parametrize("valid", [torch.ones(1, 2, 3, dtype=torch.bool), torch.ones(1, 2, 2)])
def test_a_valid_mask_of_another_form_is_refused(valid: torch.Tensor) -> None:
    for function in (image_entropy, reduce_logits):
        with pytest.raises(ConfigError, match="valid"):
            function(torch.zeros(1, 3, 2, 2), valid)


def assert_same(left: BatchStatistics, right: BatchStatistics) -> None:
    for name in BatchStatistics.__slots__:
        torch.testing.assert_close(getattr(left, name), getattr(right, name), equal_nan=True)


def test_a_perfectly_sure_image_has_no_statistic_below_zero() -> None:
    # Softmax of some saturated float32 logits sums to a little more than 1.
    logits = torch.randn(2, 11, 64, 64, generator=torch.Generator().manual_seed(0)) * 40
    statistics = reduce_logits(logits)
    for name in ("entropy_sum", "entropy_share", "margin_mean", "least_confidence_mean", "channel_entropy_sum", "grid"):
        assert (getattr(statistics, name) >= 0).all(), name
