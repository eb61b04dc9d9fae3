"""Orders drawn from a ranking: the chances are those of the formulas, and a seed repeats them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest

from activeseg.core.ranking import Limits, Picker, Ranking, pick_in_order, power, softrank, top
from activeseg.errors import ConfigError

SCORES = [5.0, 4.0, 3.5, 2.0, 1.5, 1.0]
Noise = Callable[..., Picker]
both = pytest.mark.parametrize("noise", [power, softrank])


def ranking(scores: list[float] = SCORES) -> Ranking:
    return Ranking.of(range(10, 10 + len(scores)), scores)


def drawn(picker: Picker, size: int, count: int = len(SCORES)) -> list[int]:
    return [place for place, _ in picker(size, [], Limits(count))]


@pytest.mark.slow
@pytest.mark.parametrize("beta", [1.0, 3.0])
@pytest.mark.parametrize(
    ("noise", "weights"),
    [(power, [(s - 1) / 4 for s in SCORES]), (softrank, [1 / rank for rank in range(1, 7)])],
    ids=["power", "softrank"],
)
def test_the_first_draws_chances_are_those_of_the_formula(noise: Noise, weights: list[float], beta: float) -> None:
    """p_i = w_i^beta / sum: of standardised scores, or of one over the rank; of the second draw, among the rest."""
    rounds = 2000
    pairs = [drawn(noise(ranking(), beta=beta, seed=seed), 2) for seed in range(rounds)]
    p = np.array(weights) ** beta
    p /= p.sum()
    first = Counter(pair[0] for pair in pairs)
    second = {b: sum(p[a] * p[b] / (1 - p[a]) for a in range(6) if a != b and p[a] < 1) for b in range(6)}
    for chances, counts in ((dict(enumerate(p)), first), (second, Counter(pair[1] for pair in pairs))):
        likely = [place for place in range(6) if chances[place] * rounds >= 5]
        assert sum((counts[i] - rounds * chances[i]) ** 2 / (rounds * chances[i]) for i in likely) < 20.5  # 99.9 %, 5 df


def test_the_lowest_score_comes_last_by_power_and_equal_ones_have_equal_chances() -> None:
    some_last = [drawn(power(ranking([3.0, 2.0, 0.0, 0.0]), beta=1, seed=seed), 4, 4) for seed in range(50)]
    assert {tuple(order[2:]) for order in some_last} == {(2, 3)}
    first = Counter(drawn(power(ranking([2.0] * 4), beta=2, seed=seed), 1, 4)[0] for seed in range(2000))
    assert sum((first[place] - 500) ** 2 / 500 for place in range(4)) < 16.3  # 99.9 %, 3 df


@both
def test_a_seed_repeats_a_draw_and_another_one_changes_it(noise: Noise) -> None:
    draws = [drawn(noise(ranking(), beta=1, seed=seed), 6) for seed in (7, 7, 8)]
    assert draws[0] == draws[1] != draws[2]
    assert sorted(draws[0]) == list(range(6))


@both
def test_pools_of_one_and_of_none_are_drawn_from(noise: Noise) -> None:
    assert drawn(noise(ranking([4.0]), beta=1, seed=0), 3, 1) == [0]
    assert drawn(noise(ranking([]), beta=1, seed=0), 3, 0) == []


@both
@pytest.mark.parametrize("beta", [0.0, -1.0, float("nan"), float("inf")])
def test_a_beta_that_draws_nothing_sensible_is_refused(noise: Noise, beta: float) -> None:
    with pytest.raises(ConfigError, match="beta: expected a number above 0"):
        noise(ranking(), beta=beta, seed=0)


@pytest.mark.parametrize("make", [top, partial(power, beta=1, seed=1), partial(softrank, beta=1, seed=1)])
def test_places_that_are_not_free_are_passed_over(make: Callable[[Ranking], Picker]) -> None:
    limits = Limits(6)
    limits.free[[0, 3, 5]] = False
    assert {place for place, _ in make(ranking())(6, [], limits)} == {1, 2, 4}
    assert not limits.free.any()


def test_an_order_may_name_a_place_twice() -> None:
    assert pick_in_order([2, 2, 0], 3, Limits(3), "why") == [(2, "why"), (0, "why")]
