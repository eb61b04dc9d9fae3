"""How many bytes which kind of files takes, and what is free."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import sqlalchemy as sa

from activeseg.housekeeping.room import places
from activeseg.storage.artifacts import FOLDERS
from activeseg.storage.room import free_bytes
from activeseg.workspace import Workspace

OTHER = ("compiled", "training", "incoming")


def disk_use(workspace: Workspace) -> dict[str, int]:
    """Bytes by kind: masks, checkpoints, weights, pictures, compiled, training, incoming, logs, database, free.

    Every file is asked for its size, none is opened: docs/operations.md says what that takes. free: on the artifacts' disk, or
    on the database's where that has less.
    """
    root = workspace.artifacts.root
    found = {name: _size_below(root / name) for name in (*FOLDERS, *OTHER)}
    logs = workspace.settings.log.dir
    found["logs"] = _size_below(workspace.settings.path(logs)) if logs is not None else 0
    found["database"] = _database_size(workspace)
    return found | {"free": min(map(free_bytes, places(workspace).values()))}


def _size_below(folder: Path) -> int:
    return sum(_sizes(str(folder)))


def _sizes(folder: str) -> Iterator[int]:
    # Files come and go meanwhile.
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    yield from _sizes(entry.path)
                else:
                    yield _size_of(entry)
    except OSError:
        return


def _size_of(entry: os.DirEntry[str]) -> int:
    try:
        return entry.stat(follow_symlinks=False).st_size
    except OSError:
        return 0


def _database_size(workspace: Workspace) -> int:
    if workspace.database.dialect == "postgresql":
        with workspace.database.read() as session:
            return int(session.scalar(sa.text("SELECT pg_database_size(current_database())")) or 0)
    file = places(workspace).get("database")
    if file is None:
        return 0
    parts = (Path(f"{file}{ending}") for ending in ("", "-wal", "-shm"))
    return sum(part.stat().st_size for part in parts if part.exists())
