"""/readyz: whether everything the loop needs is there, and whether it moves. For an orchestrator and for a monitor."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta

import anyio
import sqlalchemy as sa
from anyio import to_thread
from fastapi import Request
from fastapi.responses import JSONResponse

from activeseg.config import Settings
from activeseg.cron import planned
from activeseg.db.models.columns import now as utc_now
from activeseg.db.readiness import scheduler_seen, standing_still
from activeseg.db.tokens import Scope
from activeseg.errors import ActivesegError
from activeseg.storage.objects import ObjectSource
from activeseg.storage.sources import open_source
from activeseg.web.auth import bearer_of
from activeseg.wording import moment
from activeseg.workspace import Workspace

GRACE = timedelta(minutes=15)
"""A planned time that passed so long ago, and nothing of a scheduler since: there is none."""

PATIENCE_SECONDS = 5.0
"""A disk or a server that hangs must not hang the answer."""

FRESH_SECONDS = 5.0
"""An answer serves others for so long: the route is open, and its checks are work."""


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that must hold. sentence: how it is."""

    name: str
    ok: bool
    sentence: str


@dataclass(frozen=True, slots=True)
class Ready:
    """The answer of /readyz. checks: only for callers whose token may read."""

    status: str
    checks: list[Check] | None = None


class Readiness:
    """Looks at most once at a time, in a thread. now: aware; clock: seconds, monotonic."""

    def __init__(
        self,
        workspace: Workspace,
        *,
        now: Callable[[], datetime] = utc_now,
        clock: Callable[[], float] = time.monotonic,
        patience: float = PATIENCE_SECONDS,
    ) -> None:
        self._workspace, self._now, self._clock, self._patience = workspace, now, clock, patience
        self._since = now()
        self._looking = threading.Lock()
        self._found: tuple[float, list[Check]] | None = None

    async def checks(self) -> list[Check]:
        """The checks as they are now, or were a moment ago."""
        if (found := self._found) and self._clock() - found[0] < FRESH_SECONDS:
            return found[1]
        with anyio.move_on_after(self._patience):
            checks = await to_thread.run_sync(self._look_once, abandon_on_cancel=True)
            if checks is not None:
                return checks
        if found and self._clock() - found[0] < self._patience:
            return found[1]
        return [Check("answer", False, f"the checks did not end within {self._patience:g} s: a disk or a server hangs")]

    def _look_once(self) -> list[Check] | None:
        """None where another thread is at it and does not end: threads must not pile up behind a disk that hangs."""
        if not self._looking.acquire(timeout=self._patience / 2):
            return None
        try:
            if (found := self._found) and self._clock() - found[0] < FRESH_SECONDS:
                return found[1]
            checks = list(self._look())
            self._found = (self._clock(), checks)
            return checks
        finally:
            self._looking.release()

    def _look(self) -> Iterator[Check]:
        settings = self._workspace.settings
        yield _tried("database", self._database)
        yield _tried("pool", lambda: _pool(settings))
        yield _tried("artifacts", lambda: _artifacts(self._workspace))
        yield _tried("scheduler", self._scheduler)
        yield _tried("loop", self._loop)

    def _database(self) -> str:
        self._workspace.database.require_schema()
        return "reachable, its schema is this version's"

    def _scheduler(self) -> str:
        """Raises ActivesegError where a planned time passed GRACE ago and no scheduler was seen since.

        A server that has just started cannot have seen one yet: it counts from its own start then.
        """
        settings = self._workspace.settings
        with self._workspace.database.read() as session:
            seen = scheduler_seen(session)
        missed = _first_planned(settings, max(filter(None, (seen, self._since))))
        told = f"last seen at {moment(seen, settings.zone)}" if seen else "never seen on this database"
        if missed is not None and missed < self._now() - GRACE:
            when = moment(missed, settings.zone)
            raise ActivesegError(f"{told}; nobody ran what was planned for {when}: run `activeseg schedule`")
        return told

    def _loop(self) -> str:
        """Raises ActivesegError for what does not go on by itself."""
        settings = self._workspace.settings
        jobs = list(planned(settings.schedule))
        with self._workspace.database.read() as session:
            lines = standing_still(session, planned=jobs, at=self._now(), zone=settings.zone)
        if lines:
            raise ActivesegError("; ".join(lines)[:1000])
        return "nothing stands still"


async def readyz(request: Request) -> JSONResponse:
    """200 while all checks hold, else 503. Which ones do not is told to callers whose token may read."""
    readiness: Readiness = request.app.state.readiness
    checks = await readiness.checks()
    ok = all(check.ok for check in checks)
    body: dict[str, object] = {"status": "ready" if ok else "not ready"}
    if await _may_read(request):
        body["checks"] = [{"name": check.name, "ok": check.ok, "sentence": check.sentence} for check in checks]
    return JSONResponse(body, 200 if ok else 503)


async def _may_read(request: Request) -> bool:
    scheme, _, credentials = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer":
        return False
    try:
        caller = await bearer_of(request, credentials.strip())
    except sa.exc.SQLAlchemyError:
        # Without its table nobody can be told from anybody; that it is away stands in the status.
        return False
    return caller is not None and Scope.READ in caller.scopes


def _first_planned(settings: Settings, after: datetime) -> datetime | None:
    """The first planned time of any job after this moment."""
    start = after + timedelta(seconds=1)
    times = (next(plan.times(start), None) for plan in planned(settings.schedule).values())
    return min((found for found in times if found is not None), default=None)


def _pool(settings: Settings) -> str:
    source = open_source(settings.images_uri)
    if isinstance(source, ObjectSource):
        next(iter(source.bucket.list()), None)  # one request: the store lists in parts
    return "reachable"


def _artifacts(workspace: Workspace) -> str:
    folder = workspace.artifacts.root.absolute()
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.R_OK | os.W_OK | os.X_OK):
        raise ActivesegError(f"{there} cannot be read and written")
    free, floor = shutil.disk_usage(there).free / 1e9, workspace.settings.housekeeping.min_free_gb
    if free < floor:
        raise ActivesegError(f"{free:.1f} GB free, less than [housekeeping] min_free_gb = {floor:g}")
    return f"reachable, {free:.1f} GB free"


def _tried(name: str, check: Callable[[], str]) -> Check:
    try:
        return Check(name, True, check())
    except (ActivesegError, OSError) as error:
        return Check(name, False, str(error))
    except sa.exc.SQLAlchemyError:
        return Check(name, False, "the database did not answer as expected; `activeseg doctor` on the server says more")
