"""The lease: one process acts at a time. Time is the database's clock, so hosts need not agree on theirs.

That clock may have run ahead and been put right: a lease that would live on for more than twice its time was taken or renewed
before, and counts as run out. A holder that lives is told so by its next write.

A holder that was paused past its expiry finds a larger token in the row: its next write transaction raises LeaseError
(`Database.fence`), so nothing it still believes can reach the tables.

One that was paused in the middle of a transaction keeps the row itself. PostgreSQL ends a transaction in which nothing was
said for the lease's time to live; where the server waits in the middle of a statement (COPY, a large answer), whoever comes
next ends it. SQLite keeps its one lock for as long as the process lives: whoever comes next is told so.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

import sqlalchemy as sa
from sqlalchemy.orm import Session

from activeseg.db.database import IDLE_SECONDS, Database, idle_at_most
from activeseg.db.models import Lease
from activeseg.db.processes import is_gone, this_process
from activeseg.errors import LeaseError

LOOP = "loop"
"""The lease of whoever moves the loop on."""
FILES = "files"
"""The lease of whoever copies stored files, or removes them; the loop only adds some, and goes on."""

TTL_SECONDS = IDLE_SECONDS

LOCK_SECONDS = 1.0
"""How long a statement on the lease's row waits for it at a time, on PostgreSQL."""
_LOCK_NOT_AVAILABLE = "55P03"

_LOCKS = 7_206_115
"""First half of PostgreSQL's advisory locks: shared by each transaction that takes a lease or writes under it, held alone while
the tables are replaced. The second half is the lease's name."""

# julianday has a resolution of a millisecond; strftime('%s') would cut to seconds.
CLOCK = {
    "sqlite": "((julianday('now') - 2440587.5) * 86400.0)",
    "postgresql": "EXTRACT(EPOCH FROM clock_timestamp())",
}


class HeldLease:
    """A lease this process holds; `check` proves it inside a transaction."""

    def __init__(self, database: Database, name: str, holder: str, token: int, ttl: float) -> None:
        self.database, self.name, self.holder, self.token, self.ttl = database, name, holder, token, ttl

    def check(self, session: Session) -> None:
        """Raise LeaseError when another process took over. Locks the row, so that nobody takes over before the commit."""
        row = sa.select(Lease.token).where(Lease.name == self.name).with_for_update()
        if self.database.dialect == "postgresql":
            # A process that is paused in the middle of this transaction would keep the row, and with it everybody, for ever.
            row = row.add_columns(idle_at_most(self.ttl), sa.func.pg_try_advisory_xact_lock_shared(_LOCKS, _number(self.name)))
        answer = session.execute(row).first()
        found = None if answer is None else answer[0]
        if answer is not None and answer[-1] is False:
            raise LeaseError(_RESTORING)
        if found != self.token:
            raise LeaseError(f"the lease {self.name!r} went to another process (token {self.token} -> {found}); this one stops")

    def renew(self) -> bool:
        """Move the expiry forward; False once another process took over."""
        clock = CLOCK[self.database.dialect]
        statement = f"UPDATE leases SET expires_at = {clock} + :ttl WHERE name = :name AND token = :token"
        with _short(self.database, self.ttl) as connection:
            changed = connection.execute(sa.text(statement), {"ttl": self.ttl, "name": self.name, "token": self.token})
            return changed.rowcount == 1

    def release(self) -> None:
        """Let the next process in at once."""
        statement = "UPDATE leases SET expires_at = 0 WHERE name = :name AND token = :token"
        with _short(self.database, self.ttl) as connection:
            connection.execute(sa.text(statement), {"name": self.name, "token": self.token})


