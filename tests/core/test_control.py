"""What the control arm's intervals promise: on simulated pools, whose truth is known, they hold it 95 times in 100."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pytest
from scipy import stats

from activeseg.core.control import (
    ENOUGH,
    Answer,
    Interval,
    comparable,
    compare_arms,
    corrected_share,
    corrected_to_expected,
    rank_correlation,
    share_difference,
    student_quantile,
    wilson,
)

RUNS = 500
POOL = 300
CHOSEN = 11
EXPECTED = 0.8
"""What the simulated model expects of the errors it makes."""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class World:
    """A pool whose truth is known, over several rounds with a better model each.

    controls: control images of the rounds, in turn. slope: how much more there is to correct where the score is high.
    decline: of the level, from round to round. shape: of the Beta distribution of corrections (0.7: skewness of about 2).
    unchanged: share of images that need no correction. skipped: chance to be skipped, of the surest and of the least sure.
    """

    rounds: int
    controls: tuple[int, ...]
    slope: float = 1.2
    decline: float = 0.1
    shape: float = 0.7
    unchanged: float = 0.0
    skipped: tuple[float, float] = (0.05, 0.25)

    @cached_property
    def percentile(self) -> Floats:
        return 1 - np.arange(POOL) / (POOL - 1)

    @cached_property
    def answered(self) -> Floats:
        low, high = self.skipped
        return 1 - (low + (high - low) * self.percentile)

    @cached_property
    def mean(self) -> Floats:
        """(rounds, POOL): expected share of corrected pixels."""
        level = 0.12 * np.exp(-self.decline * np.arange(self.rounds))[:, None]
        return np.asarray(level * (1 - self.slope / 2 + self.slope * self.percentile))

    def truth(self, arm: slice) -> Floats:
        """(rounds,): mean over the answered images of these ranks."""
        weight = self.answered[arm]
        return np.asarray((self.mean[:, arm] * weight).sum(axis=1) / weight.sum())

    def corrected(self, mean: Floats, rng: np.random.Generator) -> Floats:
        needed = mean / (1 - self.unchanged)
        shares = rng.beta(self.shape, self.shape * (1 - needed) / needed)
        return np.where(rng.random(mean.shape) < self.unchanged, 0.0, shares)

    def answers(self, rng: np.random.Generator) -> list[Answer]:
        found: list[Answer] = []
        for number in range(self.rounds):
            control = rng.choice(POOL, self.controls[number % len(self.controls)], replace=False)
            top = np.setdiff1d(np.arange(CHOSEN + len(control)), control)[:CHOSEN]
            for ranks, chosen in ((top, True), (control, False)):
                kept = ranks[rng.random(len(ranks)) < self.answered[ranks]]
                mean = self.mean[number, kept]
                rows = zip(self.corrected(mean, rng), self.percentile[kept], EXPECTED * mean, strict=True)
                found += [Answer(number + 1, chosen, *map(float, row)) for row in rows]
        return found

    def correlation(self) -> float:
        """Spearman's between percentile and correction among answered images of all rounds."""
        rng = np.random.default_rng(99)
        controls = np.resize(self.controls, self.rounds).astype(float)
        rows = rng.choice(self.rounds, 200_000, p=controls / controls.sum())
        ranks = rng.choice(POOL, len(rows), p=self.answered / self.answered.sum())
        return float(stats.spearmanr(self.percentile[ranks], self.corrected(self.mean[rows, ranks], rng)).statistic)


def counts(answers: Sequence[Answer], rounds: int, *, chosen: bool) -> Floats:
    return np.bincount([one.round - 1 for one in answers if one.chosen is chosen], minlength=rounds).astype(float)


def truths(world: World, answers: Sequence[Answer]) -> tuple[float, float, float]:
    """Chosen, control and their ratio, with the weights the answers give the rounds."""
    both = comparable(answers)
    chosen, control = (counts(both, world.rounds, chosen=arm) for arm in (True, False))
    weight = chosen * control / np.maximum(chosen + control, 1)
    weight /= weight.sum()
    first, second = (float((weight * world.truth(arm)).sum()) for arm in (slice(0, CHOSEN), slice(None)))
    return first, second, first / second


@pytest.mark.slow
@pytest.mark.parametrize(
    "world",
    [
        pytest.param(World(rounds=12, controls=(1, 2, 3)), id="skewed, one to three a round"),
        pytest.param(World(rounds=20, controls=(1,), decline=0.05, skipped=(0.0, 0.1)), id="skewed, one a round"),
        pytest.param(World(rounds=10, controls=(3, 2), unchanged=0.3, shape=1.2), id="a third needs nothing"),
        pytest.param(World(rounds=8, controls=(3,), slope=0.0, decline=0.0, shape=3), id="choosing buys nothing"),
    ],
)
def test_each_interval_holds_the_truth_in_95_of_100_runs(world: World) -> None:
    rng = np.random.default_rng(5)
    correlation = world.correlation()
    held: dict[str, list[bool]] = {}
    for _ in range(RUNS):
        answers = world.answers(rng)
        drawn = [one for one in answers if not one.chosen]
        comparison = compare_arms(answers)
        if comparison is None:
            continue
        chosen, control, ratio = truths(world, answers)
        share = counts(drawn, world.rounds, chosen=False)
        alone = float((share * world.truth(slice(None))).sum() / share.sum())
        for name, interval, truth in (
            ("chosen", comparison.chosen, chosen),
            ("control", comparison.control, control),
            ("ratio", comparison.ratio, ratio),
            ("control alone", corrected_share(drawn), alone),
            ("calibration", corrected_to_expected(drawn), 1 / EXPECTED),
            ("ranking", rank_correlation(drawn), correlation),
        ):
            assert interval is not None, name
            held.setdefault(name, []).append(interval.holds(truth))
    assert len(held["ratio"]) > 0.9 * RUNS
    coverage = {name: float(np.mean(rows)) for name, rows in held.items()}
    assert not {name: share for name, share in coverage.items() if not 0.92 <= share <= 0.98}


