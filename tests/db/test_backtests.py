from __future__ import annotations

from dataclasses import replace

import pytest
import sqlalchemy as sa

from activeseg.db import backtests
from activeseg.db.backtests import UnitRow
from activeseg.db.database import Database
from activeseg.db.models import BacktestUnit

UNIT = UnitRow("random", 0, 0, 4, 0.5, 12.5, {"iou": {"sky": 0.5}})


def test_the_same_backtest_again_replaces_its_figures_and_keeps_the_others(database: Database) -> None:
    with database.write() as session:
        number = backtests.store(session, "f", {"seeds": [0]}, [UNIT, replace(UNIT, round=1, labels=7, mean_iou=None)])
    with database.write() as session:
        again = backtests.store(session, "f", {"seeds": [0, 1]}, [replace(UNIT, mean_iou=0.6), replace(UNIT, seed=1)])
        other = backtests.store(session, "g", {}, [UNIT])
    assert again == number != other
    with database.read() as session:
        rows = session.scalars(sa.select(BacktestUnit).where(BacktestUnit.backtest_id == number).order_by(BacktestUnit.id))
        assert [(row.seed, row.round, row.mean_iou) for row in rows] == [(0, 0, 0.6), (0, 1, None), (1, 0, 0.5)]
        curve = session.execute(
            sa.text("SELECT labels, seeds, mean_iou FROM backtest_curve WHERE backtest_id = :n ORDER BY round"), {"n": number}
        )
        assert [tuple(row) for row in curve] == [(4, 2, pytest.approx(0.55)), (7, 1, None)]