def acquire(database: Database, name: str, *, ttl: float = TTL_SECONDS) -> HeldLease:
    """Take the lease if it is free, expired, or held by a process of this machine (or container) that is gone.

    Raises LeaseError that names the holder otherwise.
    """
    clock = CLOCK[database.dialect]
    holder = this_process()
    _expire_dead_holder(database, name)
    statement = sa.text(
        f"""INSERT INTO leases (name, holder, token, expires_at) VALUES (:name, :holder, 1, {clock} + :ttl)
        ON CONFLICT (name) DO UPDATE SET holder = excluded.holder, token = leases.token + 1, expires_at = excluded.expires_at
        WHERE leases.expires_at < {clock} OR leases.expires_at > {clock} + :too_long RETURNING token"""
    )
    until = time.monotonic() + ttl + 2 * LOCK_SECONDS
    while (token := _taken(database, name, statement, holder, ttl)) is None:
        with database.read() as session:
            other = session.get(Lease, name)
            free = session.scalar(sa.select(Lease.name).where(Lease.name == name, ~_lives(session, ttl))) is not None
        # SQLite's lock is one for all, and anybody may have it; else who waits for a lease waits for its holder.
        idle = database.dialect == "sqlite" and (other is None or other.expires_at == 0)
        who = other.holder if other else "unknown"
        if not free and not idle:
            raise LeaseError(f"another process is at work on this database ({who}); try again later")
        if time.monotonic() > until and idle:
            raise LeaseError(
                "the database stays locked by somebody who writes to it, and nobody holds the lease: try again later, or look "
                f"which process has {database.url.database} open"
            )
        if time.monotonic() > until:
            raise LeaseError(
                f"another process is at work on this database ({who}), or was stopped in the middle of a write: try again "
                "later, or end it"
            )
        # Its time is over and its row is locked: somebody is in the middle of a write, or was paused there.
        _end_paused(database, name, ttl)
    return HeldLease(database, name, holder, token, ttl)


def _taken(database: Database, name: str, statement: sa.TextClause, holder: str, ttl: float) -> int | None:
    """The new token; None where another process has the lease, or its row for longer than LOCK_SECONDS (on SQLite the whole
    database, for longer than the engine waits)."""
    try:
        with _short(database, ttl) as connection:
            if database.dialect == "postgresql":
                allowed = sa.select(sa.func.pg_try_advisory_xact_lock_shared(_LOCKS, _number(name)))
                if not connection.scalar(allowed):
                    raise LeaseError(_RESTORING)
            values = {"name": name, "holder": holder, "ttl": ttl, "too_long": _too_long(ttl)}
            token: int | None = connection.scalar(statement, values)
            return token
    except sa.exc.DBAPIError as error:
        if not _is_locked(error):
            raise
        return None


def _is_locked(error: sa.exc.DBAPIError) -> bool:
    """Whether somebody else's write was waited for in vain."""
    if isinstance(error.orig, sqlite3.OperationalError):
        # The low byte: the rest says how it came to be locked.
        return error.orig.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY
    return getattr(error.orig, "sqlstate", None) == _LOCK_NOT_AVAILABLE


_RESTORING = "a backup is being restored into this database; try again later"


def _number(name: str) -> int:
    """Of a lease, for an advisory lock."""
    return zlib.crc32(name.encode()) & 0x7FFFFFFF


@contextmanager
def _short(database: Database, ttl: float) -> Iterator[sa.Connection]:
    """A transaction of one statement on the lease's row, which a process may be paused in as well."""
    with database.engine.begin() as connection:
        if database.dialect == "postgresql":
            wait = f"{min(LOCK_SECONDS, ttl / 3):.3f}s"
            connection.execute(sa.select(idle_at_most(ttl), sa.func.set_config("lock_timeout", wait, True)))
        yield connection


def _lives(session: Session, ttl: float = TTL_SECONDS) -> sa.ColumnElement[bool]:
    clock = sa.literal_column(CLOCK[session.get_bind().dialect.name], sa.Double)
    return Lease.expires_at.between(clock, clock + _too_long(ttl))


def _too_long(ttl: float) -> float:
    """More seconds than any lease has left, also after the clock was put back a little; whose ttl it was is not known."""
    return 2 * max(ttl, TTL_SECONDS)


def _end_paused(database: Database, name: str, ttl: float) -> None:
    """End connections that write under a lease that ran out where the server waits for them in the middle of a statement that
    is older than `ttl` seconds: there PostgreSQL counts no idle time, nor since when it waits."""
    if database.dialect != "postgresql":
        return
    statement = sa.text(
        """SELECT pg_terminate_backend(activity.pid) FROM pg_locks AS held JOIN pg_stat_activity AS activity USING (pid)
        WHERE held.locktype = 'advisory' AND held.classid = :locks AND held.objid = :number AND held.objsubid = 2
        AND held.database = (SELECT oid FROM pg_database WHERE datname = current_database())
        AND activity.pid <> pg_backend_pid() AND activity.state = 'active' AND activity.wait_event_type = 'Client'
        AND activity.state_change < clock_timestamp() - make_interval(secs => :ttl)"""
    )
    try:
        with database.engine.begin() as connection:
            connection.execute(statement, {"locks": _LOCKS, "number": _number(name), "ttl": ttl})
    except sa.exc.ProgrammingError as error:  # of another role, which this one may not end
        logging.getLogger(__name__).debug("a paused holder of %r could not be ended: %s", name, error.orig)


