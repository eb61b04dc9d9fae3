"""What `make soak` calls a leak, and what it does not."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest
import soak

ROUNDS = 80
STEADY = {"handles": 30.0, "threads": 4.0, "processes": 2.0, "connections": 3.0, "database_mb": 20.0, "round_seconds": 5.0}


def judged(*, grows: str | None = None, share: float = 0.0, outcomes: Counter[str] | None = None) -> dict[str, Any]:
    """The judgement on rounds in which one figure grows by a share from their first to their last, after a warm-up."""
    noise = random.Random(0)
    samples = []
    for number in range(ROUNDS):
        warm_up = -200.0 * max(0, 10 - number) / 10
        found = STEADY | {"hours": number / 240, "memory_mb": 600 + warm_up + noise.uniform(-2, 2), "main_memory_mb": 400.0}
        if grows is not None:
            found[grows] *= 1 + share * number / ROUNDS
        samples.append(found)
    return soak.judge(samples, outcomes or Counter(done=ROUNDS))


def test_noise_and_a_warm_up_are_no_leak() -> None:
    found = judged()
    assert (found["holds"], found["grown"], found["rounds_after_warm_up"]) == (True, [], 64)
    low, high = found["trends"]["memory_mb"]["interval"]
    assert low < 0 < high


def test_memory_that_grows_by_more_than_two_per_cent_is_one() -> None:
    assert judged(grows="memory_mb", share=0.02)["holds"]  # of which three quarters of four fifths lie between the quarters
    found = judged(grows="memory_mb", share=0.05)
    assert (found["holds"], found["grown"]) == (False, ["memory_mb"])
    assert found["trends"]["memory_mb"]["interval"][0] > 0


@pytest.mark.parametrize("name", ["handles", "threads", "processes", "connections"])
def test_anything_that_is_held_and_grows_at_all_is_one(name: str) -> None:
    assert judged(grows=name, share=0.01)["grown"] == [name]


def test_a_database_that_grows_with_its_rows_is_none() -> None:
    assert judged(grows="database_mb", share=1.0)["holds"]


def test_a_round_that_failed_does_not_pass() -> None:
    assert not judged(outcomes=Counter(done=ROUNDS - 1, failed=1))["holds"]


def test_too_few_rounds_are_told_so() -> None:
    found = soak.judge([STEADY | {"hours": 0.0, "memory_mb": 1.0}] * 5, Counter(done=5))
    assert not found["holds"]
    assert "more --minutes" in found["problem"]
