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
