"""Reducing coarse logits gives the statistics of the enlarged ones, whichever way it is done."""

from __future__ import annotations

import logging
import math
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special, stats
from torch import Tensor
from torch.nn import functional as F

from activeseg.core import kernel, reduction, whole
from activeseg.core.enlarging import Enlargement
from activeseg.core.entropy import GRID, SHARE_THRESHOLD, BatchStatistics, reduce_logits
from activeseg.core.reduction import can_compile, reduce_coarse
from activeseg.core.sums import as_statistics, made_ready
from activeseg.core.whole import whole_sums
from activeseg.errors import ConfigError

Array = npt.NDArray[Any]

needs_compiler = pytest.mark.skipif(kernel.compiler() is None, reason="no C++ compiler here")
WAYS = ["strips", pytest.param("kernel", marks=needs_compiler), "whole"]
each_way = pytest.mark.parametrize("way", WAYS)
both_heads = pytest.mark.parametrize("sigmoid", [False, True])

FLOATS = ("entropy_sum", "entropy_share", "margin_mean", "least_confidence_mean", "grid", "channel_entropy_sum")


def reduced(way: str, logits: Tensor, enlargement: Enlargement, *, sigmoid: bool = False) -> BatchStatistics:
    """With the class map. 'whole' is what a GPU would do."""
    if way != "whole":
        return reduce_coarse(logits, enlargement, sigmoid=sigmoid, compiled=way == "kernel", class_map=True)
    coarse = made_ready(logits, enlargement, sigmoid=sigmoid)
    labels = coarse.empty_class_map()
    return as_statistics(whole_sums(coarse, labels, compiled=False), coarse, labels)