@pytest.mark.parametrize("share", [0.5, 0.8, 0.93])
def test_completion_rates_hold_the_truth_in_95_of_100_runs(share: float) -> None:
    rng = np.random.default_rng(3)
    single = [wilson(int(rng.binomial(60, share)), 60) for _ in range(RUNS)]
    assert 0.92 <= np.mean([one is not None and one.holds(share) for one in single]) <= 0.98
    other = share * 0.9
    pairs = [share_difference((int(rng.binomial(150, share)), 150), (int(rng.binomial(30, other)), 30)) for _ in range(RUNS)]
    assert 0.92 <= np.mean([one is not None and one.holds(share - other) for one in pairs]) <= 0.985


def test_wilson_and_newcombe_give_the_figures_of_the_paper() -> None:
    # Newcombe 1998, Statistics in Medicine 17: 857-872, method 3, 81 of 263; 873-890, method 10, 56/70 - 48/80.
    single = wilson(81, 263)
    assert single is not None
    assert (round(single.low, 4), round(single.high or 0, 4)) == (0.2553, 0.3662)
    pair = share_difference((56, 70), (48, 80))
    assert pair is not None
    assert (round(pair.low, 4), round(pair.high or 0, 4)) == (0.0524, 0.3339)
    assert wilson(0, 0) is None
    assert share_difference((0, 0), (1, 2)) is None


def test_the_correlation_is_scipys_and_does_not_mind_ties_or_order() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.random(30).round(1), (rng.random(30) * 3).round()
    answers = [Answer(1 + k % 4, False, float(b), float(a)) for k, (a, b) in enumerate(zip(x, y, strict=True))]
    found = rank_correlation(answers)
    assert found is not None
    assert found.value == pytest.approx(stats.spearmanr(x, y).statistic)
    again = rank_correlation(answers[::-1])
    assert again is not None
    assert (again.value, again.low, again.high) == pytest.approx((found.value, found.low, found.high))


@pytest.mark.parametrize("degrees", [4, 6, 9.5, 30, 1000])
def test_the_quantile_of_t_is_scipys(degrees: float) -> None:
    for share in (0.9, 0.975, 0.995):
        assert student_quantile(share, degrees) == pytest.approx(stats.t.ppf(share, degrees), rel=0.01)


def test_rounds_with_one_arm_only_do_not_bias_the_comparison() -> None:
    rng = np.random.default_rng(1)
    fair = [Answer(r, chosen, float(rng.uniform(0.1, 0.2))) for r in range(1, 9) for chosen in (True, True, False, False)]
    lone = [Answer(20, True, 0.9) for _ in range(50)] + [Answer(21, False, 0.9) for _ in range(50)]
    found, plain = compare_arms(fair + lone), compare_arms(fair)
    assert found == plain
    assert found is not None
    assert (found.answers, found.rounds) == ((16, 16), 8)


def test_a_round_with_more_of_one_arm_does_not_pass_for_the_arms_difference() -> None:
    """Round 1 is hard for both arms and has most of the control images: pooled means would differ by themselves."""
    rng = np.random.default_rng(2)
    answers = [Answer(1, chosen, float(rng.uniform(0.5, 0.6))) for chosen in [True] * 2 + [False] * 10]
    answers += [Answer(2, chosen, float(rng.uniform(0.05, 0.06))) for chosen in [True] * 10 + [False] * 2]
    found = compare_arms(answers)
    assert found is not None
    assert found.ratio is not None
    assert found.ratio.value == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize("estimate", [corrected_share, corrected_to_expected, rank_correlation])
def test_too_few_answers_and_answers_all_alike_give_no_interval(estimate: object) -> None:
    assert callable(estimate)
    some = [Answer(k, False, 0.01 * (k % 5), k / 20, 0.05 + k / 1000) for k in range(ENOUGH)]
    assert estimate(some) is not None
    assert estimate(some[:-1]) is None
    assert estimate([]) is None
    assert estimate([replace(one, changed=0.0) for one in some]) is None
    assert estimate([replace(one, changed=0.25) for one in some]) is None or estimate is corrected_to_expected


def test_arms_too_small_or_never_corrected_have_no_ratio() -> None:
    some = [Answer(1, chosen, 0.01 * k) for k in range(ENOUGH) for chosen in (True, False)]
    assert compare_arms(some) is not None
    assert compare_arms(some[:-1]) is None
    assert compare_arms([]) is None
    assert compare_arms([replace(one, changed=0.0 if not one.chosen else one.changed) for one in some]) is None


def test_a_control_arm_that_may_be_near_zero_leaves_the_ratio_without_upper_limit() -> None:
    rare = [Answer(1, False, 0.3 if k == 0 else 0.0) for k in range(ENOUGH)]
    found = compare_arms([*rare, *(Answer(1, True, 0.1 + 0.01 * k) for k in range(ENOUGH))])
    assert found is not None
    assert found.ratio is not None
    assert found.ratio.high is None
    assert found.ratio.holds(math.inf)
    assert not Interval(1.0, 0.5, None).is_below(1e9)
