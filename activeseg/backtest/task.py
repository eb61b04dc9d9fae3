"""A unit to compute, and where."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from activeseg.backtest.dataset import ReplayData
from activeseg.backtest.units import Unit, unit_name
from activeseg.config import Settings
from activeseg.storage.local import path_to_uri

START = "start"
"""Name of the replay of a seed's round 0, which all strategies begin with."""


@dataclass(frozen=True)
class Place:
    """Where a backtest works, and with what. settings: as the user has them, with start weights stored in the artifacts."""

    work: Path
    data: ReplayData
    settings: Settings

    @property
    def artifacts(self) -> Path:
        """Masks, weights and checkpoints of all replays: equal files lie there once."""
        return self.work / "artifacts"

    def folder(self, strategy: str, seed: int) -> Path:
        """Of one replay's workspace."""
        return self.work / "replays" / f"{strategy}-s{seed}"

    def folder_uri(self, side: str) -> str:
        """What the URIs of the images of 'pool' or 'held' begin with; their names follow."""
        return path_to_uri(str(self.data.folder / side / "images")) + "/"

    def uri(self, name: str) -> str:
        """A pool image's, by its name."""
        return path_to_uri(str(self.data.folder / "pool" / "images" / name))


@dataclass(frozen=True, slots=True)
class Task:
    """A unit to compute.

    strategy: a strategy's name, START or FULL. labels: images labelled after each round. base: fingerprint of what all
    units have in common; a workspace made with another one is not used. added: the images each round up to this one
    labelled, by name; empty where round 0's are still to be drawn. start: round 0 of a strategy is the start's training.
    """

    strategy: str
    seed: int
    round: int
    labels: tuple[int, ...]
    steps: int
    base: str
    added: tuple[tuple[str, ...], ...] = ()
    start: Unit | None = None

    @property
    def name(self) -> str:
        """Of its unit."""
        return unit_name(self.strategy, self.seed, self.round)

    @property
    def next_query(self) -> int:
        """Images the next round adds; 0 where this is the last one."""
        return self.labels[self.round + 1] - self.labels[self.round] if self.round + 1 < len(self.labels) else 0

    @property
    def workspace(self) -> str:
        """What a workspace must have been made for to be of use."""
        return f"{self.base} {self.steps} {self.labels[0]}"

    @property
    def trains(self) -> bool:
        """Whether it is a training of its own."""
        return self.start is None
