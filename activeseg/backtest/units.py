"""Results of a backtest, a JSON file each: one training, what it was measured at, and what was chosen with it.

They are all that is needed to go on: a unit that is there and was made by the same images, recipe and code version is never
computed again, wherever the file came from.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from activeseg.core.metrics import Counts

FULL = "full"
"""Name of the training on all images, beside those of the strategies."""


@dataclass(frozen=True, slots=True)
class Chosen:
    """An image the next round labels, and why. rank, score: None where no model had a say."""

    name: str
    rank: int | None
    score: float | None
    arm: str
    reason: str


@dataclass(frozen=True, slots=True, eq=False)
class Unit:
    """One training of a replay.

    labelled: names of the images it saw, in order of the names. chosen: what is labelled next; empty after the last round.
    held_out: names of the images measured on; counts: (N, 3, C) int64 of them, hits, truth pixels and predicted pixels.
    overall: figures over all classes by name (mean_iou, nll, ece, ...); classes: names of the channels. seconds: of training,
    evaluation, scoring and selection. machine: what computed. details: whatever else is worth keeping.
    """

    fingerprint: str
    strategy: str
    seed: int
    round: int
    labelled: tuple[str, ...]
    chosen: tuple[Chosen, ...]
    classes: tuple[str, ...]
    overall: dict[str, float | None]
    iou: dict[str, float | None]
    seconds: dict[str, float]
    machine: dict[str, Any]
    held_out: tuple[str, ...]
    counts: Counts
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Of its file, without the ending."""
        return unit_name(self.strategy, self.seed, self.round)

    @property
    def mean_iou(self) -> float | None:
        """On the images held out."""
        return self.overall.get("mean_iou")

    def to_json(self) -> str:
        """A line for each field and for each image's counts, so that files can be compared and committed."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        values["chosen"] = [[getattr(item, key.name) for key in fields(Chosen)] for item in self.chosen]
        rows = [_compact(row) for row in self.counts.tolist()]
        lines = [f"{_compact(key)}: {_compact(value)}" for key, value in values.items() if key != "counts"]
        return "{\n" + ",\n".join([*lines, '"counts": [\n' + ",\n".join(rows) + "\n]"]) + "\n}\n"

    @classmethod
    def from_json(cls, text: str) -> Unit:
        """The reverse of `to_json`. Raises ValueError, KeyError or TypeError for anything else."""
        values: Any = json.loads(text)
        if not isinstance(values, dict):
            raise ValueError("it holds no object")
        known = {item.name for item in fields(cls)}
        values = {key: value for key, value in values.items() if key in known}
        values["counts"] = counts = np.array(values["counts"], np.int64)
        values["chosen"] = tuple(Chosen(*item) for item in values["chosen"])
        values |= {key: tuple(values[key]) for key in ("labelled", "classes", "held_out")}
        if counts.shape != (len(values["held_out"]), 3, len(values["classes"])):
            raise ValueError(f"counts have the shape {counts.shape}")
        return cls(**values)


def unit_name(strategy: str, seed: int, number: int) -> str:
    """'entropy_sum-s0-r2'; of the training on all images 'full-s0'."""
    return f"{strategy}-s{seed}" + ("" if strategy == FULL else f"-r{number}")


def finite(value: float) -> float | None:
    """JSON knows no NaN."""
    return value if math.isfinite(value) else None


def _compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), allow_nan=False)


@dataclass(frozen=True, slots=True)
class UnitFolder:
    """The unit files of a backtest."""

    folder: Path

    def read(self, name: str, fingerprint: str | None = None) -> tuple[Unit | None, str | None]:
        """A unit, or None and why it cannot be used; None and None where there is no file.

        fingerprint: what it must have been made by; None: whatever.
        """
        file = self.folder / f"{name}.json"
        try:
            unit = Unit.from_json(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None, None
        except (OSError, ValueError, KeyError, TypeError) as error:
            return None, f"{file.name} is not a unit's file ({type(error).__name__}: {error})"
        if unit.name != name:
            return None, f"{file.name} holds the unit {unit.name}"
        if fingerprint is not None and unit.fingerprint != fingerprint:
            return None, f"{file.name} was made by something else"
        return unit, None

    def write(self, unit: Unit) -> None:
        """Put a unit's file in its place, whole or not at all. What has the name already is kept under another."""
        self.folder.mkdir(parents=True, exist_ok=True)
        file = self.folder / f"{unit.name}.json"
        partial = file.with_name(f".{file.name}.{os.getpid()}")
        with partial.open("w", encoding="utf-8") as stream:
            stream.write(unit.to_json())
            stream.flush()
            os.fsync(stream.fileno())
        if file.exists():
            file.replace(_free_name(file))
        partial.replace(file)

    def remove(self, name: str) -> None:
        """Take a unit's file away, where there is one."""
        (self.folder / f"{name}.json").unlink(missing_ok=True)

    def names(self) -> list[str]:
        """Names of the unit files there are."""
        return sorted(path.stem for path in self.folder.glob("*.json"))


def _free_name(file: Path) -> Path:
    number = 1
    while (found := file.with_name(f"{file.stem}.old{number}")).exists():
        number += 1
    return found


def labelled_after(units: Sequence[Unit]) -> tuple[str, ...]:
    """Images labelled once the last of these rounds' choices is answered, in order of the names."""
    return tuple(sorted({*units[-1].labelled, *(item.name for item in units[-1].chosen)}))


def added_by_round(units: Iterable[Unit]) -> list[list[str]]:
    """The images each round labelled: those of the first, then each round's choice."""
    units = list(units)
    return [list(units[0].labelled), *([item.name for item in unit.chosen] for unit in units[:-1])]
