"""backtests and backtest_units: strategies replayed on images whose masks are known."""

from __future__ import annotations

from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.orm import Mapped, mapped_column

from activeseg.db.models.columns import Json, Model, created


class Backtest(Model):
    """One protocol on one set of images; the same protocol again goes on with it."""

    __tablename__ = "backtests"

    id: Mapped[int] = mapped_column(primary_key=True)
    fingerprint: Mapped[str] = mapped_column(sa.String(64), unique=True)
    protocol: Mapped[Json] = mapped_column(sa.JSON)
    created_at: Mapped[datetime] = created()


class BacktestUnit(Model):
    """One training of a replay: a strategy, a seed, a round."""

    __tablename__ = "backtest_units"
    __table_args__ = (sa.UniqueConstraint("backtest_id", "strategy", "seed", "round"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    backtest_id: Mapped[int] = mapped_column(sa.ForeignKey("backtests.id"))
    strategy: Mapped[str] = mapped_column(sa.String(80))
    seed: Mapped[int]
    round: Mapped[int]
    labels: Mapped[int]
    """images the training saw"""
    mean_iou: Mapped[float | None] = mapped_column(sa.Double)
    """on the images held out"""
    result: Mapped[Json] = mapped_column(sa.JSON)
    seconds: Mapped[float] = mapped_column(sa.Double)
    created_at: Mapped[datetime] = created()
