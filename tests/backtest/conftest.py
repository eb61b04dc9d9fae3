from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from activeseg.backtest.dataset import ReplayData, prepare
from activeseg.backtest.protocol import Protocol
from activeseg.backtest.run import Heard, Outcome, run_backtest
from activeseg.backtest.units import Unit
from activeseg.config import Settings
from tests.factories import CLASSES, MODEL, TRAINING, write_balls


@pytest.fixture(scope="session")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """14 labelled balls to choose from and 4 to measure on, in the layout of --data."""
    folder = tmp_path_factory.mktemp("labelled")
    write_balls(folder / "train/images", range(14), masks=folder / "train/masks")
    write_balls(folder / "val/images", range(100, 104), masks=folder / "val/masks")
    (folder / "classes.txt").write_text(CLASSES.to_text(), encoding="utf-8")
    return folder


def settings(**sections: dict[str, Any]) -> Settings:
    """Small and quick; sections override."""
    model, training = MODEL | sections.pop("model", {}), TRAINING | {"steps": 3} | sections.pop("training", {})
    return Settings(model=model, training=training, **sections)


PROTOCOL = Protocol(("random", "entropy_sum"), (4, 7, 9), (0,), 4)


class Listening(Heard):
    """Notes what it hears."""

    def __init__(self) -> None:
        self.computed: list[str] = []
        self.problems: list[str] = []
        super().__init__(unit=self._unit, problem=self.problems.append)

    def _unit(self, unit: Unit, new: bool) -> None:
        if new:
            self.computed.append(unit.name)


@pytest.fixture
def replay(labelled: Path) -> Callable[..., Outcome]:
    """Runs a backtest on the balls in this process."""

    def run(out: Path, protocol: Protocol = PROTOCOL, heard: Heard | None = None, **sections: dict[str, Any]) -> Outcome:
        own = settings(**sections)
        return run_backtest(out, protocol, prepared(labelled, out, own), own, workers=1, heard=heard)

    return run


@pytest.fixture(scope="session")
def done(labelled: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome]:
    """A whole backtest, computed once: its folder, which nobody changes, and what came of it."""
    out = tmp_path_factory.mktemp("done") / "out"
    own = settings()
    return out, run_backtest(out, PROTOCOL, prepared(labelled, out, own), own, workers=1)


def prepared(labelled: Path, out: Path, own: Settings) -> ReplayData:
    """The balls laid out for a backtest in `out`."""
    return prepare(labelled, out / "work/data", own)


def result(unit: Unit) -> dict[str, Any]:
    """What must not depend on when, where and how often a unit was computed."""
    return {
        "fingerprint": unit.fingerprint,
        "labelled": unit.labelled,
        "chosen": [item.name for item in unit.chosen],
        "overall": unit.overall,
        "counts": unit.counts.tolist(),
    }
