"""The results of a backtest into a database: the workspace's own, or one beside the report."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from activeseg.backtest.protocol import Protocol
from activeseg.backtest.units import Unit
from activeseg.config import Settings
from activeseg.db import backtests, migrate
from activeseg.db.backtests import UnitRow
from activeseg.db.database import SCHEMA_REVISION, Database
from activeseg.errors import SchemaError


def store_results(out: Path, settings: Settings | None, fingerprint: str, protocol: Protocol, units: Sequence[Unit]) -> str:
    """Write `backtests` and `backtest_units`; returns the database's address, without a password.

    settings: of a configured workspace, whose database is taken where it is there and at this version's schema; else it is
    `out`/backtest.db.
    """
    with closing(_database(out, settings)) as database:
        with database.write() as session:
            backtests.store(session, fingerprint, protocol.as_dict(), map(_row, units))
        return database.masked_url


def _database(out: Path, settings: Settings | None) -> Database:
    own = _of_workspace(settings) if settings else None
    if own is not None:
        return own
    database = Database(f"sqlite:///{(out / 'backtest.db').absolute()}")
    migrate.upgrade(database)
    return database


def _of_workspace(settings: Settings) -> Database | None:
    url = settings.database_url
    if url.startswith("sqlite:///") and not Path(url.removeprefix("sqlite:///")).exists():
        return None  # to connect would make the file
    database = Database(url)
    try:
        if database.revision() == SCHEMA_REVISION:
            return database
    except SchemaError:
        pass
    database.close()
    return None


def _row(unit: Unit) -> UnitRow:
    result: dict[str, Any] = {
        "fingerprint": unit.fingerprint,
        "overall": unit.overall,
        "iou": unit.iou,
        "seconds": unit.seconds,
        "machine": unit.machine,
        "labelled": list(unit.labelled),
        "chosen": [{"name": item.name, "score": item.score, "reason": item.reason} for item in unit.chosen],
        "details": unit.details,
    }
    seconds = sum(unit.seconds.values())
    return UnitRow(unit.strategy, unit.seed, unit.round, len(unit.labelled), unit.mean_iou, seconds, result)
