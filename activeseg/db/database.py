"""Engine and transactions. SQLite (embedded default) and PostgreSQL behave alike behind `Database`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import sqlalchemy as sa
from sqlalchemy.orm import Session, sessionmaker

from activeseg.errors import ConfigError, NoRoomError, SchemaError

SCHEMA_REVISION = "0006"
"""The Alembic revision this version works with; a test compares it with the head of `migrations/`."""

BUSY_SECONDS = 30
SQLITE_FULL = 13

IDLE_SECONDS = 60.0
"""How long PostgreSQL waits for a process in the middle of a write transaction before it ends that: no longer than a lease
lives. Time counts between two statements only, where nothing is worked out while a transaction may write."""

_IDLE_TOO_LONG = "25P03"


class Fence(Protocol):
    """Something that must still hold inside every write transaction (a lease)."""

    def check(self, session: Session) -> None:
        """Raise LeaseError where it does not."""


class Database:
    """One engine and its transactions.

    `read()` and `write()` yield a Session inside a transaction: commit at the end, roll back on an exception. Functions
    that take a Session never commit it. On SQLite `write()` takes the write lock at its start (BEGIN IMMEDIATE), so a
    transaction that reads and then writes cannot fail half-way on a competitor's write.

    fence: checked first in every write transaction while set; raises LeaseError once another process took over.
    """

    def __init__(self, url: str, *, engine: sa.Engine | None = None) -> None:
        self.url = _parse(url)
        self._borrowed = engine is not None
        self.engine = engine or _make_engine(self.url)
        self.fence: Fence | None = None
        self._reading = sessionmaker(self.engine, expire_on_commit=False)
        writing = self.engine.execution_options(activeseg_begin="IMMEDIATE")
        self._writing = sessionmaker(writing, expire_on_commit=False)

    def beside(self) -> Database:
        """Another one with a fence of its own, on the same engine, which stays open when it is closed.

        For a process that lives long and works in turns: SQLAlchemy keeps the statements it compiled for each engine it ever
        met, some 25 a round, so that memory would grow with every turn that makes an engine.
        """
        return Database(self.url.render_as_string(hide_password=False), engine=self.engine)

    @property
    def dialect(self) -> str:
        """'sqlite' or 'postgresql'."""
        return self.engine.dialect.name

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A transaction for reading."""
        with self._reading.begin() as session:
            yield session

    @contextmanager
    def write(self) -> Iterator[Session]:
        """A transaction for writing, refused with LeaseError when the fence no longer holds, NoRoomError on a full disk."""
        try:
            with self._writing.begin() as session:
                if self.fence is not None:
                    self.fence.check(session)
                elif self.dialect == "postgresql":
                    session.execute(sa.select(idle_at_most(IDLE_SECONDS)))
                yield session
        except Exception as error:
            if not _is_full(error):
                raise
            raise NoRoomError(
                f"no room left for database {self.masked_url} ({_first_line(error)}): run `activeseg gc`, or free some room on "
                "its disk; nothing of this transaction was written, and the next run goes on"
            ) from error

    def revision(self) -> str | None:
        """The schema's Alembic revision; None for an empty database. Raises SchemaError where it cannot be opened."""
        try:
            with self.engine.connect() as connection:
                if not sa.inspect(connection).has_table("alembic_version"):
                    return None
                found = connection.scalar(sa.text("SELECT version_num FROM alembic_version"))
        except sa.exc.DBAPIError as error:
            raise SchemaError(f"database {self.masked_url} cannot be opened: {_first_line(error)}") from error
        return None if found is None else str(found)

    def require_schema(self) -> None:
        """Raise SchemaError, naming the command that mends it, unless the schema is the one this version knows."""
        found = self.revision()
        if found is None:
            raise SchemaError(f"database {self.masked_url} has no schema yet: run `activeseg db upgrade`")
        if found != SCHEMA_REVISION:
            raise SchemaError(
                f"database {self.masked_url} is at schema {found}, this version needs {SCHEMA_REVISION}: "
                "run `activeseg db upgrade`, or install the activeseg version that made it"
            )

    @property
    def masked_url(self) -> str:
        """The URL without its password."""
        return self.url.render_as_string(hide_password=True)

    def close(self) -> None:
        """Return all connections."""
        if not self._borrowed:
            self.engine.dispose()


def idle_at_most(seconds: float) -> sa.ColumnElement[str]:
    """Selected in a transaction of PostgreSQL: the server ends it once it has heard nothing for so long between two statements;
    0: never, whatever the server's own setting.

    A process that is paused, or whose host is gone, would otherwise keep its locks for ever.
    """
    return sa.func.set_config("idle_in_transaction_session_timeout", f"{seconds:.3f}s", True)


def was_ended(error: BaseException) -> bool:
    """Whether PostgreSQL ended this process's transaction because it heard nothing for too long: see `idle_at_most`."""
    return isinstance(error, sa.exc.DBAPIError) and getattr(error.orig, "sqlstate", None) == _IDLE_TOO_LONG


def _parse(text: str) -> sa.URL:
    """Raises ConfigError, without a password, for what is no URL of a supported database and driver."""
    # What cannot be parsed may hold a password all the same.
    shown = re.sub(r"://.*@", "://***@", text)
    expected = f"[database] url: expected sqlite:///file or postgresql+psycopg://..., got {shown!r}"
    try:
        url = sa.make_url(text)
    except (sa.exc.ArgumentError, ValueError):
        raise ConfigError(expected) from None
    if url.drivername not in ("sqlite", "sqlite+pysqlite", "postgresql", "postgresql+psycopg"):
        raise ConfigError(expected)
    return url.set(drivername="postgresql+psycopg") if url.drivername == "postgresql" else url


def _make_engine(url: sa.URL) -> sa.Engine:
    if url.get_backend_name() == "postgresql":
        return sa.create_engine(url, pool_pre_ping=True)
    if url.database and url.database != ":memory:":
        _make_folder(Path(url.database).parent)
    engine = sa.create_engine(url, connect_args={"timeout": BUSY_SECONDS})
    sa.event.listen(engine, "connect", _configure_sqlite)
    sa.event.listen(engine, "begin", _begin_sqlite)
    return engine


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"[database] url: folder {folder} cannot be made: {error.strerror}") from error


def _configure_sqlite(connection: Any, record: Any) -> None:
    # The driver must not open transactions on its own: `_begin_sqlite` decides which kind.
    connection.isolation_level = None
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_sqlite(connection: sa.Connection) -> None:
    kind = connection.get_execution_options().get("activeseg_begin", "DEFERRED")
    connection.exec_driver_sql(f"BEGIN {kind}")


def _is_full(error: Exception) -> bool:
    """Whether SQLite or PostgreSQL (53100 disk_full) has no room left on its disk."""
    cause = getattr(error, "orig", None) or error
    return getattr(cause, "sqlite_errorcode", None) == SQLITE_FULL or getattr(cause, "sqlstate", None) == "53100"


def _first_line(error: Exception) -> str:
    return str(getattr(error, "orig", None) or error).strip().splitlines()[0]
