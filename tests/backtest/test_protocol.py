from __future__ import annotations

import pytest

from activeseg.backtest.protocol import labels_of_budgets, labels_of_steps, parse_strategies
from activeseg.errors import ConfigError


def test_shares_become_images_of_the_pool_each_rounded_by_itself() -> None:
    assert labels_of_steps("10%", "5%", "40%", 367) == (37, 55, 73, 92, 110, 128, 147)
    assert labels_of_budgets("2%,5%,10%,20%", 305) == (6, 15, 31, 61)
    assert labels_of_budgets("0.1%, 50%", 100) == (1, 50)


def test_numbers_of_images_are_taken_as_they_are() -> None:
    assert labels_of_steps("7", "7", "30", 367) == (7, 14, 21, 28)
    assert labels_of_budgets("4,8,12", 20) == (4, 8, 12)


@pytest.mark.parametrize(
    ("initial", "step", "until", "said"),
    [
        ("10%", "5", "40%", "--initial, --step and --until"),
        ("10%", "5%", "5%", "--until: expected at least"),
        ("10%", "0%", "40%", "--step: expected"),
        ("a lot", "5%", "40%", "--initial: expected"),
        ("1.5", "2", "9", "--initial: expected"),
        ("10", "10", "400", "the pool has 100"),
        ("10%", "0.1%", "12%", "more images than the one before"),
    ],
)
def test_plans_that_cannot_be_are_refused_by_option(initial: str, step: str, until: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        labels_of_steps(initial, step, until, 100)


def test_strategies_are_known_names_each_once() -> None:
    assert parse_strategies("random, entropy_sum") == ("random", "entropy_sum")
    for wrong in ("random,random", "", "guess"):
        with pytest.raises(ConfigError):
            parse_strategies(wrong)
