"""A whole backtest: which units there are, which are missing, and who computes them in which order."""

from __future__ import annotations

import fcntl
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from activeseg.backtest.dataset import ReplayData
from activeseg.backtest.fingerprint import base_description, digest, unit_fingerprint
from activeseg.backtest.protocol import Protocol
from activeseg.backtest.task import START, Place, Task
from activeseg.backtest.units import FULL, Unit, UnitFolder, added_by_round, labelled_after, unit_name
from activeseg.backtest.workers import Crew, crew
from activeseg.backtest.workspaces import usable
from activeseg.config import Settings
from activeseg.errors import ActivesegError, ConfigError
from activeseg.storage.artifacts import ArtifactStore

FULL_SEED = 0

_SECONDS = 0.5
"""Between two looks at how far the trainings are."""


@dataclass
class Heard:
    """Who listens to a backtest. unit: it is there now, and whether it was computed just now. problem: in a sentence.
    progress: optimiser steps done and planned."""

    unit: Callable[[Unit, bool], None] = field(default=lambda unit, new: None)
    problem: Callable[[str], None] = field(default=lambda problem: None)
    progress: Callable[[int, int], None] = field(default=lambda done, planned: None)


@dataclass(frozen=True)
class Outcome:
    """What there is at the end. fingerprint: of what all units have in common, their steps and rounds. units: by strategy,
    seed and round. errors: of the units that failed, in the order they came."""

    fingerprint: str
    units: list[Unit]
    errors: list[Exception]


def run_backtest(
    out: Path, protocol: Protocol, data: ReplayData, settings: Settings, *, workers: int, heard: Heard | None = None
) -> Outcome:
    """All units of the protocol: read where they are in `out`/units, else computed.

    Every unit is written when it ends; a killed backtest goes on with the one it was at. A strategy that fails does not keep
    the others from going on. The caller works in `out` `alone`, also while it prepares the data.
    """
    place = _place(out, data, settings)
    plan = Plan(UnitFolder(out / "units"), UnitFolder(place.work / "starts"), protocol, data, place.settings)
    return _run(place, plan, workers, heard or Heard())


