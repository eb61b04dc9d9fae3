"""The database and every file its rows name, in a folder that may hold many backups.

    FOLDER/2026-11-21T184120Z/manifest.json      written last: a backup without it is none
                              database.sqlite    or database.pgdump
                              files.json         location -> bytes, of every artifact the database names
    FOLDER/artifacts/masks/3f/3f9a...c1.png      of all backups together: each file is there once

The database comes first. Its rows name files by their checksum, and files never change, so all that it names is there when the
files are copied; housekeeping, which might remove one, waits meanwhile. A file that is there already is not copied again, so
that a backup that was killed goes on where it stopped.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from activeseg import __version__
from activeseg.db import retention
from activeseg.db.database import SCHEMA_REVISION
from activeseg.db.models import Model
from activeseg.errors import ConfigError, DataError
from activeseg.housekeeping import dumps
from activeseg.housekeeping.exclusive import files_lease
from activeseg.records import StageReport
from activeseg.storage import removal
from activeseg.storage.artifacts import INCOMING, ArtifactStore
from activeseg.storage.room import is_full, no_room
from activeseg.workspace import Workspace

MANIFEST, FILES = "manifest.json", "files.json"
FORMAT = 1
_UNFINISHED = ".unfinished"
_LEFT_OUT = frozenset({"leases"})
_PIECE = 1 << 20


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a backup holds. rows: table -> rows, but for the leases. missing: files that were gone when it was made."""

    format: int
    activeseg: str
    schema: str
    engine: str
    made_at: str
    identity: str | None
    database_sha256: str
    files_sha256: str
    files: int
    bytes: int
    rows: dict[str, int]
    missing: list[str]

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Raises ConfigError where the folder is no whole backup."""
        try:
            data = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
            if data.get("format") != FORMAT:
                raise ConfigError(f"{folder / MANIFEST}: expected format {FORMAT}, got {data.get('format')!r}")
            return cls(**data)
        except FileNotFoundError as error:
            raise ConfigError(f"{folder} is no backup: it has no {MANIFEST}") from error
        except (OSError, ValueError, TypeError, AttributeError) as error:
            if isinstance(error, ConfigError):
                raise
            raise ConfigError(f"{folder / MANIFEST} cannot be read: {error}") from error


def make_backup(workspace: Workspace, folder: Path) -> StageReport:
    """Add a backup to `folder`; older ones stay as they are. Others may go on working meanwhile.

    The report's `failed` and `problems` name files that rows name and that are missing or damaged: they were so before.
    Raises ConfigError where the folder cannot be written, or pg_dump is not there; LeaseError while gc or another backup runs.
    """
    started = time.monotonic()
    dumps.require_tools(workspace.database)
    try:
        with _alone(folder), files_lease(workspace):
            name, manifest, copied, problems = _make(workspace, folder)
    except OSError as error:
        if is_full(error):
            raise no_room(error, folder) from error
        raise ConfigError(f"{error.filename or folder}: {error.strerror}; no backup was made") from error
    details: dict[str, Any] = {"backup": str(folder / name), "files": manifest.files, "bytes": manifest.bytes, "new": copied}
    details |= {"problems": problems} if problems else {}
    return StageReport("backup", 1, len(problems), time.monotonic() - started, details)


def _make(workspace: Workspace, folder: Path) -> tuple[str, Manifest, int, dict[str, str]]:
    _sweep(folder)
    moment = datetime.now(UTC)
    name = f"{moment:%Y-%m-%dT%H%M%S}.{moment.microsecond:06d}Z"
    unfinished = folder / f"{name}{_UNFINISHED}"
    unfinished.mkdir(mode=0o700)
    with dumps.dumped(workspace.database, unfinished) as session:
        rows, identity = count_rows(session), retention.identity(session)
        named = retention.named_files(session) | {location for _, location in retention.checkpoint_files(session)}
    named |= {file.location for file in workspace.artifacts.files("weights")}
    sizes, copied, problems = _copy(workspace.artifacts, folder, sorted(named))
    text = json.dumps(sizes, indent=0, sort_keys=True)
    write_whole(unfinished / FILES, text.encode())
    manifest = Manifest(
        format=FORMAT,
        activeseg=__version__,
        schema=SCHEMA_REVISION,
        engine=workspace.database.dialect,
        made_at=moment.isoformat(),
        identity=identity,
        database_sha256=sha256_of(unfinished / dumps.FILES[workspace.database.dialect]),
        files_sha256=hashlib.sha256(text.encode()).hexdigest(),
        files=len(sizes),
        bytes=sum(sizes.values()),
        rows=rows,
        missing=sorted(named - sizes.keys()),
    )
    write_whole(unfinished / MANIFEST, (json.dumps(asdict(manifest), indent=1) + "\n").encode())
    _flush(unfinished)
    unfinished.rename(folder / name)
    _flush(folder)
    return name, manifest, copied, problems


def _sweep(folder: Path) -> None:
    """What killed ones left. Needs the lock."""
    for left in folder.glob(f"*{_UNFINISHED}"):
        shutil.rmtree(left)
    store = ArtifactStore(folder / "artifacts")
    for file in removal.leftovers(store, older_than=time.time()):
        (store.root / file.location).unlink()


def _copy(source: ArtifactStore, folder: Path, named: list[str]) -> tuple[dict[str, int], int, dict[str, str]]:
    """Bring every named file into the backup: (sizes by location, how many are new, what is wrong with the others)."""
    target = ArtifactStore(folder / "artifacts")
    sizes: dict[str, int] = {}
    problems: dict[str, str] = {}
    copied = 0
    for location in named:
        try:
            path, there = source.path(location), target.path(location)
            # Of the same size and under the same checksum: it was compared when it came in. Restoring compares it again.
            if not there.exists() or (path.exists() and there.stat().st_size != path.stat().st_size):
                copy_file(path, target, location)
                copied += 1
            sizes[location] = there.stat().st_size
        except FileNotFoundError:
            if source.removed(location) is None:
                problems[location] = "missing: no backup holds it"
        except DataError as error:
            problems[location] = str(error)
        except OSError as error:
            if is_full(error) or (why := _unreadable(path)) is None:
                raise
            problems[location] = f"cannot be read: {why}"
    return sizes, copied, problems


def _unreadable(file: Path) -> str | None:
    """Why a stored file cannot be read, such as a broken disk; None where it can, and the fault was the backup's disk."""
    try:
        sha256_of(file)
    except OSError as error:
        return error.strerror or str(error)
    return None


