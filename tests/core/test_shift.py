"""The stability index is its formula, quiet where nothing changed, and loud where something did."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2

from activeseg.core.shift import BINS, LEVEL, PER_BIN, Reservoir, stability_index
from activeseg.errors import ConfigError

Draw = Callable[[np.random.Generator, int], np.ndarray]

POOLS: dict[str, Draw] = {
    "continuous": lambda rng, n: rng.gamma(2, 0.2, n),
    "ties": lambda rng, n: np.round(rng.gamma(2, 0.2, n), 1),
    "many zeros": lambda rng, n: np.where(rng.random(n) < 0.4, 0.0, rng.random(n)),
}


def by_hand(reference: list[float], sample: list[float]) -> float:
    """The index value by value, without numpy: bins are found by walking through them, shares by counting."""
    bins = max(2, min(BINS, min(len(reference), len(sample)) // PER_BIN))
    ordered = sorted(reference)
    quantiles = sorted({ordered[max(0, math.ceil(len(ordered) * k / bins) - 1)] for k in range(1, bins)})
    # (value, alone): a bin ends at each quantile, and one more just below those that are frequent.
    ends: list[tuple[float, bool]] = []
    for value in quantiles:
        if reference.count(value) * bins >= len(reference):
            ends.append((value, False))
        ends.append((value, True))

    def place(x: float) -> int:
        for number, (end, included) in enumerate(ends):
            if x < end or (included and x == end):
                return number
        return len(ends)

    total = 0.0
    m, n = len(reference), len(sample)
    for number in range(len(ends) + 1):
        a = sum(place(x) == number for x in reference)
        b = sum(place(x) == number for x in sample)
        if a + b:
            both = (a + b) / (m + n)
            p, q = (a + both) / (m + 1), (b + both) / (n + 1)
            total += (q - p) * math.log(q / p)
    return total


numbers = st.one_of(st.floats(-1e6, 1e6, allow_subnormal=False), st.integers(-3, 3).map(float))
samples = st.lists(numbers, min_size=1, max_size=60)


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(samples, samples)
def test_it_is_its_formula(reference: list[float], sample: list[float]) -> None:
    found = stability_index(reference, sample)
    assert found.index == pytest.approx(by_hand(reference, sample), rel=1e-9, abs=1e-12)
    assert found.index >= 0
    assert math.isfinite(found.index)


@settings(max_examples=100, deadline=None)
@given(samples, st.integers(2, 4), st.randoms())
def test_equal_shares_are_no_shift_in_whatever_number_and_order(sample: list[float], times: int, random: object) -> None:
    again = sample * times
    random.shuffle(again)  # type: ignore[attr-defined]
    assert stability_index(sample, again).index == pytest.approx(0, abs=1e-12)


@settings(max_examples=50, deadline=None)
@given(st.floats(0, 5), st.integers(1, 200), st.integers(1, 200))
def test_constant_samples_differ_only_in_their_value(value: float, first: int, second: int) -> None:
    same = stability_index([value] * first, [value] * second)
    assert (same.index, same.chance, same.bins) == (0, 0, 1)
    for other in (value + 1, value - 1, np.nextafter(value, np.inf)):
        moved = stability_index([value] * max(first, 50), [other] * max(second, 50))
        assert moved.exceeds(0.25)


def test_what_chance_makes_is_the_chi_squared_bound() -> None:
    rng = np.random.default_rng(0)
    found = stability_index(rng.random(1000), rng.random(400))
    assert found.bins == BINS
    assert found.chance == pytest.approx((1 / 1000 + 1 / 400) * chi2.ppf(1 - LEVEL, BINS - 1))


@pytest.mark.slow
@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize(("before", "new"), [(50, 50), (3000, 50), (3000, 100), (50, 3000)])
def test_equal_pools_seldom_raise_an_alarm(pool: str, before: int, new: int) -> None:
    """The rule of thumb alone would: of two samples of fifty, every fifth pair exceeds 0.25."""
    rng, draw = np.random.default_rng(7), POOLS[pool]
    alarms = sum(stability_index(draw(rng, before), draw(rng, new)).exceeds(0.25) for _ in range(300))
    assert alarms <= 6


@pytest.mark.parametrize(
    ("before", "new", "moved", "found"), [(3000, 50, 1.0, 0.9), (3000, 100, 0.75, 0.9), (50, 50, 1.5, 0.9)]
)
def test_pools_that_moved_are_found(before: int, new: int, moved: float, found: float) -> None:
    """moved: in standard deviations."""
    rng = np.random.default_rng(8)
    seen = [stability_index(rng.normal(size=before), rng.normal(moved, size=new)).exceeds(0.25) for _ in range(100)]
    assert np.mean(seen) >= found


@pytest.mark.parametrize("change", ["wider", "two groups"])
def test_a_change_that_leaves_the_median_is_found(change: str) -> None:
    rng = np.random.default_rng(9)
    after = (
        rng.normal(scale=2.5, size=500)
        if change == "wider"
        else np.concatenate([rng.normal(-3, 1, 250), rng.normal(3, 1, 250)])
    )
    assert stability_index(rng.normal(size=2000), after).exceeds(0.25)


@pytest.mark.parametrize(
    ("reference", "sample"), [([], [1.0]), ([1.0], []), ([1.0, math.nan], [1.0]), ([1.0], [math.inf]), ([[1.0]], [1.0])]
)
def test_what_cannot_be_compared_is_refused(reference: list[float], sample: list[float]) -> None:
    with pytest.raises(ConfigError, match="finite numbers, at least one"):
        stability_index(reference, sample)


def test_fewer_than_two_bins_are_refused() -> None:
    with pytest.raises(ConfigError, match="2 or more"):
        stability_index([1.0], [1.0], bins=1)


def test_a_short_stream_is_kept_whole_and_a_long_one_evenly() -> None:
    short = Reservoir(100, seed=1)
    short.extend(float(x) for x in range(100))
    assert short.values().tolist() == list(range(100))
    counts = np.zeros(40)
    for seed in range(2000):
        long = Reservoir(10, seed=seed)
        long.extend(map(float, range(25)))
        long.extend(map(float, range(25, 40)))
        assert long.seen == 40
        counts[long.values().astype(int)] += 1
    # Each of 40 values is kept with probability 1/4: 500 of 2000 times, with a standard deviation of 19.4.
    assert np.abs(counts - 500).max() < 5 * 19.4
