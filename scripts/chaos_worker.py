"""The program, killed from within at a count: `python chaos_worker.py TELL COUNT N WHEN -- activeseg's arguments`.

TELL: file that gets one JSON line: {"commits", "requests", "first_commit"} where it ends by itself, {"where"} where it is
killed. COUNT: 'commits' (writing transactions) or 'requests' (to Label Studio). N: at which one; 0 never. WHEN: 'before' or
'after'. The whole process group dies by SIGKILL, as where a machine loses its power: nothing is cleaned up.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import traceback
from collections import Counter
from pathlib import Path, PurePath
from typing import Any

import httpx
import sqlalchemy as sa


class Death:
    """Counts what happens and ends the process group where it was told to."""

    def __init__(self, tell: Path, count: str, at: int, when: str) -> None:
        self.tell, self.count, self.at, self.when = tell, count, at, when
        self.counts = Counter[str]()
        self.started = time.monotonic()
        self.first_commit: float | None = None

    def is_due(self, count: str) -> bool:
        """Count one; whether it is the one to die at."""
        self.counts[count] += 1
        return count == self.count and self.counts[count] == self.at

    def die(self) -> None:
        """End here. Says first which stage that was."""
        modules = [PurePath(frame.filename) for frame in traceback.extract_stack()]
        stages = [path.stem for path in modules if path.parent.name == "stages" or path.stem in ("loop", "jobs", "lease")]
        self.say({"where": stages[-1] if stages else "elsewhere"})
        os.killpg(0, signal.SIGKILL)

    def say(self, what: dict[str, Any]) -> None:
        """One JSON line, in the file before anything else happens."""
        self.tell.write_text(json.dumps(what), encoding="utf-8")

    def on_commit(self, connection: sa.Connection) -> None:
        """Dies before the commit reaches the database, or when it has."""
        if connection.get_execution_options().get("activeseg_begin") != "IMMEDIATE":
            return
        self.first_commit = self.first_commit or time.monotonic() - self.started
        if self.is_due("commits"):
            if self.when == "after":
                driver: Any = connection.connection.driver_connection
                # SQLAlchemy's event comes before the commit itself. sqlite3 leaves transactions to us; psycopg commits its own.
                driver.execute("COMMIT") if connection.dialect.name == "sqlite" else driver.commit()
            self.die()

    def watch_requests(self) -> None:
        """At the transport, beneath all of the client: dies before a request leaves, or when its answer has come."""
        send, death = httpx.HTTPTransport.handle_request, self

        def counted(self: httpx.HTTPTransport, request: httpx.Request) -> httpx.Response:
            due = death.is_due("requests")
            if due and death.when == "before":
                death.die()
            response = send(self, request)
            if due:
                response.read()
                death.die()
            return response

        httpx.HTTPTransport.handle_request = counted  # type: ignore[method-assign]


def work(words: list[str]) -> None:
    """The program, under a death."""
    tell, count, at, when, _, *arguments = words
    death = Death(Path(tell), count, int(at), when)
    sa.event.listen(sa.Engine, "commit", death.on_commit)
    death.watch_requests()
    from activeseg.cli import main as program

    sys.argv = ["activeseg", *arguments]
    try:
        program()
    finally:
        death.say(dict(death.counts) | {"first_commit": death.first_commit})


def in_a_fork(log: str, words: list[str]) -> None:
    """The same in a child of the harness: first made what a process of its own would be."""
    os.setsid()
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(output, stream.fileno())
    work(words)


if __name__ == "__main__":
    work(sys.argv[1:])
