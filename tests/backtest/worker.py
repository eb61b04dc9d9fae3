"""A backtest as a process of its own: killed by SIGKILL right after its n-th commit, or by whoever started it."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import sqlalchemy as sa

from activeseg.backtest.dataset import prepare
from activeseg.backtest.run import Heard, alone, run_backtest
from tests.backtest.conftest import PROTOCOL, settings


def replay(data: Path, out: Path, *, commits: int | None = None, workers: int = 1) -> None:
    """The whole backtest; killed when so many writing transactions were committed, where a number is given."""
    if commits is not None:
        die_after(commits)
    own = settings()
    with alone(out):
        prepared = prepare(data, out / "work/data", own)
        run_backtest(out, PROTOCOL, prepared, own, workers=workers, heard=Heard(problem=print))


def die_after(commits: int) -> None:
    """Of whichever workspace they are."""
    done = 0

    def count(connection: sa.Connection) -> None:
        nonlocal done
        if connection.get_execution_options().get("activeseg_begin") == "IMMEDIATE":
            done += 1
            if done == commits:
                # The commit event comes before the commit itself: let the driver finish it, then die.
                connection.connection.driver_connection.execute("COMMIT")  # type: ignore[union-attr]
                os.kill(os.getpid(), signal.SIGKILL)

    sa.event.listen(sa.Engine, "commit", count)


if __name__ == "__main__":
    replay(Path(sys.argv[1]), Path(sys.argv[2]), workers=2)
