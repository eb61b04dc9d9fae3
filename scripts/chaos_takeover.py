"""How long a dead holder keeps the lease: processes that hold it are killed or stopped, and another one waits for it.

The holder works under the name of another host, so that the one that waits cannot look whether its process is gone and must
wait until the lease runs out. On SQLite a holder is stopped between its writes only. `python chaos_takeover.py URL TTL` is
the holder: it writes rows under its token until it dies or is refused.
"""

from __future__ import annotations

import os
import random
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from chaos_servers import databases
from chaos_site import say

from activeseg.db import lease
from activeseg.db.database import Database
from activeseg.db.models import RequestRow
from activeseg.errors import LeaseError

REFUSED = 3
TRIES_EVERY = 0.25
PATIENCE = 30.0
ALLOWED = 2.0
"""Seconds beyond the lease."""


def hold(url: str, ttl: float) -> None:
    """Hold the lease as a process of another machine and write under it, until refused (exit status 3)."""
    socket.gethostname = lambda: "another-machine"
    database = Database(url)
    try:
        with lease.holding(database, ttl=ttl) as held:
            print("held", flush=True)
            while True:
                _write(database, held.token)
                time.sleep(0.05)
    except LeaseError:
        sys.exit(REFUSED)


def takeover(times: int, *, ttl: float, kind: str, seed: int) -> dict[str, Any]:
    """Seconds from SIGKILL and from SIGSTOP to the lease in another process's hands; writes of a stale holder."""
    with tempfile.TemporaryDirectory() as folder, databases(kind) as bases:
        url, dice = bases.make(Path(folder)), random.Random(seed)
        seconds: dict[str, list[float]] = {"SIGKILL": [], "SIGSTOP": []}
        refused = 0
        for number in range(times):
            for name, taken in seconds.items():
                waited, was_refused = _once(url, ttl, name, dice.uniform(0.2, ttl))
                taken.append(waited)
                refused += was_refused
                say(f"{name} {number + 1} of {times}: taken over after {waited:.2f} s")
        stale = _stale_writes(url)
    longest = max(max(taken) for taken in seconds.values())
    return {
        "takeovers": 2 * times,
        "lease_seconds": ttl,
        "tries_every_seconds": TRIES_EVERY,
        "seconds": {name: _summary(taken) for name, taken in seconds.items()},
        "longest": round(longest, 3),
        "allowed": ttl + ALLOWED,
        "stopped_holders_refused": f"{refused} of {times}",
        "stale_writes": stale,
        "holds": longest <= ttl + ALLOWED and refused == times and stale == 0,
    }


def _once(url: str, ttl: float, name: str, after: float) -> tuple[float, bool]:
    """Kill or stop a holder some seconds after it began; seconds until we have the lease, and whether it was refused."""
    command = [sys.executable, __file__, url, str(ttl)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True) as holder:
        try:
            return _take_over(holder, url, ttl, name, after)
        finally:
            holder.kill()  # also where this one was told to leave: it writes in a session of its own


def _take_over(holder: subprocess.Popen[bytes], url: str, ttl: float, name: str, after: float) -> tuple[float, bool]:
    if holder.stdout is None or holder.stdout.readline() != b"held\n":
        raise RuntimeError("the holder did not get the lease")
    time.sleep(after)
    database = Database(url)
    os.killpg(holder.pid, getattr(signal, name))
    until = time.monotonic() + PATIENCE
    while name == "SIGSTOP" and _stopped_inside_a_write(holder, database):
        if time.monotonic() > until:
            raise RuntimeError(f"in {PATIENCE:g} s the holder was never found outside a write")
        os.killpg(holder.pid, signal.SIGCONT)
        time.sleep(0.01)
        os.killpg(holder.pid, signal.SIGSTOP)
    began = time.monotonic()
    held = _wait_for(database, ttl)
    waited = time.monotonic() - began
    database.fence = held
    _write(database, held.token)
    refused = False
    if name == "SIGSTOP":
        os.killpg(holder.pid, signal.SIGCONT)
        refused = holder.wait(60) == REFUSED
    held.release()
    database.close()
    return waited, refused


def _stopped_inside_a_write(holder: subprocess.Popen[bytes], database: Database) -> bool:
    """Whether the holder keeps the one lock of SQLite, which nobody can take from a process that lives."""
    if database.dialect != "sqlite":
        return False
    os.waitpid(holder.pid, os.WUNTRACED)  # the signal is on its way before
    with closing(sqlite3.connect(str(database.url.database), timeout=0, isolation_level=None)) as connection:
        try:
            connection.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY:
                raise
            return True
        return False


def _wait_for(database: Database, ttl: float) -> lease.HeldLease:
    while True:
        try:
            return lease.acquire(database, "loop", ttl=ttl)
        except LeaseError:
            time.sleep(TRIES_EVERY)


def _write(database: Database, token: int) -> None:
    with database.write() as session:
        session.add(RequestRow(kind="takeover", argument={"token": token}, requested_by="chaos"))


def _stale_writes(url: str) -> int:
    """Rows of an older token behind one of a younger."""
    database = Database(url)
    with database.read() as session:
        tokens = [row["token"] for row in session.scalars(sa.select(RequestRow.argument).order_by(RequestRow.id))]
    database.close()
    return sum(later < max(tokens[:place]) for place, later in enumerate(tokens) if place)


def _summary(values: list[float]) -> dict[str, float]:
    ordered = sorted(values)
    figures = {"least": ordered[0], "median": ordered[len(ordered) // 2], "most": ordered[-1]}
    return {name: round(value, 3) for name, value in figures.items()}


if __name__ == "__main__":
    hold(sys.argv[1], float(sys.argv[2]))
