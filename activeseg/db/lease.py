"""The lease: one process acts at a time. Time is the database's clock, so hosts need not agree on theirs.

A holder that was paused past its expiry finds a larger token in the row: its next write transaction raises LeaseError
(`Database.fence`), so nothing it still believes can reach the tables.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import sqlalchemy as sa
from sqlalchemy.orm import Session

from activeseg.db.database import Database
from activeseg.db.models import Lease
from activeseg.db.processes import is_gone, this_process
from activeseg.errors import LeaseError

LOOP = "loop"
"""The lease of whoever moves the loop on."""
FILES = "files"
"""The lease of whoever copies stored files, or removes them; the loop only adds some, and goes on."""

TTL_SECONDS = 60.0

IDLE_SECONDS = 600.0
"""How long PostgreSQL waits for a process in the middle of a writing transaction. More than choosing the images of a round
takes, which is the longest that anything works out while it may write."""

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
            idle = f"{max(self.ttl, IDLE_SECONDS):.3f}s"
            row = row.add_columns(sa.func.set_config("idle_in_transaction_session_timeout", idle, True))
        found = session.scalar(row)
        if found != self.token:
            raise LeaseError(f"the lease {self.name!r} went to another process (token {self.token} -> {found}); this one stops")

    def renew(self) -> bool:
        """Move the expiry forward; False once another process took over."""
        clock = CLOCK[self.database.dialect]
        statement = f"UPDATE leases SET expires_at = {clock} + :ttl WHERE name = :name AND token = :token"
        with self.database.engine.begin() as connection:
            changed = connection.execute(sa.text(statement), {"ttl": self.ttl, "name": self.name, "token": self.token})
            return changed.rowcount == 1

    def release(self) -> None:
        """Let the next process in at once."""
        statement = "UPDATE leases SET expires_at = 0 WHERE name = :name AND token = :token"
        with self.database.engine.begin() as connection:
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
        WHERE leases.expires_at < {clock} RETURNING token"""
    )
    with database.engine.begin() as connection:
        token = connection.scalar(statement, {"name": name, "holder": holder, "ttl": ttl})
    if token is None:
        with database.read() as session:
            other = session.get(Lease, name)
        raise LeaseError(
            f"another process is at work on this database ({other.holder if other else 'unknown'}); try again later"
        )
    return HeldLease(database, name, holder, token, ttl)


def is_held(session: Session, name: str = LOOP) -> bool:
    """Whether a process holds the lease now, as far as can be seen from here; `acquire` decides."""
    dialect = session.get_bind().dialect.name
    clock = sa.literal_column(CLOCK[dialect], sa.Double)
    holder = session.scalar(sa.select(Lease.holder).where(Lease.name == name, Lease.expires_at >= clock))
    return holder is not None and not is_gone(holder)


def _expire_dead_holder(database: Database, name: str) -> None:
    """A killed process of this machine need not be waited for. Where this is wrong, the fence still refuses its writes."""
    with database.read() as session:
        row = session.get(Lease, name)
    if row is None or not is_gone(row.holder):
        return
    statement = sa.update(Lease).where(Lease.name == name, Lease.holder == row.holder).values(expires_at=0.0)
    with database.engine.begin() as connection:
        connection.execute(statement)


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
    while not stop.wait(lease.ttl / 3):
        try:
            if not lease.renew():
                return
        except sa.exc.SQLAlchemyError:
            # The database is away, busy or full: the next beat may succeed, and the fence decides in any case.
            continue