def copy_file(source: Path, store: ArtifactStore, location: str, *, link: bool = True) -> None:
    """Bring a stored file into another store, whole or not at all: by a hard link where the disk can, else as a copy.

    Raises DataError where its bytes are not those its name says.
    """
    target = store.path(location)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = store.root / INCOMING / f"{target.name}.{os.getpid()}.{secrets.token_hex(4)}"
    partial.parent.mkdir(exist_ok=True)
    try:
        if not (link and _linked(source, partial)):
            with source.open("rb") as old, partial.open("xb") as new:
                shutil.copyfileobj(old, new, _PIECE)
                new.flush()
                os.fsync(new.fileno())
        if sha256_of(partial) != target.name[:64]:
            raise DataError(f"{source} is damaged: its bytes are not those its name says; {location} is left out")
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
    _flush(target.parent)


def _linked(source: Path, target: Path) -> bool:
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise
    except OSError:  # another disk, or one without links
        return False
    return True


def count_rows(session: Session) -> dict[str, int]:
    """Table -> its rows, but for the leases, which say only who works."""
    tables = [table for table in Model.metadata.sorted_tables if table.name not in _LEFT_OUT]
    return {table.name: session.scalar(sa.select(sa.func.count()).select_from(table)) or 0 for table in tables}


def sha256_of(file: Path) -> str:
    """Of a file's bytes."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_whole(file: Path, data: bytes) -> None:
    """Write a file and flush it to the disk."""
    with file.open("wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())


def sizes_of(folder: Path, manifest: Manifest) -> Mapping[str, int]:
    """Location -> bytes of the artifacts of a backup. Raises ConfigError where its list is not the one it was made with."""
    data = (folder / FILES).read_bytes()
    if hashlib.sha256(data).hexdigest() != manifest.files_sha256:
        raise ConfigError(f"{folder / FILES} is damaged: restore another backup")
    return {str(location): int(size) for location, size in json.loads(data).items()}


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (folder / ".lock").open("ab") as lock:
        try:
            with suppress(NotImplementedError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"another backup is being written into {folder}: wait for it, or name another folder") from None
        yield


def _flush(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
