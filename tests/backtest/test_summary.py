from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from activeseg.backtest.dataset import ReplayData, Sample
from activeseg.backtest.protocol import Protocol
from activeseg.backtest.summary import summarise
from activeseg.backtest.units import FULL, Unit
from tests.backtest.test_units import UNIT
from tests.factories import CLASSES

POOL = {f"{number}.png": Sample(f"{number}.png", "", "", (10, 10, 10)) for number in range(100)}
LABELS = (10, 30, 50)


def unit(strategy: str, seed: int, number: int, mean_iou: float) -> Unit:
    """All classes alike: hits out of 1000 pixels, none predicted that is wrong."""
    counts = np.array([[[round(1000 * mean_iou)] * 3, [1000] * 3, [round(1000 * mean_iou)] * 3]], np.int64)
    names = tuple(CLASSES.names[index] for index in CLASSES.channels)
    figures = {"classes": names, "iou": dict.fromkeys(names, mean_iou), "overall": {"mean_iou": mean_iou}}
    labelled = tuple(POOL)[: LABELS[number]] if strategy != FULL else tuple(POOL)
    return replace(UNIT, strategy=strategy, seed=seed, round=number, labelled=labelled, chosen=(), counts=counts, **figures)


def chain(strategy: str, seed: int, *values: float) -> list[Unit]:
    return [unit(strategy, seed, number, value) for number, value in enumerate(values)]


def test_labels_saved_on_the_way_to_the_goal_are_those_of_the_seeds_both_have() -> None:
    data = ReplayData(Path("anywhere"), CLASSES, POOL, {}, {})
    units = [
        *chain("random", 0, 0.1, 0.475, 0.5),
        *chain("random", 1, 0.1, 0.1, 0.1),
        *chain("entropy_sum", 0, 0.475, 0.5, 0.5),
        unit(FULL, 0, 0, 0.5),
    ]
    summary = summarise(units, Protocol(("random", "entropy_sum"), LABELS, (0, 1), 5), data, ())
    against = summary["strategies"]["entropy_sum"]["against_baseline"]
    assert summary["strategies"]["random"]["labels_to_goal"] is None
    assert against["seeds"] == [0]
    assert against["goal_saving"] == pytest.approx(1 - 10 / 30)


def test_parts_of_what_is_held_out_are_measured_apart() -> None:
    clip, val = (np.array([[[hits] * 3, [1000] * 3, [hits] * 3]], np.int64) for hits in (200, 800))
    parts = {"train": frozenset({"h.png"}), "val": frozenset({"v.png"})}
    data = ReplayData(Path("anywhere"), CLASSES, POOL, {}, {}, parts)
    both = [
        replace(one, held_out=("h.png", "v.png"), counts=np.concatenate([clip, val]))
        for strategy in ("random", "entropy_sum")
        for one in chain(strategy, 0, 0.5, 0.5, 0.5)
    ]
    summary = summarise(both, Protocol(("random", "entropy_sum"), LABELS, (0,), 5), data, (1,))
    assert summary["strategies"]["random"]["area"] == pytest.approx(0.5)
    for part, expected in (("train", 0.2), ("val", 0.8)):
        found = summary["parts"][part]["strategies"]["entropy_sum"]
        assert summary["parts"][part]["held_out"] == 1
        assert found["area"] == pytest.approx(expected)
        assert found["rare_area"] == pytest.approx(expected)
        assert found["rounds"][0]["iou"] == pytest.approx(dict.fromkeys(both[0].classes, expected))
        assert found["rounds"][0]["nll"] is None  # it is known over all images alone
        assert found["against_baseline"]["area"]["difference"] == pytest.approx(0)
