"""SIGKILL at any point, and the same curve in the end; its processes end with it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from activeseg.backtest.run import Outcome
from tests.backtest.conftest import Listening, result
from tests.backtest.worker import replay as replayed
from tests.forked import exit_status

pytestmark = pytest.mark.slow

PATIENCE = 300.0


def test_a_backtest_killed_again_and_again_ends_with_the_curve_of_one_that_was_not(
    done: tuple[Path, Outcome], labelled: Path, replay: Callable[..., Outcome], tmp_path: Path
) -> None:
    # Commits of each process: in the first import, before and after trainings, between a choice and its unit's file.
    for commits in (3, 14, 9, 21, 16, 5):
        assert exit_status(replayed, labelled, tmp_path / "out", commits=commits) == -signal.SIGKILL
    heard = Listening()
    killed = replay(tmp_path / "out", heard=heard)
    assert heard.computed  # else nothing was left to do, and the last kills came too late
    assert not heard.problems
    assert list(map(result, killed.units)) == list(map(result, done[1].units))


def test_the_processes_of_a_killed_backtest_end_with_it(labelled: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.backtest.worker", str(labelled), str(tmp_path / "out")]
    environment = os.environ | {"PYTHONPATH": os.getcwd()}
    process = subprocess.Popen(command, start_new_session=True, env=environment, stdout=subprocess.DEVNULL)
    waited(lambda: list((tmp_path / "out/work/replays").glob("*/replay.db")))
    assert len(members(process.pid)) >= 3
    process.kill()
    process.wait()
    waited(lambda: not members(process.pid))


def waited(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def members(session: int) -> list[int]:
    """Processes of a session that still run."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state = (folder / "stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(state[3]) == session and state[0] != "Z":
            found.append(int(folder.name))
    return found
