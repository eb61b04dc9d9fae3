"""A process that works on a workspace and is killed by SIGKILL right after its n-th commit."""

from __future__ import annotations

import os
import shutil
import signal
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx

from activeseg.config import load_settings
from activeseg.db import lease, rounds
from activeseg.db.database import Database
from activeseg.db.models import QueryStatus, RoundStatus
from activeseg.errors import LeaseError
from activeseg.labelstudio.client import LabelStudioClient
from activeseg.loop import advance_round
from activeseg.stages.dataset import import_dataset
from activeseg.workspace import open_workspace
from tests.factories import WorkspaceFactory


def die_after(database: Database, commits: int) -> None:
    """Let this process be killed the moment its n-th writing transaction is committed."""
    import sqlalchemy as sa

    done = 0

    def count(connection: sa.Connection) -> None:
        nonlocal done
        if connection.get_execution_options().get("activeseg_begin") == "IMMEDIATE":
            done += 1
            if done == commits:
                # The commit event comes before the commit itself: let the driver finish it, then die.
                connection.connection.driver_connection.execute("COMMIT")
                os.kill(os.getpid(), signal.SIGKILL)

    sa.event.listen(database.engine, "commit", count)


class Copies:
    """Copies of a folder as a kill would leave it: numbered folders below `into`, made while the process goes on."""

    def __init__(self, folder: Path, into: Path) -> None:
        self.folder, self.into, self.made = folder, into, 0
        self.lock = threading.Lock()

    def make(self) -> None:
        """Copy the folder as it is now."""
        with self.lock:
            self.made += 1
            shutil.copytree(self.folder, self.into / f"{self.made:03d}", copy_function=_copy)

    def after_every_commit(self, database: Database) -> None:
        """Copy it the moment a writing transaction is committed, from now on."""
        import sqlalchemy as sa

        def copy(connection: sa.Connection) -> None:
            if connection.get_execution_options().get("activeseg_begin") == "IMMEDIATE":
                # The commit event comes before the commit itself; SQLAlchemy then commits a transaction without content.
                driver = connection.connection.driver_connection
                driver.execute("COMMIT")
                self.make()
                driver.execute("BEGIN")

        sa.event.listen(database.engine, "commit", copy)


def _copy(source: str, target: str) -> None:
    with suppress(FileNotFoundError):  # another thread has just given it its name, or thrown it away
        shutil.copy2(source, target)


def advance_and_copy(config: Path, into: Path) -> None:
    """One call of the loop, without Label Studio, and a copy of its folder after every commit."""
    import torch

    torch.set_num_threads(1)
    with open_workspace(load_settings(config)) as workspace:
        Copies(config.parent, into).after_every_commit(workspace.database)
        advance_round(workspace, None)


def advance(config: Path, commits: int | None) -> None:
    """One call of the loop, without Label Studio; killed after its n-th commit where a number is given."""
    import torch

    torch.set_num_threads(1)
    with open_workspace(load_settings(config)) as workspace:
        if commits is not None:
            die_after(workspace.database, commits)
        advance_round(workspace, None)


class DiesInFlight(httpx.BaseTransport):
    """Kills this process when the server has made the tasks and before the program learns of it."""

    def __init__(self) -> None:
        self.inner = httpx.HTTPTransport()

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        response = self.inner.handle_request(request)
        if request.url.path.endswith("/import") and b"return_task_ids" in request.url.query:
            response.read()
            os.kill(os.getpid(), signal.SIGKILL)
        return response


def advance_with_label_studio(config: Path, commits: int | None, dies_in_flight: bool) -> None:
    """The same with Label Studio; killed after its n-th commit, or with a request for tasks in flight."""
    settings = load_settings(config)
    token = settings.labelstudio_token().get_secret_value()
    transport = DiesInFlight() if dies_in_flight else None
    with (
        open_workspace(settings) as workspace,
        LabelStudioClient(settings.labelstudio.url, token, transport=transport) as client,
    ):
        if commits is not None:
            die_after(workspace.database, commits)
        advance_round(workspace, client)


class StopsBeforeSending(httpx.BaseTransport):
    """Stops this process, as a laptop that is closed, between the journal row and the request for tasks."""

    def __init__(self) -> None:
        self.inner = httpx.HTTPTransport()
        self.stopped = False

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        if not self.stopped and request.url.path.endswith("/import") and b"return_task_ids" in request.url.query:
            self.stopped = True
            os.kill(os.getpid(), signal.SIGSTOP)
        return self.inner.handle_request(request)


def push_and_stop(folder: Path, database_url: str, sections: dict[str, dict[str, Any]], pool: int, outcome: Path) -> None:
    """Push a round under a lease of two seconds, stopped with the request for its tasks unsent; says how it ended."""
    factory = WorkspaceFactory(folder, database_url)
    workspace = factory(pool=pool, **sections)
    settings = workspace.settings
    token = settings.labelstudio_token().get_secret_value()
    with LabelStudioClient(settings.labelstudio.url or "", token, transport=StopsBeforeSending()) as client:
        try:
            with lease.holding(workspace.database, ttl=2.0):
                advance_round(workspace, client)
        except LeaseError as error:
            outcome.write_text(str(error), encoding="utf-8")
    factory.close()


def answer(config: Path) -> None:
    """Give every open query its true mask, as a person with any tool would."""
    folder = config.parent
    with open_workspace(load_settings(config)) as workspace:
        with workspace.database.read() as session:
            standing = rounds.unfinished(session, RoundStatus.PUSHED)
            asked = [ref for row in standing for _, ref in rounds.queries(session, row.id, QueryStatus.PUSHED)]
        masks = folder / "answers"
        masks.mkdir(exist_ok=True)
        for ref in asked:
            name = f"{Path(ref.uri).stem}.png"
            (masks / name).write_bytes((folder / "truth" / name).read_bytes())
        with lease.holding(workspace.database):
            import_dataset(workspace, workspace.settings.images_uri, masks, None)
