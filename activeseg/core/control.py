"""What the control arm tells: estimates, with intervals, from answers to images that were chosen and to some drawn at random.

Rounds are strata: each has its own model, so levels differ between them, and within one the control images are a simple
random sample. Everything here is about images that annotators answer: what they skip nobody knows.

Shares of corrected pixels are few and skewed; the usual t interval then covers too little (84 to 92 % instead of 95 with 10
to 20 draws of skewed shapes). Means therefore have the interval of Hall's transformation of the t statistic (Hall 1992, "On
the removal of skewness by transformation", J. R. Stat. Soc. B 54, the second of its two), with the quantile of Student's t.
The ratio of two means has limits recovered from theirs on the logarithmic scale (Zou and Donner 2008; Donner and Zou 2012
where the two belong to the same images).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

CONFIDENCE = 0.95
ENOUGH = 12
"""Answers below which no interval is given: with fewer, their own spread is not known."""
CELL = 6
"""Answers of neighbouring rounds that are put together to tell how they scatter (collapsed strata, Cochran 1977, section
5A.12): a round alone has one to three control images. What the model learned between those rounds then counts as
scatter, which makes intervals wider, never narrower."""

_NO_LIMIT = 100.0
"""Of a logarithm."""

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate with the ends of its interval. high: None where no upper limit can be told."""

    value: float
    low: float
    high: float | None

    def holds(self, value: float) -> bool:
        """Whether the interval holds a value."""
        return self.low <= value and not self.is_below(value)

    def is_below(self, value: float) -> bool:
        """Whether the whole interval is."""
        return self.high is not None and self.high < value


@dataclass(frozen=True, slots=True)
class Answer:
    """An image that came back from an annotator.

    round: number of the round that asked. chosen: whether the strategy chose it; else it was drawn at random.
    changed: share of pixels the annotator corrected, 0..1. percentile: place of its score among those of the round's
    candidates, 0 (surest) to 1; None where it had no rank. expected: share of pixels the model itself expected to be
    wrong, the mean of 1 - max p; None where it is not known.
    """

    round: int
    chosen: bool
    changed: float
    percentile: float | None = None
    expected: float | None = None


@dataclass(frozen=True, slots=True)
class Comparison:
    """Both arms over the rounds that have answers of both, each round with the weight of Mantel and Haenszel (1959).

    chosen, control: mean share of pixels corrected. ratio: of the first to the second; None where the control arm was not
    corrected at all. answers: (chosen, control) in those rounds.
    """

    chosen: Interval
    control: Interval
    ratio: Interval | None
    answers: tuple[int, int]
    rounds: int


def wilson(successes: int, trials: int, *, confidence: float = CONFIDENCE) -> Interval | None:
    """Score interval of a share (Wilson 1927); None without a trial."""
    return Interval(*_wilson(successes, trials, confidence)) if trials else None


def _wilson(successes: int, trials: int, confidence: float) -> tuple[float, float, float]:
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share, spread = successes / trials, z * z / trials
    middle = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(share * (1 - share) / trials + spread / trials / 4)
    return share, max(0.0, middle - half), min(1.0, middle + half)


def share_difference(first: tuple[int, int], second: tuple[int, int], *, confidence: float = CONFIDENCE) -> Interval | None:
    """First share minus second, each (successes, trials), by Newcombe (1998, method 10); None without a trial in either."""
    if not first[1] or not second[1]:
        return None
    (one, low, high), (two, under, over) = (_wilson(*counts, confidence) for counts in (first, second))
    value = one - two
    return Interval(value, value - math.hypot(one - low, over - two), value + math.hypot(high - one, two - under))


def comparable(answers: Sequence[Answer]) -> list[Answer]:
    """The answers of rounds that have some of both arms."""
    both = {one.round for one in answers if one.chosen} & {one.round for one in answers if not one.chosen}
    return [one for one in answers if one.round in both]