def random_logits(*shape: int, seed: int = 0, scale: float = 3.0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale


def line(before: int, after: int, align_corners: bool) -> Array:
    """(after, before) weights of linear interpolation, float64."""
    weights = np.zeros((after, before))
    for i in range(after):
        at = i * (before - 1) / max(after - 1, 1) if align_corners else (i + 0.5) * before / after - 0.5
        at = min(max(at, 0.0), before - 1.0)
        low = min(int(at), before - 1)
        weights[i, low] += 1 - (at - low)
        weights[i, min(low + 1, before - 1)] += at - low
    return weights


def enlarged(logits: Tensor, to: Enlargement) -> Array:
    down, across = (line(before, after, to.align_corners) for before, after in zip(logits.shape[-2:], to.size, strict=True))
    large: Array = down @ logits.double().numpy() @ across.T
    return large[..., : to.height, : to.width]


def outcomes(logits: Array, sigmoid: bool) -> tuple[Array, Array, Array]:
    """Entropy by channel (N, C, H, W), and p of the two likeliest outcomes (N, H, W)."""
    if not sigmoid:
        p = special.softmax(logits, axis=1)
        ordered = np.sort(p, axis=1)
        return special.entr(p), ordered[:, -1], ordered[:, -2]
    yes, no = special.expit(logits), special.expit(-logits)
    first = np.maximum(yes, no).prod(axis=1)
    return special.entr(yes) + special.entr(no), first, first * (np.minimum(yes, no) / np.maximum(yes, no)).max(axis=1)


def check(statistics: BatchStatistics, logits: Array, *, sigmoid: bool) -> None:
    """Against float64, pixel by pixel; what jumps (regions, the share) may differ where it is a matter of rounding."""
    channels, height, width = logits.shape[1:]
    by_channel, first, second = outcomes(logits, sigmoid)
    entropy = by_channel.sum(axis=1)

    def same(name: str, expected: Array, slack: Array | float = 0.0) -> None:
        found = getattr(statistics, name).numpy()
        assert found.shape == expected.shape, name
        assert (np.abs(found - expected) <= 1e-4 * np.abs(expected) + 1e-6 * height * width + slack).all(), name

    same("entropy_sum", entropy.sum((1, 2)))
    same("channel_entropy_sum", by_channel.sum((2, 3)))
    same("margin_mean", (1 - first + second).mean((1, 2)))
    same("least_confidence_mean", (1 - first).mean((1, 2)))
    cells = [cell.sum((1, 2)) for rows in np.array_split(entropy, GRID, axis=1) for cell in np.array_split(rows, GRID, axis=2)]
    same("grid", np.stack(cells, axis=1))
    threshold = SHARE_THRESHOLD * (channels * math.log(2) if sigmoid else math.log(channels))
    unsure = (np.abs(entropy - threshold) < 1e-4).mean((1, 2))
    same("entropy_share", (entropy > threshold).mean((1, 2)), unsure)
    assert (statistics.valid_pixels == height * width).all()

    rival = logits.max(axis=1, keepdims=True)
    winners = np.eye(channels, dtype=bool)[logits.argmax(axis=1)].transpose(0, 3, 1, 2)
    members = logits > 0 if sigmoid else winners
    near = np.abs(logits) < 1e-4 if sigmoid else (rival - logits < 1e-4) & ~(np.sort(rival - logits, 1)[:, 1:2] > 1e-4)
    assert statistics.class_map is not None
    labels = statistics.class_map.numpy()
    found = labels if sigmoid else np.eye(channels, dtype=bool)[labels].transpose(0, 3, 1, 2)
    assert ((found == members) | near).all()
    confidence = special.expit(logits) if sigmoid else special.softmax(logits, axis=1)
    assert (statistics.region_pixels.numpy() == found.sum((2, 3))).all()
    same("region_entropy_sum", (found * entropy[:, None]).sum((2, 3)))
    pixels = found.sum((2, 3))
    assert (statistics.mean_confidence.isnan().numpy() == (pixels == 0)).all()
    expected = (found * confidence).sum((2, 3))
    assert np.allclose(np.nan_to_num(statistics.mean_confidence.numpy()) * pixels, expected, rtol=1e-4)


@st.composite
def cases(draw: st.DrawFn) -> tuple[Tensor, Enlargement, bool]:
    sigmoid = draw(st.booleans())
    shape = (
        draw(st.integers(1, 2)),
        draw(st.integers(1 if sigmoid else 2, 6)),
        draw(st.integers(1, 6)),
        draw(st.integers(1, 6)),
    )
    size = tuple(draw(st.one_of(st.just(side), st.integers(side, 70))) for side in shape[2:])
    height, width = (draw(st.one_of(st.just(side), st.integers(1, side))) for side in size)
    logits = random_logits(*shape, seed=draw(st.integers(0, 2**30)), scale=draw(st.sampled_from([0.01, 1.0, 5.0, 30.0])))
    return logits, Enlargement((size[0], size[1]), draw(st.booleans()), height, width), sigmoid


@each_way
@settings(deadline=None, max_examples=60)
@given(cases())
def test_the_statistics_are_those_of_the_enlarged_logits(way: str, case: tuple[Tensor, Enlargement, bool]) -> None:
    logits, enlargement, sigmoid = case
    check(reduced(way, logits, enlargement, sigmoid=sigmoid), enlarged(logits, enlargement), sigmoid=sigmoid)


@each_way
@both_heads
@pytest.mark.parametrize(
    ("channels", "coarse", "size", "align_corners", "crop"),
    [
        (21, (13, 21), (104, 168), False, (104, 168)),  # stride 8
        (5, (5, 7), (129, 193), True, (121, 170)),  # stride 32, padded image
        (12, (20, 27), (100, 133), False, (97, 121)),  # no whole stride
        (150, (4, 5), (32, 40), False, (32, 40)),
        (4, (8, 32), (32, 128), False, (32, 128)),  # a width of which the kernel takes one whole piece
        (3, (96, 64), (96, 64), False, (90, 61)),  # full size already
    ],
)
def test_images_give_their_numbers(
    way: str,
    sigmoid: bool,
    channels: int,
    coarse: tuple[int, int],
    size: tuple[int, int],
    align_corners: bool,
    crop: tuple[int, int],
) -> None:
    logits, enlargement = random_logits(2, channels, *coarse), Enlargement(size, align_corners, *crop)
    statistics = reduced(way, logits, enlargement, sigmoid=sigmoid)
    check(statistics, enlarged(logits, enlargement), sigmoid=sigmoid)
    parity = reduce_logits(enlargement.apply(logits), sigmoid=sigmoid)
    for name in FLOATS:
        expected = getattr(parity, name)
        torch.testing.assert_close(getattr(statistics, name), expected, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("size", [(5, 7), (5, 9), (40, 56), (33, 50)])
def test_enlarging_is_torchs_interpolation_and_a_crop(align_corners: bool, size: tuple[int, int]) -> None:
    logits = random_logits(1, 3, 5, 7)
    large = Enlargement(size, align_corners, size[0] - 1, size[1] - 2).apply(logits)
    expected = F.interpolate(logits, size=size, mode="bilinear", align_corners=align_corners)[..., :-1, :-2]
    assert torch.equal(large, expected)
    np.testing.assert_allclose(large, enlarged(logits, Enlargement(size, align_corners, *large.shape[-2:])), atol=1e-5)


TWICE = Enlargement((16, 16), False, 16, 16)


@each_way
@both_heads
@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_a_logit_that_is_none_fails_its_image_only(way: str, sigmoid: bool, poison: float) -> None:
    logits = random_logits(2, 3, 8, 8)
    logits[1, 0, 3, 3] = poison
    statistics = reduced(way, logits, TWICE, sigmoid=sigmoid)
    for name in FLOATS:
        broken = getattr(statistics, name).reshape(2, -1).isnan()
        assert broken.any(dim=1).tolist() == broken.all(dim=1).tolist() == [False, True], name
    assert reduced(way, logits[:1], TWICE, sigmoid=sigmoid).entropy_sum == statistics.entropy_sum[0]


@each_way
def test_a_logit_in_the_padding_that_no_pixel_depends_on_does_no_harm(way: str) -> None:
    logits = random_logits(1, 3, 8, 8)
    cropped = Enlargement((16, 16), False, 9, 9)
    expected = reduced(way, logits, cropped).entropy_sum
    logits[..., 6:], logits[..., 6:, :] = math.nan, math.inf
    assert reduced(way, logits, cropped).entropy_sum == expected


@each_way
@both_heads
def test_an_impossible_class_takes_no_part(way: str, sigmoid: bool) -> None:
    logits = random_logits(1, 4, 8, 8)
    logits[:, 3] = -math.inf
    statistics, without = (reduced(way, some, TWICE, sigmoid=sigmoid) for some in (logits, logits[:, :3]))
    assert statistics.entropy_sum.item() == pytest.approx(without.entropy_sum.item(), rel=1e-6)
    assert statistics.channel_entropy_sum[0, 3] == 0
    assert statistics.margin_mean.item() == pytest.approx(without.margin_mean.item(), rel=1e-6)


@each_way
def test_where_no_class_is_possible_there_is_no_score_but_every_class_may_be_absent(way: str) -> None:
    logits = random_logits(1, 3, 8, 8)
    logits[..., 2, 5] = -math.inf
    assert reduced(way, logits, TWICE).entropy_sum.isnan()
    assert reduced(way, logits, TWICE, sigmoid=True).entropy_sum.isfinite()


@each_way
@both_heads
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_logits_beyond_all_bounds_stay_finite(way: str, sigmoid: bool, dtype: torch.dtype) -> None:
    logits = torch.tensor([3e38, -3e38, 88.0, -104.0, 1e5, 0.0], dtype=dtype).repeat(6)[:32].reshape(1, 2, 4, 4)
    statistics = reduced(way, logits, TWICE, sigmoid=sigmoid)
    for name in FLOATS:
        values = getattr(statistics, name)
        assert (values.isfinite() & (values >= 0)).all(), name


@each_way
def test_certainty_has_no_entropy(way: str) -> None:
    logits = torch.full((1, 3, 8, 8), -200.0)
    logits[:, 1] = 200.0
    statistics = reduced(way, logits, TWICE)
    assert [getattr(statistics, name).abs().sum().item() for name in FLOATS] == [0] * len(FLOATS)
    assert statistics.region_pixels.tolist() == [[0, 256, 0]]
    assert statistics.mean_confidence[0, 1] == 1


@each_way
@both_heads
def test_small_doubts_keep_their_digits(way: str, sigmoid: bool) -> None:
    """A p of 1 - 1e-8 is 1 in float32."""
    away = 18 if sigmoid else 9
    logits = random_logits(1, 4, 8, 8, scale=0.5) - away
    logits[:, 2] += 2 * away
    by_channel, first, _ = outcomes(enlarged(logits, TWICE), sigmoid)
    statistics = reduced(way, logits, TWICE, sigmoid=sigmoid)
    np.testing.assert_allclose(statistics.entropy_sum, by_channel.sum((1, 2, 3)), rtol=1e-4)
    np.testing.assert_allclose(statistics.channel_entropy_sum, by_channel.sum((2, 3)), rtol=1e-4)
    np.testing.assert_allclose(statistics.least_confidence_mean, (1 - first).mean((1, 2)), rtol=1e-4)
    assert statistics.margin_mean > statistics.least_confidence_mean > 0


@each_way
def test_of_equal_logits_the_first_wins_and_pixels_count_once(way: str) -> None:
    logits = torch.zeros(1, 5, 8, 8)
    logits[0, 3, :4] = 1.0
    logits[0, 4, :4] = 1.0
    statistics = reduced(way, logits, Enlargement((8, 8), False, 8, 8))
    assert statistics.region_pixels.tolist() == [[32, 0, 0, 32, 0]]
    assert statistics.margin_mean.item() == pytest.approx(1)
    assert statistics.channel_entropy_sum.sum().item() == pytest.approx(statistics.entropy_sum.item(), rel=1e-6)


@each_way
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_widened_before_anything_else(way: str, dtype: torch.dtype) -> None:
    logits = random_logits(1, 7, 8, 8).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        statistics = reduced(way, logits, TWICE)
    wide = reduced(way, logits.float(), TWICE)
    for name in (*FLOATS, "region_entropy_sum"):
        assert torch.equal(getattr(statistics, name), getattr(wide, name)), name


@each_way
def test_logits_rounded_to_bfloat16_rank_the_images_the_same(way: str) -> None:
    scales = torch.linspace(0.5, 8, 60)[:, None, None, None]
    logits = random_logits(60, 6, 6, 8, scale=1.0) * scales
    large = Enlargement((48, 64), False, 48, 64)
    exact, rounded = (reduced(way, some, large).entropy_sum for some in (logits, logits.bfloat16()))
    assert not torch.equal(exact, rounded)
    assert stats.spearmanr(exact, rounded).statistic >= 0.999


@each_way
@both_heads
def test_the_memory_order_and_the_other_images_of_a_batch_change_nothing(way: str, sigmoid: bool) -> None:
    logits = random_logits(3, 5, 9, 7)
    large = Enlargement((70, 50), False, 66, 50)
    together = reduced(way, logits.contiguous(memory_format=torch.channels_last), large, sigmoid=sigmoid)
    alone = reduced(way, logits[1:2], large, sigmoid=sigmoid)
    for name in (*FLOATS, "region_pixels", "class_map"):
        torch.testing.assert_close(getattr(together, name)[1], getattr(alone, name)[0], rtol=1e-12, atol=0)


@each_way
def test_the_logits_stay_as_they_are(way: str) -> None:
    logits = random_logits(1, 3, 6, 6)
    before = logits.clone()
    for large in (TWICE, Enlargement((6, 6), False, 6, 6)):
        reduced(way, logits, large)
        reduced(way, logits, large, sigmoid=True)
    assert torch.equal(logits, before)


def test_less_than_a_kilobyte_leaves_the_device_unless_the_class_map_is_asked_for() -> None:
    statistics = reduce_coarse(random_logits(1, 21, 8, 8), TWICE)
    assert statistics.class_map is None
    values = [getattr(statistics, name) for name in BatchStatistics.__slots__ if name != "class_map"]
    assert sum(value.nbytes for value in values) < 1000


@pytest.mark.parametrize("logits", [torch.zeros(3, 4, 4), torch.zeros(1, 3, 4, 4, dtype=torch.int64), torch.zeros(1, 1, 4, 4)])
def test_logits_of_another_form_are_refused(logits: Tensor) -> None:
    with pytest.raises(ConfigError, match="logits"):
        reduce_coarse(logits, TWICE)


@pytest.mark.parametrize("way", WAYS[:2])
def test_threads_do_not_change_a_bit_nor_are_they_changed(way: str) -> None:
    logits, large = random_logits(2, 7, 20, 30), Enlargement((160, 240), False, 160, 240)
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 3):
            torch.set_num_threads(threads)
            with torch.inference_mode():
                found.append(reduced(way, logits, large))
            assert torch.get_num_threads() == threads
            with ThreadPoolExecutor(1) as pool:
                assert pool.submit(torch.get_num_threads).result() == threads
    finally:
        torch.set_num_threads(before)
    for name in (*FLOATS, "class_map"):
        assert torch.equal(*(getattr(one, name) for one in found)), name


@pytest.fixture
def afresh(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """As in a new process, in which nothing was built yet."""
    monkeypatch.setattr(reduction, "_hindrances", [])
    monkeypatch.setattr(whole, "_refused", set())
    kernel._program.cache_clear()
    return monkeypatch


def test_without_a_compiler_the_numbers_are_the_same_and_the_reason_is_given(
    afresh: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    afresh.setenv("PATH", str(tmp_path))
    afresh.delenv("CXX", raising=False)
    assert "install g++" in (can_compile() or "")
    logits = random_logits(1, 3, 8, 8)
    assert reduced("kernel", logits, TWICE).entropy_sum == reduced("strips", logits, TWICE).entropy_sum


@pytest.mark.parametrize("complaint", ["cannot find cc1plus", ""])
def test_a_build_that_fails_is_told_once_and_breaks_nothing(
    afresh: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture, complaint: str
) -> None:
    broken = tmp_path / "g++"
    broken.write_text(f'#!/bin/sh\n[ "$1" = --version ] && exit 0\necho "{complaint}" >&2\nexit {1 if complaint else 0}\n')
    broken.chmod(broken.stat().st_mode | stat.S_IXUSR)
    afresh.setenv("CXX", str(broken))
    assert can_compile() is None
    logits = random_logits(1, 3, 8, 8)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert reduced("kernel", logits, TWICE).entropy_sum == reduced("strips", logits, TWICE).entropy_sum
    assert len(caplog.records) == 1
    assert complaint in (can_compile() or "nothing")


@pytest.mark.slow
@needs_compiler
def test_what_was_built_serves_the_next_process(afresh: pytest.MonkeyPatch, tmp_path: Path) -> None:
    afresh.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    logits = random_logits(1, 3, 8, 8)
    first = reduced("kernel", logits, TWICE)
    [built] = (tmp_path / "cache").iterdir()
    made = built.stat().st_mtime_ns
    kernel._program.cache_clear()
    assert reduced("kernel", logits, TWICE).entropy_sum == first.entropy_sum
    assert built.stat().st_mtime_ns == made
    assert can_compile() is None


def test_a_gpu_reduction_that_does_not_compile_goes_on_without(
    afresh: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails() -> None:
        raise RuntimeError("no triton")

    afresh.setattr(whole, "_fused", fails)
    coarse = made_ready(random_logits(1, 3, 8, 8), TWICE, sigmoid=False)
    with caplog.at_level(logging.WARNING):
        found = [whole_sums(coarse, None, compiled=compiled).columns for compiled in (True, True, False)]
    assert torch.equal(found[0], found[2])
    assert [record.message for record in caplog.records] == ["the reduction is not compiled: no triton"]


@pytest.mark.slow
@needs_compiler
def test_what_a_gpu_would_run_gives_the_same_numbers_compiled() -> None:
    logits, large = random_logits(2, 5, 9, 13), Enlargement((72, 104), False, 70, 101)
    coarse = made_ready(logits, large, sigmoid=False)
    labels = coarse.empty_class_map()
    sums = whole_sums(coarse, labels, compiled=True)
    assert whole._refused == set()
    check(as_statistics(sums, coarse, labels), enlarged(logits, large), sigmoid=False)
