"""Files of the artifacts folder that nothing needs any more, found and removed.

    tables     under the lease: which predictions are done with, which checkpoints stay, what rows name
    forget     done predictions and old records of runs go from the tables in small groups, if nobody had the lease meanwhile
    folders    what lies there and no row needs, unless it was stored within a day
    remove     in small groups, each in a transaction that holds the lease: nobody takes over, or rolls back, in between

Tables come before folders: what is stored after they were read is new, and new files stay. Killed anywhere, files are left that
no row names, or that go back to their place (`storage.removal`); the next run takes up both.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from activeseg.config import HousekeepingSection
from activeseg.db import checkpoints, lease, old_runs, retention
from activeseg.db.images import blocks
from activeseg.db.models import TrainingRun, TrainingStatus
from activeseg.housekeeping import owners
from activeseg.housekeeping.exclusive import files_lease
from activeseg.records import StageReport
from activeseg.storage import removal
from activeseg.storage.artifacts import Kind, StoredFile
from activeseg.storage.removal import DAY
from activeseg.workspace import Workspace

GROUP = 100
"""Files removed in one transaction."""
ROWS = 500
"""Rows deleted in one transaction."""
TRAINING, COMPILED = "training", "compiled"
LOG_FILES = r"\d{8}-\d{6}-[\w-]+-\d+\.jsonl"
"""Names of the log files of runs (`scheduler.runs`); other files in that folder are nobody's business."""
_STATES = r"\d+-[0-9a-f]{8}\.safetensors(\.unfinished)?"
_LEDGER = "costs.json"


@dataclass(frozen=True, slots=True)
class Item:
    """A file to remove. stored: a location of the artifact store, removed with care; else a path below `folder`."""

    kind: str
    file: StoredFile
    folder: Path
    stored: bool = False
    note: bool = False


@dataclass(frozen=True, slots=True)
class Tables:
    """What the tables say is needed. checkpoints: location of each that goes; kept: why the others stay, counted."""

    named: set[str]
    forgotten: set[str]
    checkpoints: frozenset[str]
    kept: Mapping[str, int]
    states: frozenset[str]
    champion_since: float
    old: old_runs.OldRuns


@dataclass(slots=True)
class Counts:
    """Files and bytes by kind."""

    files: Counter[str] = field(default_factory=Counter)
    size: Counter[str] = field(default_factory=Counter)

    def add(self, item: Item) -> None:
        """One more."""
        self.files[item.kind] += 1
        self.size[item.kind] += item.file.size


def collect_garbage(workspace: Workspace, *, dry_run: bool = False) -> StageReport:
    """Remove what [housekeeping] does not keep; `written` counts files and rows, `details` say how many of which kind.

    dry_run: look and count only. Checkpoints keep their rows; whoever reads one is told that gc removed its file, and when.
    Masks that annotations refer to are never touched, nor are imported weights. Raises LeaseError where another process is at
    work or a backup is being made, ConfigError where another database stores files in the same folder.
    """
    started, moment = time.monotonic(), time.time()
    counts = Counts()
    with ExitStack() as held:
        if not dry_run:
            held.enter_context(lease.holding(workspace.database))
            held.enter_context(files_lease(workspace))
            removal.recover(workspace.artifacts)
        own = owners.require_alone(workspace, claiming=not dry_run)
        tables = _read_tables(workspace, moment, forget=not dry_run)
        found = list(_found(workspace, tables, moment, own.since if own else moment))
        if dry_run:
            for item in found:
                counts.add(item)
        else:
            _remove(workspace, found, moment, counts)
            for note in removal.idle_notes(workspace.artifacts):
                note.unlink(missing_ok=True)
    written = counts.files.total() + sum(tables.old.counts().values())
    return StageReport("gc", written, 0, time.monotonic() - started, _details(counts, tables, dry_run))


def _details(counts: Counts, tables: Tables, dry_run: bool) -> dict[str, Any]:
    details: dict[str, Any] = {"dry run": True} if dry_run else {}
    details |= {name: counts.files[name] for name in sorted(counts.files)}
    details |= {"rows": rows} if (rows := tables.old.counts()) else {}
    details |= {"bytes": counts.size.total(), "bytes by kind": dict(sorted(counts.size.items()))}
    return details | {"checkpoints kept": dict(tables.kept)}


# Tables


def _read_tables(workspace: Workspace, moment: float, *, forget: bool) -> Tables:
    rules = workspace.settings.housekeeping
    today = datetime.fromtimestamp(moment, UTC)
    before = today - timedelta(days=rules.keep_days)
    with workspace.database.read() as session:
        done = retention.done_predictions(session, before=before)
        all_named = retention.named_files(session)
        named = retention.named_files(session, done)
        tables = _tables(session, rules, today, named, all_named - named)
    if forget:
        # Nobody had the lease since these were read, or this is refused: they are done with still. In handfuls: others may
        # write in between. Files go after all of them, so that no row ever names a file that is gone.
        for part in done.parts(ROWS):
            with workspace.database.write() as session:
                retention.forget_predictions(session, part)
        _forget_runs(workspace, tables.old)
    return tables


