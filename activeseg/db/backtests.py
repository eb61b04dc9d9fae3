"""Rows of backtests: what was asked for, and a row for each training."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from activeseg.db.models import Backtest, BacktestUnit


@dataclass(frozen=True, slots=True)
class UnitRow:
    """A training of a backtest. result: a JSON value; what else there is to know of it."""

    strategy: str
    seed: int
    round: int
    labels: int
    mean_iou: float | None
    seconds: float
    result: Mapping[str, Any]


def store(session: Session, fingerprint: str, protocol: Mapping[str, Any], units: Iterable[UnitRow]) -> int:
    """Write a backtest and its trainings; returns its id.

    The same fingerprint is the same backtest: its protocol is replaced, trainings that are there get the new figures, and
    those that are not given stay.
    """
    held = session.scalar(sa.select(Backtest).where(Backtest.fingerprint == fingerprint))
    held = held or Backtest(fingerprint=fingerprint)
    held.protocol = dict(protocol)
    session.add(held)
    session.flush()
    rows = session.scalars(sa.select(BacktestUnit).where(BacktestUnit.backtest_id == held.id))
    known = {(row.strategy, row.seed, row.round): row for row in rows}
    for unit in units:
        key = (unit.strategy, unit.seed, unit.round)
        row = known.get(key) or BacktestUnit(backtest_id=held.id, strategy=unit.strategy, seed=unit.seed, round=unit.round)
        row.labels, row.mean_iou, row.seconds, row.result = unit.labels, unit.mean_iou, unit.seconds, dict(unit.result)
        session.add(row)
    session.flush()
    return held.id