@contextmanager
def alone(out: Path) -> Iterator[None]:
    """Nobody else works in this folder during the block. Raises ConfigError where somebody does."""
    out.mkdir(parents=True, exist_ok=True)
    with (out / ".lock").open("ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"another backtest is at work in {out}: wait for it, or name another folder") from None
        yield


def _place(out: Path, data: ReplayData, settings: Settings) -> Place:
    """Where the replays work; the start weights are copied there and named by their whole sha256."""
    work = out / "work"
    model = settings.model
    if model.weights:
        own = ArtifactStore(settings.path(settings.artifacts.dir))
        stored = ArtifactStore(work.absolute() / "artifacts").put(
            own.read(own.find("weights", model.weights)), "weights", ".safetensors"
        )
        model = model.model_copy(update={"weights": stored.sha256})
    return Place(work.absolute(), data, settings.model_copy(update={"model": model}))


class Plan:
    """Which units there are and what comes next."""

    def __init__(
        self, folder: UnitFolder, starts: UnitFolder, protocol: Protocol, data: ReplayData, settings: Settings
    ) -> None:
        self.folder, self.starts, self.protocol, self.data = folder, starts, protocol, data
        self.steps = settings.training.steps
        self.description = base_description(settings, data)
        self.base = digest(self.description)
        """Of what all units have in common."""
        self.problems: list[str] = []
        self.chains: dict[tuple[str, int], list[Unit]] = {
            (strategy, seed): self._chain(strategy, seed) for seed in protocol.seeds for strategy in protocol.strategies
        }
        self.full = self._full() if protocol.full_steps else None
        self.started: dict[int, Unit] = {seed: unit for seed in protocol.seeds if (unit := self._start(seed)) is not None}
        self.begun: set[str] = set()
        self.failed: set[tuple[str, int]] = set()
        self._note_strangers()

    def units(self) -> list[Unit]:
        """All there are, by strategy, seed and round; the training on everything last."""
        ordered = [(strategy, seed) for strategy in self.protocol.strategies for seed in self.protocol.seeds]
        found = [unit for key in ordered for unit in self.chains[key]]
        return found + ([self.full] if self.full else [])

    def fingerprint(self, unit: Unit | Task, labelled: tuple[str, ...]) -> str:
        """What a unit on these images must have been made by."""
        labels, steps = self.protocol.labels[: unit.round + 2], self.steps
        if unit.strategy == FULL:
            labels, steps = (len(self.data.pool),), self.protocol.full_steps
        samples = [self.data.pool[name] for name in labelled]
        return unit_fingerprint(
            self.description, strategy=unit.strategy, seed=unit.seed, steps=steps, labels=labels, labelled=samples
        )

    def take(self, task: Task, unit: Unit) -> Unit:
        """Store a unit that was computed; returns it with its fingerprint."""
        unit = replace(unit, fingerprint=self.fingerprint(unit, unit.labelled))
        if task.strategy == START:
            self.starts.write(unit)
            self.started[task.seed] = unit
            return unit
        self.folder.write(unit)
        if task.strategy == FULL:
            self.full = unit
        else:
            self.chains[task.strategy, task.seed].append(unit)
        return unit

    def ready(self) -> Iterator[Task]:
        """Tasks that can be begun now and were not, those that most waits for first."""
        for task in sorted(self._possible(), key=lambda task: (task.strategy != FULL, task.trains, task.seed, task.round)):
            if task.name not in self.begun:
                yield task

    def steps_left(self) -> int:
        """Optimiser steps of all trainings that are not done."""
        left = self.protocol.full_steps if self.protocol.full_steps and self.full is None else 0
        for seed in self.protocol.seeds:
            chains = [self.chains[strategy, seed] for strategy in self.protocol.strategies]
            if seed not in self.started and not all(chains):
                left += self.steps
            left += sum(self.steps * (len(self.protocol.labels) - max(1, len(chain))) for chain in chains)
        return left

    def _possible(self) -> Iterator[Task]:
        if self.protocol.full_steps and self.full is None and (FULL, FULL_SEED) not in self.failed:
            yield self._task(FULL, FULL_SEED, 0, added=(tuple(self.data.pool),))
        for (strategy, seed), chain in self.chains.items():
            if (strategy, seed) in self.failed or len(chain) == len(self.protocol.labels):
                continue
            if chain:
                yield self._task(strategy, seed, len(chain), added=(*map(tuple, added_by_round(chain)), _names(chain[-1])))
            elif seed in self.started:
                yield self._task(strategy, seed, 0, start=self.started[seed], added=(self.started[seed].labelled,))
            elif (START, seed) not in self.failed:
                known = self._initial(seed)
                yield self._task(START, seed, 0, added=(known,) if known else ())

    def _task(
        self, strategy: str, seed: int, number: int, added: tuple[tuple[str, ...], ...] = (), start: Unit | None = None
    ) -> Task:
        labels = (len(self.data.pool),) if strategy == FULL else self.protocol.labels
        steps = self.protocol.full_steps if strategy == FULL else self.steps
        return Task(strategy, seed, number, labels, steps, self.base, added, start)

    def _initial(self, seed: int) -> tuple[str, ...]:
        """The first images of a seed, where a strategy has begun with them already: all begin with the same."""
        known = [chain[0].labelled for (_, of), chain in self.chains.items() if of == seed and chain]
        return known[0] if known else ()

    def _chain(self, strategy: str, seed: int) -> list[Unit]:
        """The rounds that are there without a gap and follow from each other."""
        found: list[Unit] = []
        for number in range(len(self.protocol.labels)):
            expected = labelled_after(found) if found else None
            unit = self._read(self.folder, unit_name(strategy, seed, number), expected)
            if unit is None:
                break
            found.append(unit)
        return found

    def _full(self) -> Unit | None:
        return self._read(self.folder, unit_name(FULL, FULL_SEED, 0), tuple(sorted(self.data.pool)))

    def _start(self, seed: int) -> Unit | None:
        name = unit_name(START, seed, 0)
        unit = self._read(self.starts, name, self._initial(seed) or None)
        # Its workspace is what strategies are copied from: another plan, killed before its own file, may have left one here.
        workspace = self.starts.folder.parent / "replays" / f"{START}-s{seed}"
        if unit is None or not usable(workspace, self._task(START, seed, 0).workspace):
            # Now, and not when the new one is written: until then a workspace of this very plan may be half done.
            self.starts.remove(name)
            return None
        return unit

    def _read(self, folder: UnitFolder, name: str, labelled: tuple[str, ...] | None) -> Unit | None:
        unit, problem = folder.read(name)
        if unit is not None and labelled is not None and unit.labelled != labelled:
            unit, problem = None, f"{name}.json does not go on from the round before"
        if unit is not None and not {*unit.labelled, *_names(unit)} <= self.data.pool.keys():
            unit, problem = None, f"{name}.json is of images that are not in this pool"
        if unit is not None and unit.fingerprint != self.fingerprint(unit, unit.labelled):
            unit, problem = None, f"{name}.json was made from other images, with another recipe or plan, or by another version"
        if problem:
            self.problems.append(f"{problem}; it is not used")
        return unit

    def _note_strangers(self) -> None:
        expected = {
            unit_name(strategy, seed, number) for strategy, seed in self.chains for number in range(len(self.protocol.labels))
        } | {unit_name(FULL, FULL_SEED, 0)}
        if others := [name for name in self.folder.names() if name not in expected]:
            more = f" and {len(others) - 3} more" if len(others) > 3 else ""
            self.problems.append(f"not asked for, and left alone: {', '.join(others[:3])}{more}")


def _names(unit: Unit) -> tuple[str, ...]:
    return tuple(item.name for item in unit.chosen)


def _run(place: Place, plan: Plan, workers: int, heard: Heard) -> Outcome:
    for problem in plan.problems:
        heard.problem(problem)
    for unit in plan.units():
        heard.unit(unit, False)
    planned = plan.steps_left()
    errors: list[Exception] = []
    if any(True for _ in plan.ready()):
        with crew(place, workers) as members, _watched(members, planned, heard):
            _compute(plan, members, workers, heard, errors)
    rounds = digest([plan.base, plan.steps, plan.protocol.labels])
    return Outcome(rounds, plan.units(), errors)


def _compute(plan: Plan, members: Crew, workers: int, heard: Heard, errors: list[Exception]) -> None:
    running: dict[Future[Unit], Task] = {}
    while True:
        for task in plan.ready():
            if len(running) >= workers:
                break
            plan.begun.add(task.name)
            running[_submitted(members, task, running.values())] = task
        if not running:
            return
        ended, _ = wait(running, return_when=FIRST_COMPLETED)
        for future in ended:
            task = running.pop(future)
            try:
                unit = plan.take(task, future.result())
            except BrokenProcessPool as error:
                raise _process_ended([task, *running.values()]) from error
            except Exception as error:
                error.add_note(f"while computing {task.name}")
                heard.problem(f"{task.name}: {error}")
                plan.failed.add((task.strategy, task.seed))
                errors.append(error)
            else:
                if task.strategy != START:
                    heard.unit(unit, True)


def _submitted(members: Crew, task: Task, running: Iterable[Task]) -> Future[Unit]:
    try:
        return members.submit(task)
    except BrokenProcessPool as error:  # a process ended since the last unit did
        raise _process_ended([*running, task]) from error


def _process_ended(tasks: Iterable[Task]) -> ActivesegError:
    """tasks: those under way; which of them it was that ended with its process is not told."""
    names = " or ".join(task.name for task in tasks)
    return ActivesegError(
        f"a process of the backtest was ended while it computed {names} (out of memory?): run the same command again, with "
        "fewer --workers where memory is short"
    )


@contextmanager
def _watched(members: Crew, planned: int, heard: Heard) -> Iterator[None]:
    """Tell how far the trainings are while the block runs."""
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(_SECONDS):
            heard.progress(min(members.steps, planned), planned)

    thread = threading.Thread(target=watch, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