def compare_arms(answers: Sequence[Answer], *, confidence: float = CONFIDENCE) -> Comparison | None:
    """What chosen images are worth against random ones, in corrected pixels.

    None with fewer than ENOUGH answers of either arm in rounds that have both, or where no two answers of an arm differ.
    """
    used = sorted(comparable(answers), key=lambda one: one.round)
    rounds, where = np.unique([one.round for one in used], return_inverse=True)
    chosen = np.array([one.chosen for one in used], np.bool_)
    counts = np.stack([np.bincount(where[arm], minlength=len(rounds)) for arm in (chosen, ~chosen)]).astype(np.float64)
    if min(int(counts[0].sum()), int(counts[1].sum())) < ENOUGH:
        return None
    share = counts[0] * counts[1] / counts.sum(axis=0)
    weight = (share / share.sum())[where] / counts[np.where(chosen, 0, 1), where]
    changed = np.array([one.changed for one in used])
    chosen_mean, control_mean = (_mean(changed[arm], weight[arm], where[arm], confidence) for arm in (chosen, ~chosen))
    if chosen_mean is None or control_mean is None:
        return None
    ratio = _quotient(chosen_mean, control_mean)
    shares = _share(chosen_mean), _share(control_mean)
    return Comparison(*shares, ratio, (int(counts[0].sum()), int(counts[1].sum())), len(rounds))


def corrected_share(answers: Sequence[Answer], *, confidence: float = CONFIDENCE) -> Interval | None:
    """Mean share of pixels corrected, each image with the same weight; None with fewer than ENOUGH or no two that differ."""
    used = sorted(answers, key=lambda one: one.round)
    if len(used) < ENOUGH:
        return None
    changed = np.array([one.changed for one in used])
    mean = _mean(changed, np.full(len(used), 1 / len(used)), _numbers(used), confidence)
    return None if mean is None else _share(mean)


def corrected_to_expected(answers: Sequence[Answer], *, confidence: float = CONFIDENCE) -> Interval | None:
    """Corrected pixels for each the model expected to be wrong, over answers with `expected`: 1 where it is calibrated.

    None with fewer than ENOUGH of them, where no two corrections differ, or where either sum is 0.
    """
    used = sorted((one for one in answers if one.expected is not None), key=lambda one: one.round)
    if len(used) < ENOUGH:
        return None
    columns = [np.array([getattr(one, name) for one in used], np.float64) for name in ("changed", "expected")]
    weight, where = np.full(len(used), 1 / len(used)), _numbers(used)
    corrected, expected = (_mean(values, weight, where, confidence) for values in columns)
    if corrected is None:
        return None
    if expected is None:
        constant = float(columns[1][0])
        return _quotient(corrected, _Limits(constant, constant, constant))
    return _quotient(corrected, expected, together=float(np.corrcoef(columns)[0, 1]))


def _numbers(used: Sequence[Answer]) -> Ints:
    """Rounds of answers in their order, numbered from 0."""
    return np.unique([one.round for one in used], return_inverse=True)[1]


def rank_correlation(answers: Sequence[Answer], *, confidence: float = CONFIDENCE) -> Interval | None:
    """Spearman's correlation of `percentile` with `changed`, over answers that have a percentile.

    Percentiles are places among all candidates of a round, so rounds can be put together, also those with one control
    image. The interval is symmetric in Fisher's z, its standard error the jackknife's (Efron and Tibshirani 1993, ch. 11).
    None with fewer than ENOUGH answers, where either does not vary, or where the ranks agree altogether.
    """
    used = [one for one in answers if one.percentile is not None]
    if len(used) < ENOUGH:
        return None
    x, y = np.array([one.percentile for one in used], np.float64), np.array([one.changed for one in used])
    value = _spearman(x, y)
    if math.isnan(value):
        return None
    if abs(value) > 1 - 1e-9:
        return None
    n, everything = len(used), np.arange(len(used))
    without = np.array([_spearman(x[everything != one], y[everything != one]) for one in everything])
    z = np.arctanh(np.clip(without, -1 + 1e-12, 1 - 1e-12))
    error = math.sqrt((n - 1) / n * float(((z - z.mean()) ** 2).sum()))
    reach = NormalDist().inv_cdf((1 + confidence) / 2) * error
    return Interval(value, math.tanh(math.atanh(value) - reach), math.tanh(math.atanh(value) + reach))


