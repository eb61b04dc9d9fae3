"""A database in a file and back: SQLite by its backup API, PostgreSQL by pg_dump and pg_restore.

Both are consistent while others write: a snapshot of one moment.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import quote

import sqlalchemy as sa
from sqlalchemy.orm import Session

from activeseg.db import lease
from activeseg.db.database import Database
from activeseg.errors import ConfigError, NoRoomError
from activeseg.housekeeping.exclusive import LEASES

RESTORING = "a restore"
"""Who holds the leases of a SQLite file until its restore is complete."""
FILES = {"sqlite": "database.sqlite", "postgresql": "database.pgdump"}


@contextmanager
def dumped(database: Database, folder: Path) -> Iterator[Session]:
    """Write the database into `folder` (see FILES); yields a session that reads exactly what was written."""
    target = folder / FILES[database.dialect]
    if database.dialect == "sqlite":
        _copy_sqlite(Path(str(database.url.database)), target)
        with closing(Database(f"sqlite:///{target}")) as copy, copy.read() as session:
            yield session
        _settle(target)
        return
    with database.engine.connect().execution_options(isolation_level="REPEATABLE READ") as connection:
        snapshot = connection.scalar(sa.text("SELECT pg_export_snapshot()"))
        _run(database.url, "pg_dump", "--format=custom", "--no-owner", "--no-privileges", f"--snapshot={snapshot}",
             f"--file={target}")  # fmt: skip
        with Session(connection) as session:
            yield session


def load(database: Database, file: Path, *, token: int) -> None:
    """Replace the content of the database by a dump's, all of it or nothing.

    token: on SQLite, of the leases that come with it: they are held for a lease's time to live, by nobody that is there. On
    PostgreSQL whoever calls bars them (`lease.barred`).
    """
    if database.dialect == "sqlite":
        target = Path(str(database.url.database))
        target.parent.mkdir(parents=True, exist_ok=True)
        with _held_by_nobody(file, target, token) as held:
            # Into the open file, page by page in one transaction: whoever has it open reads the old or the new content.
            _copy_sqlite(held, target)
        _hold(target)  # from now on: copying a large one may take longer than a lease lives
        return
    _run(database.url, "pg_restore", "--clean", "--if-exists", "--no-owner", "--no-privileges", "--single-transaction",
         "--exit-on-error", "--dbname=", str(file))  # fmt: skip


@contextmanager
def _held_by_nobody(file: Path, target: Path, token: int) -> Iterator[Path]:
    """A copy of a dump beside the target in which all leases are held: they are from the moment that it takes its place."""
    copy = target.with_name(f"{target.name}.restoring")
    copy.unlink(missing_ok=True)  # a killed one's
    try:
        _copy_sqlite(file, copy)
        with closing(sqlite3.connect(copy, isolation_level=None)) as connection:
            connection.execute("PRAGMA journal_mode=DELETE")
            for name in LEASES:
                connection.execute(
                    "INSERT OR IGNORE INTO leases (name, holder, token, expires_at) VALUES (?, '', 0, 0)", [name]
                )
            connection.execute("UPDATE leases SET holder = ?, token = ?", [RESTORING, token])
        _hold(copy)
        yield copy
    finally:
        copy.unlink(missing_ok=True)


def _hold(file: Path) -> None:
    """Let the leases in a file, whose holder is RESTORING, expire a lease's time to live from now."""
    expiry = f"{lease.CLOCK['sqlite']} + {lease.TTL_SECONDS}"
    with closing(sqlite3.connect(file, timeout=30, isolation_level=None)) as connection:
        connection.execute(f"UPDATE leases SET expires_at = {expiry} WHERE holder = ?", [RESTORING])


def require_tools(database: Database) -> None:
    """Raise ConfigError where a program that is needed is not on the PATH."""
    for name in ("pg_dump", "pg_restore") if database.dialect == "postgresql" else ():
        _program(name)


def _copy_sqlite(source: Path, target: Path) -> None:
    try:
        address = f"file:{quote(str(source))}?mode=ro"
        with (
            closing(sqlite3.connect(address, uri=True, timeout=30)) as old,
            closing(sqlite3.connect(target, timeout=30)) as new,
        ):
            old.backup(new)
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode == sqlite3.SQLITE_FULL:
            raise NoRoomError(f"no room left to write {target}: free some room; nothing was replaced") from error
        raise ConfigError(f"{source} could not be copied to {target}: {error}") from error


def _settle(file: Path) -> None:
    """One file without a log beside it, flushed."""
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("PRAGMA journal_mode=DELETE")
    with file.open("rb") as stream:
        os.fsync(stream.fileno())


def _program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise ConfigError(
            f"{name} is not on the PATH: install PostgreSQL's client programs, of the server's version or a later one"
        )
    return found


def _run(url: sa.URL, program: str, *arguments: str) -> None:
    """Run a program of PostgreSQL's on the database. The password travels in the environment, where no one sees it."""
    from psycopg.conninfo import make_conninfo

    options = {name: value if isinstance(value, str) else ",".join(value) for name, value in url.query.items()}
    password = options.pop("password", None) or url.password
    port = None if url.port is None else str(url.port)
    given = {"host": url.host, "port": port, "user": url.username, "dbname": url.database}
    address = make_conninfo(**({name: value for name, value in given.items() if value is not None} | options))
    environment = os.environ | ({"PGPASSWORD": str(password)} if password else {})
    where = [f"--dbname={address}" if one == "--dbname=" else one for one in arguments]
    if program == "pg_dump":
        where.append(f"--dbname={address}")
    done = subprocess.run([_program(program), *where], env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line for line in done.stderr.strip().splitlines() if line]
        raise ConfigError(f"{program} failed: {lines[0] if lines else f'status {done.returncode}'}")
