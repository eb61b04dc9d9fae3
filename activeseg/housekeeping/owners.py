"""Which databases store files in an artifacts folder. Housekeeping removes what its own database does not name, and so must not
run where another one stores files, too.

    owners/5f2d...json      one for each database, written before its first stage that stores files there
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import sqlalchemy as sa

from activeseg.db import retention
from activeseg.errors import ConfigError
from activeseg.storage.room import is_full
from activeseg.workspace import Workspace

FOLDER = "owners"


@dataclass(frozen=True, slots=True)
class Owner:
    """A database that stores files in this folder: its address for people, and since when, in seconds since 1970.

    place: what it has there of its own: a file, or its number on a server. host: of the process that wrote this.
    """

    file: Path
    database: str
    since: float
    identity: str
    place: str
    host: str

    def moved_to(self, other: Owner) -> bool:
        """Whether it is the same database at its former place, where there is nothing any more."""
        same = self.identity == other.identity and self.host == other.host
        return same and self.place.startswith("/") and not os.path.exists(self.place)


def claim(workspace: Workspace) -> Owner | None:
    """Say in the artifacts folder that this database stores files there; None while there is nothing in the database yet.

    Raises ConfigError where the folder cannot be written, OSError where the disk is full.
    """
    us = _us(workspace)
    if us is None:
        return None
    identity, place = us
    root = workspace.artifacts.root
    file = root / FOLDER / f"{_key(identity, place)}.json"
    if (found := _read(file)) is not None:
        return found
    try:
        return _write(workspace, file, identity, place)
    except OSError as error:
        if is_full(error):
            raise
        raise ConfigError(f"cannot write to the artifacts folder {root}: {error.strerror or error}") from error


def _write(workspace: Workspace, file: Path, identity: str, place: str) -> Owner | None:
    file.parent.mkdir(parents=True, exist_ok=True)
    what = {"database": workspace.database.masked_url, "since": datetime.now(UTC).isoformat(), "identity": identity}
    what |= {"place": place, "host": socket.gethostname(), "folder": str(workspace.artifacts.root.stat().st_ino)}
    unfinished = file.with_suffix(f".{os.getpid()}")
    try:
        unfinished.write_text(json.dumps(what) + "\n", encoding="utf-8")
        unfinished.replace(file)
    finally:
        unfinished.unlink(missing_ok=True)
    return _read(file)


def require_alone(workspace: Workspace, *, claiming: bool = True) -> Owner | None:
    """This database's own claim, made where there is none and `claiming`; None without one.

    Raises ConfigError where another database stores files in the folder. What came with a copy of the folder is none.
    """
    us = _us(workspace)
    folder = workspace.artifacts.root / FOLDER
    own = claim(workspace) if claiming else _read(folder / f"{_key(*us)}.json") if us else None
    for file in sorted(folder.glob("*.json")):
        other = _read(file)
        if other is None or (own and (file == own.file or other.moved_to(own))):
            continue
        raise ConfigError(
            f"the artifacts folder {workspace.artifacts.root} holds files of another database, too: {other.database}; nothing "
            "is removed. Give each database a folder of its own; if that one is gone, or is this one at its former address, "
            f"delete {file}"
        )
    return own


def _us(workspace: Workspace) -> tuple[str, str] | None:
    """The database itself and its place: a copy of it elsewhere is another one that may name other files."""
    database = workspace.database
    with database.read() as session:
        identity = retention.identity(session)
        if identity is None:
            return None
        if database.dialect == "postgresql":
            # Not by its address, which differs from host to host.
            number = session.scalar(sa.text("SELECT oid FROM pg_database WHERE datname = current_database()"))
            return identity, f"postgresql {number}"
    return identity, os.path.realpath(database.url.database or ":memory:")


def _key(identity: str, place: str) -> str:
    return hashlib.sha256(f"{identity} {place}".encode()).hexdigest()[:16]


def _read(file: Path) -> Owner | None:
    """None for a claim that is not there, cannot be read or was made for another folder, which this one is a copy of."""
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
        if data["folder"] != str(file.parent.parent.stat().st_ino):
            return None
        since = datetime.fromisoformat(data["since"]).timestamp()
        return Owner(file, str(data["database"]), since, data["identity"], data["place"], data["host"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