def _spearman(x: Floats, y: Floats) -> float:
    ranks = [_mid_ranks(values) for values in (x, y)]
    first, second = (rank - rank.mean() for rank in ranks)
    scale = math.sqrt(float((first**2).sum()) * float((second**2).sum()))
    return float((first * second).sum()) / scale if scale > 0 else math.nan


def _mid_ranks(values: Floats) -> Floats:
    """Ranks from 1; equal values share the mean of theirs."""
    _, where, count = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(count)
    ranks: Floats = (last - (count - 1) / 2)[where]
    return ranks


@dataclass(frozen=True, slots=True)
class _Limits:
    value: float
    low: float
    high: float


def _mean(values: Floats, weight: Floats, where: Ints, confidence: float) -> _Limits | None:
    """Sum of weight values with Hall's interval; where: the round of each, ascending. None where nothing varies.

    With the sum's standard error s and skewness a, T = (sum - truth) / s becomes T + a T^2 / 3 + a^2 T^3 / 27 + a / 6, which
    is closer to Student's t; the limits are its inverse.
    """
    cell = _cells(where)
    size = np.bincount(cell).astype(np.float64)
    spread = weight * (values - (np.bincount(cell, values) / size)[cell])
    variance = float((np.bincount(cell, spread**2) * size / (size - 1)).sum())
    cube = float((np.bincount(cell, spread**3) * size**2 / ((size - 1) * (size - 2))).sum())
    value = float((weight * values).sum())
    if not variance > (1e-12 * value) ** 2:  # rounding is no variation
        return None
    error, skew = math.sqrt(variance), cube / variance**1.5
    reach = student_quantile((1 + confidence) / 2, len(values) - len(size))
    return _Limits(value, value - error * _hall_inverse(reach, skew), value - error * _hall_inverse(-reach, skew))


def _share(mean: _Limits) -> Interval:
    return Interval(mean.value, max(0.0, mean.low), min(1.0, mean.high))


def _hall_inverse(transformed: float, skew: float) -> float:
    if abs(skew) < 1e-6:
        return transformed
    return 3 / skew * (float(np.cbrt(1 + skew * (transformed - skew / 6))) - 1)


def _cells(where: Ints) -> Ints:
    """Rounds (K,) ascending -> numbers of groups of neighbouring rounds with at least CELL units each, if there are so many."""
    ends = np.flatnonzero(np.append(np.diff(where), 1)) + 1
    starts, begin = [0], 0
    for end in ends.tolist():
        if end - begin >= CELL and len(where) - end >= CELL:
            starts.append(end)
            begin = end
    return np.searchsorted(np.array(starts), np.arange(len(where)), side="right") - 1


def _quotient(top: _Limits, bottom: _Limits, *, together: float = 0.0) -> Interval | None:
    """Ratio of two means; None where either is 0. A lower limit that cannot be told is 0. together: their correlation."""
    if top.value <= 0 or bottom.value <= 0:
        return None
    value = top.value / bottom.value
    down = _joined(_log_ratio(top.value, top.low), _log_ratio(bottom.high, bottom.value), together)
    up = _joined(_log_ratio(top.high, top.value), _log_ratio(bottom.value, bottom.low), together)
    return Interval(value, value * math.exp(-down), value * math.exp(up) if up < _NO_LIMIT else None)


def _joined(one: float, other: float, together: float) -> float:
    if math.isinf(one) or math.isinf(other):
        return math.inf
    return math.sqrt(max(0.0, one**2 + other**2 - 2 * together * one * other))


def _log_ratio(larger: float, smaller: float) -> float:
    return math.log(larger / smaller) if smaller > 0 else math.inf


def student_quantile(share: float, degrees: float) -> float:
    """Quantile of Student's t, `degrees` > 0 and not necessarily whole, by Abramowitz and Stegun 26.7.5; to 1e-3 from 4 on."""
    z = NormalDist().inv_cdf(share)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / degrees ** (power + 1) for power, term in enumerate(terms))
