"""`[schedule] catch_up_hours` reaches the scheduler that `activeseg schedule` starts."""

from __future__ import annotations

import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from activeseg.cli import main
from activeseg.db.database import Database
from activeseg.scheduler import JobResult, Scheduler
from tests.scheduler.conftest import Clock


@pytest.mark.slow
@pytest.mark.parametrize(("hours", "made_up"), [(1.0, []), (3.0, ["report"])])
def test_a_missed_report_is_made_up_within_catch_up_hours_and_no_later(
    database: Database,
    database_url: str,
    clock: Clock,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    hours: float,
    made_up: list[str],
) -> None:
    lines = [f'[database]\nurl = "{database_url}"', f"[schedule]\ncatch_up_hours = {hours}"]
    never = [f'{job} = "0 0 29 2 *"' for job in ("round", "pull")]
    (tmp_path / "activeseg.toml").write_text("\n".join([*lines, *never, 'report = "0 2 * * *"']), encoding="utf-8")
    (tmp_path / "classes.txt").write_text("sky #4080ff\nroad #808080\n", encoding="utf-8")
    ran: list[JobResult] = []

    def two_looks(self: Scheduler, **ignored: Any) -> None:
        """As if it was there the evening before, and again two hours after the time it missed."""
        self.now = clock
        clock.move(hours=-3)
        self.catch_up()
        clock.move(hours=5)
        ran.extend(self.catch_up())

    monkeypatch.setattr(Scheduler, "run", two_looks)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["activeseg", "schedule"])
    with pytest.raises(SystemExit):
        main()
    assert [result.job for result in ran] == made_up
    assert clock.time.hour == 4
    assert timedelta(hours=hours) != Scheduler(database, []).within, "what it would be by itself"
