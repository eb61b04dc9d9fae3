"""What is used of an earlier run, before anything is computed."""

from __future__ import annotations

from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from activeseg.backtest.dataset import ReplayData, Sample
from activeseg.backtest.protocol import Protocol
from activeseg.backtest.run import Heard, Plan, _compute
from activeseg.backtest.task import START, Task
from activeseg.backtest.units import Chosen, UnitFolder
from activeseg.backtest.workspaces import MADE_FOR, mark_usable
from activeseg.config import Settings
from activeseg.errors import ActivesegError
from tests.backtest.test_units import UNIT
from tests.factories import CLASSES

POOL = {name: Sample(name, f"image {name}", f"mask {name}", (1, 2, 3)) for name in ("a.png", "b.png", "c.png")}
HELD = {"h.png": Sample("h.png", "image h", "mask h", (3, 2, 1))}
PROTOCOL = Protocol(("random", "entropy_sum"), (2, 3), (0,), 0)


def plan(out: Path, **training: Any) -> Plan:
    data = ReplayData(out / "work/data", CLASSES, POOL, HELD, {})
    settings = Settings(training=training)
    return Plan(UnitFolder(out / "units"), UnitFolder(out / "work/starts"), PROTOCOL, data, settings)


def start(own: Plan) -> Task:
    """The only thing to do."""
    found = {task.name: task for task in own.ready()}
    assert list(found) == ["start-s0-r0"]
    return found["start-s0-r0"]


def finished(out: Path, own: Plan) -> None:
    """The start's training, and the workspace it was done in."""
    own.take(start(own), replace(UNIT, strategy=START, seed=0, round=0, chosen=()))
    workspace(out, own)


def workspace(out: Path, own: Plan) -> None:
    """A workspace as it is once its images are in it and nothing was trained yet."""
    folder = out / "work/replays/start-s0"
    folder.mkdir(parents=True, exist_ok=True)
    mark_usable(folder, Task(START, 0, 0, PROTOCOL.labels, own.steps, own.base).workspace)


def test_strategies_begin_at_a_start_that_is_there(tmp_path: Path) -> None:
    finished(tmp_path, plan(tmp_path))
    assert [task.strategy for task in plan(tmp_path).ready()] == ["random", "entropy_sum"]


def test_no_strategy_begins_in_a_workspace_that_another_recipe_was_killed_in(tmp_path: Path) -> None:
    finished(tmp_path, plan(tmp_path))
    workspace(tmp_path, plan(tmp_path, learning_rate=0.5))
    # Its file is gone with the workspace: made anew and killed, that one would have no network to choose with.
    workspace(tmp_path, plan(tmp_path))
    start(plan(tmp_path))
    finished(tmp_path, plan(tmp_path))
    (tmp_path / "work/replays/start-s0" / MADE_FOR).write_text("another", encoding="utf-8")
    start(plan(tmp_path))
    workspace(tmp_path, plan(tmp_path))
    start(plan(tmp_path))


def test_a_choice_of_images_that_are_not_in_the_pool_is_not_used(tmp_path: Path) -> None:
    finished(tmp_path, plan(tmp_path))
    own = plan(tmp_path)
    for task, name in zip(list(own.ready()), ("c.png", "../h.png"), strict=True):
        chosen = (Chosen(name, 1, 1.0, "chosen", ""),)
        own.take(task, replace(UNIT, strategy=task.strategy, seed=0, round=0, chosen=chosen))
    again = plan(tmp_path)
    assert [unit.name for unit in again.units()] == ["random-s0-r0"]
    assert any("entropy_sum-s0-r0.json is of images that are not in this pool" in problem for problem in again.problems)


def test_a_process_that_ended_between_two_units_is_told_with_what_to_do(tmp_path: Path) -> None:
    class Ended:
        def submit(self, task: Task) -> None:
            raise BrokenProcessPool

    with pytest.raises(ActivesegError, match=r"start-s0-r0.*run the same command again, with fewer --workers"):
        _compute(plan(tmp_path), Ended(), 2, Heard(), [])  # type: ignore[arg-type]
