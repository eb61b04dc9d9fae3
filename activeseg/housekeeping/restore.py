"""A backup -> the workspace: every byte is compared first, the files come back before the rows that name them."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from activeseg.db import lease
from activeseg.db.database import SCHEMA_REVISION
from activeseg.errors import ConfigError, SchemaError
from activeseg.housekeeping import dumps, owners
from activeseg.housekeeping.backup import MANIFEST, Manifest, copy_file, count_rows, sha256_of, sizes_of
from activeseg.housekeeping.exclusive import LEASES, files_lease
from activeseg.records import StageReport
from activeseg.storage.artifacts import ArtifactStore
from activeseg.storage.room import is_full, no_room
from activeseg.wording import counted
from activeseg.workspace import Workspace

_TOLD = ("images", "annotations", "rounds", "checkpoints", "scores")


def restore_backup(workspace: Workspace, folder: Path, *, force: bool = False) -> StageReport:
    """Bring back a backup: one that `backup` made, or the youngest of a folder of them.

    Its database replaces the one of the workspace; its files are added to the artifacts folder, damaged ones there are
    replaced. Killed on the way, the same command goes on; until the end the former database is the one that is there.
    Raises ConfigError, before anything is written, where the workspace has data and `force` is not given, where the backup is
    damaged, of another schema or engine; LeaseError where somebody is at work.
    """
    started = time.monotonic()
    dumps.require_tools(workspace.database)
    chosen = choose(folder)
    manifest = Manifest.read(chosen)
    _require_fitting(workspace, chosen, manifest)
    there = _replaced(workspace)
    if there and not force:
        raise ConfigError(
            f"the workspace has data: {_told(there)} in {workspace.database.masked_url} would be replaced by "
            f"{_told(manifest.rows)} of {manifest.made_at[:16]}; give --force to replace them"
        )
    store, sizes = ArtifactStore(chosen.parent / "artifacts"), sizes_of(chosen, manifest)
    _verify(store, sizes)
    with _nobody_at_work(workspace):
        try:
            copied = _bring_files(store, workspace.artifacts, sizes)
        except OSError as error:
            if is_full(error):
                raise no_room(error, workspace.artifacts.root) from error
            raise ConfigError(f"{error.filename or workspace.artifacts.root} cannot be written: {error.strerror}") from error
        # The leases' rows are replaced as well: until all is compared, nobody gets one and nobody's token is worth anything.
        with lease.barred(workspace.database, LEASES):
            dumps.load(workspace.database, chosen / dumps.FILES[manifest.engine], token=_token())
            workspace.database.engine.dispose()
            try:
                _compare(workspace, manifest)
            finally:
                _begin_anew(workspace)
    details: dict[str, Any] = {"backup": str(chosen), "made at": manifest.made_at, "files": len(sizes), "new": copied}
    details |= {"replaced": _told(there)} if there else {}
    details |= {"missing files": len(manifest.missing)} if manifest.missing else {}
    return StageReport("restore", sum(manifest.rows.values()), 0, time.monotonic() - started, details)


@contextmanager
def _nobody_at_work(workspace: Workspace) -> Iterator[None]:
    if workspace.database.revision() != SCHEMA_REVISION:
        yield
        return
    with lease.holding(workspace.database), files_lease(workspace):
        yield


def choose(folder: Path) -> Path:
    """The backup in a folder: itself, or the youngest in it. Raises ConfigError where there is none."""
    if (folder / MANIFEST).is_file():
        return folder.absolute()
    found = sorted(path.parent for path in folder.glob(f"*/{MANIFEST}"))
    if not found:
        raise ConfigError(f"no backup in {folder}: expected a folder that `activeseg backup` wrote into")
    return found[-1].absolute()


def _require_fitting(workspace: Workspace, chosen: Path, manifest: Manifest) -> None:
    if manifest.schema != SCHEMA_REVISION:
        raise ConfigError(
            f"{chosen} is at schema {manifest.schema}, this version needs {SCHEMA_REVISION}: install activeseg "
            f"{manifest.activeseg}, which made it, and restore it with that; then install this version and run `activeseg db "
            "upgrade`"
        )
    if manifest.engine != workspace.database.dialect:
        raise ConfigError(
            f"{chosen} is of a {manifest.engine} database; [database] url is {workspace.database.masked_url}: set it to one of "
            f"{manifest.engine}"
        )
    file = chosen / dumps.FILES[manifest.engine]
    if not file.is_file() or sha256_of(file) != manifest.database_sha256:
        raise ConfigError(f"{file} is missing or damaged: restore another backup")


def _replaced(workspace: Workspace) -> dict[str, int]:
    """`_content`; ConfigError with what to do where a SQLite file is so damaged that it cannot even be replaced."""
    try:
        return _content(workspace)
    except (SchemaError, sa.exc.DatabaseError) as error:
        if workspace.database.dialect != "sqlite":
            raise
        told = str(getattr(error, "orig", None) or error).splitlines()[0]
        raise ConfigError(
            f"{workspace.database.url.database} cannot be read ({told}); nothing was restored. Where it is damaged, move it "
            "away with those beside it whose names end in -wal and -shm, and run this again"
        ) from error


def _content(workspace: Workspace) -> dict[str, int]:
    """Table -> rows of what a restore would replace; empty where there is nothing."""
    database = workspace.database
    if database.dialect == "sqlite" and not Path(str(database.url.database)).exists():
        return {}
    known = set(sa.inspect(database.engine).get_table_names())
    with database.read() as session:
        if database.revision() == SCHEMA_REVISION:
            return {name: rows for name, rows in count_rows(session).items() if rows}
        # Of another version: all that has rows counts.
        counting = {name: sa.select(sa.func.count()).select_from(sa.table(name)) for name in sorted(known)}
        counts = {name: session.scalar(statement) or 0 for name, statement in counting.items()}
    return {name: rows for name, rows in counts.items() if rows and name != "alembic_version"}


def _told(rows: Mapping[str, int]) -> str:
    """'160 images, 24 annotations, 3 rounds'."""
    told = [f"{rows[name]} {name}" for name in _TOLD if rows.get(name)]
    return ", ".join(told) or counted(sum(rows.values()), "row")


def _verify(store: ArtifactStore, sizes: Mapping[str, int]) -> None:
    bad = [location for location in sizes if not _intact(store.path(location))]
    if bad:
        raise ConfigError(
            f"{len(bad)} of {len(sizes)} files of the backup in {store.root} are missing or damaged, such as {bad[0]}; nothing "
            "was restored"
        )


def _bring_files(source: ArtifactStore, target: ArtifactStore, sizes: Mapping[str, int]) -> int:
    """Copies, never links: what happens to the workspace must not happen to the backup."""
    copied = 0
    for location in sizes:
        path = target.path(location)
        if _intact(path):
            os.utime(path)  # housekeeping must not take it for one that nobody names
            continue
        copy_file(source.path(location), target, location, link=False)
        copied += 1
    return copied


def _intact(path: Path) -> bool:
    try:
        return sha256_of(path) == path.name[:64]
    except OSError:
        return False


def _token() -> int:
    """Above each that was ever given out, in the backup or since: those grow by one, this by the microsecond."""
    return time.time_ns() // 1000


def _begin_anew(workspace: Workspace) -> None:
    """Let the next process in. Whoever held a lease before holds it no more, and its token is worth nothing."""
    with workspace.database.engine.begin() as connection:
        connection.execute(sa.text("UPDATE leases SET expires_at = 0, token = :token"), {"token": _token()})


def _compare(workspace: Workspace, manifest: Manifest) -> None:
    with workspace.database.read() as session:
        found = count_rows(session)
    if found != manifest.rows:
        unlike = {name: (rows, found.get(name)) for name, rows in manifest.rows.items() if found.get(name) != rows}
        raise ConfigError(f"the restored database does not hold what the backup says (table: backup, here): {unlike}")
    owners.claim(workspace)