def _forget_runs(workspace: Workspace, old: old_runs.OldRuns) -> None:
    for group in blocks(old.runs, ROWS):
        _forget(workspace, old_runs.OldRuns(runs=group))
    for some in blocks(old.slots, ROWS):
        _forget(workspace, old_runs.OldRuns(slots=some))
    for group in blocks(old.requests, ROWS):
        _forget(workspace, old_runs.OldRuns(requests=group))


def _forget(workspace: Workspace, group: old_runs.OldRuns) -> None:
    with workspace.database.write() as session:
        old_runs.forget(session, group)


def _tables(session: Session, rules: HousekeepingSection, moment: datetime, named: set[str], forgotten: set[str]) -> Tables:
    before = moment - timedelta(days=rules.keep_days)
    why = retention.checkpoints_to_keep(session, newest=rules.keep_checkpoints, rollbacks=rules.keep_rollbacks, since=before)
    files = dict(retention.checkpoint_files(session))
    needed = {files[row_id] for row_id in why}
    running = session.scalars(sa.select(TrainingRun).where(TrainingRun.status == TrainingStatus.RUNNING)).all()
    resumable = checkpoints.resumable(session)
    since = checkpoints.champion_since(session)
    return Tables(
        named=named | needed,
        forgotten=forgotten,
        checkpoints=frozenset(files.values()) - needed,
        kept=Counter(why.values()),
        states=frozenset(checkpoints.state_name(run) for run in [*running, *([resumable] if resumable else [])]),
        champion_since=since.timestamp() if since else 0.0,
        old=old_runs.older_than(session, moment - timedelta(days=rules.keep_runs_days)),
    )


# Folders


def _found(workspace: Workspace, tables: Tables, moment: float, claimed: float) -> Iterator[Item]:
    """What may go."""
    settings, root = workspace.settings, workspace.artifacts.root
    yield from _unneeded(workspace, tables, moment, claimed)
    for file in removal.leftovers(workspace.artifacts, older_than=moment - DAY):
        yield Item("leftovers", file, root)
    for file in removal.old_files(root / TRAINING, older_than=moment - DAY, name=_STATES):
        if file.location.removesuffix(".unfinished") not in tables.states:
            yield Item("training states", file, root / TRAINING)
    # What was compiled belongs to a network's weights: what was not used since this champion serves is of no use any more.
    unused = min(moment - max(settings.housekeeping.keep_days, 1) * DAY, tables.champion_since)
    for file in removal.unused_files(root / COMPILED, older_than=unused):
        if file.location != _LEDGER:
            yield Item("compiled", file, root / COMPILED)
    if settings.log.dir is not None:
        logs = settings.path(settings.log.dir)
        oldest = moment - settings.housekeeping.log_days * DAY
        for file in removal.old_files(logs, older_than=moment, name=LOG_FILES):
            if file.changed < oldest or file.location in tables.old.logs:
                yield Item("logs", file, logs)


def _unneeded(workspace: Workspace, tables: Tables, moment: float, claimed: float) -> Iterator[Item]:
    """Stored files no row needs.

    claimed: since when it is known which databases store files here. What is older and was never named by ours goes only after
    [housekeeping] keep_days, in which any other database would have said that it is there.
    """
    waiting = moment - claimed < workspace.settings.housekeeping.keep_days * DAY
    kinds: tuple[tuple[str, Kind], ...] = (("masks", "mask"), ("pictures", "picture"), ("checkpoints", "checkpoint"))
    for name, kind in kinds:
        for file in workspace.artifacts.files(kind):
            if file.location in tables.named or file.changed >= moment - DAY:
                continue
            known = file.location in tables.forgotten or file.location in tables.checkpoints
            if known or not waiting or file.changed >= claimed:
                yield Item(name, file, workspace.artifacts.root, stored=True, note=file.location in tables.checkpoints)


# Remove


def _remove(workspace: Workspace, items: Sequence[Item], moment: float, counts: Counts) -> None:
    note = removal.day_of(moment)
    for group in blocks(items, GROUP):
        with workspace.database.write():
            for item in group:
                if _gone(workspace, item, moment, note):
                    counts.add(item)


def _gone(workspace: Workspace, item: Item, moment: float, note: str) -> bool:
    if item.stored:
        marked = note if item.note else None
        return removal.take_away(workspace.artifacts, item.file.location, older_than=moment - DAY, note=marked)
    try:
        (item.folder / item.file.location).unlink()
    except FileNotFoundError:
        return False
    return True