@contextmanager
def barred(database: Database, names: Sequence[str]) -> Iterator[None]:
    """Let nobody take these leases, nor write under them, though the table itself is replaced meanwhile. PostgreSQL only: on
    SQLite the row that is copied in says so (`housekeeping.dumps`).

    Needs the leases. Raises LeaseError where somebody is in the middle of a write for longer than a lease lives.
    """
    if database.dialect != "postgresql":
        yield
        return
    # In a transaction that lasts: behind a pooler that shares connections between transactions, a lock of the session would
    # stay with a connection that others get.
    with database.engine.connect() as connection:
        try:
            wait = sa.func.set_config("lock_timeout", f"{TTL_SECONDS + 2:.0f}s", True)
            connection.execute(sa.select(wait, idle_at_most(0)))
            for name in names:
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCKS, _number(name))))
        except sa.exc.DBAPIError as error:
            connection.invalidate()
            raise LeaseError(
                f"another process is in the middle of a write; nothing was replaced: try again after it ({error.orig})"
            ) from error
        try:
            yield
        finally:
            # Closing alone would leave it to the server when the locks go. Where the connection is gone already, that is no
            # error of what was done meanwhile.
            with suppress(sa.exc.DBAPIError):
                connection.rollback()
            connection.invalidate()


def is_held(session: Session, name: str = LOOP) -> bool:
    """Whether a process holds the lease now, as far as can be seen from here; `acquire` decides."""
    holder = session.scalar(sa.select(Lease.holder).where(Lease.name == name, _lives(session)))
    return holder is not None and not is_gone(holder)


def _expire_dead_holder(database: Database, name: str) -> None:
    """A killed process of this machine need not be waited for. Where this is wrong, the fence still refuses its writes."""
    with database.read() as session:
        row = session.get(Lease, name)
    if row is None or not is_gone(row.holder):
        return
    statement = sa.update(Lease).where(Lease.name == name, Lease.holder == row.holder).values(expires_at=0.0)
    try:
        with _short(database, TTL_SECONDS) as connection:
            connection.execute(statement)
    except sa.exc.DBAPIError as error:
        # In the middle of a write it was killed in: the server ends that by itself.
        if not _is_locked(error):
            raise


@contextmanager
def holding(database: Database, name: str = LOOP, *, ttl: float = TTL_SECONDS) -> Iterator[HeldLease]:
    """Hold the lease and fence every write with it. Re-entrant: an outer holder of this Database keeps it.

    A thread renews it every third of its time to live; a process that dies lets it expire.
    """
    if isinstance(database.fence, HeldLease):
        yield database.fence
        return
    lease = acquire(database, name, ttl=ttl)
    database.fence = lease
    stop = threading.Event()
    thread = threading.Thread(target=_keep_renewing, args=(lease, stop), name=f"lease-{name}", daemon=True)
    thread.start()
    try:
        yield lease
    finally:
        stop.set()
        thread.join()
        database.fence = None
        _let_go(lease)


def _let_go(lease: HeldLease) -> None:
    try:
        lease.release()
    except sa.exc.DBAPIError as error:
        # The work is done or has an error of its own: neither may be hidden. The lease runs out by itself.
        logging.getLogger(__name__).warning("the lease %r could not be released: %s", lease.name, error.orig)


def _keep_renewing(lease: HeldLease, stop: threading.Event) -> None:
    pause = lease.ttl / 3
    while not stop.wait(pause):
        pause = lease.ttl / 3
        try:
            if not lease.renew():
                return
        except sa.exc.SQLAlchemyError:
            # The database is away or full, or the row is locked by our own write: soon again. The fence decides in any case.
            pause = lease.ttl / 30
