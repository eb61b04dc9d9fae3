"""The routes about the loop itself: where it stands, what ran, who was told, and asking for a round."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import tzinfo
from typing import Annotated, Any

from anyio import to_thread
from fastapi import APIRouter, Depends, Query, Request
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy.orm import Session

from activeseg.db import history, jobs, lease, readiness, requests
from activeseg.db.history import AlertRow
from activeseg.db.jobs import RunRecord
from activeseg.db.status import read_status
from activeseg.web.answers import Problem
from activeseg.web.api import MAX_ID, MAX_PAGE, InWorkspace
from activeseg.web.auth import OperatingCaller, require_token
from activeseg.wording import moment
from activeseg.workspace import Workspace

WRITES_AT_ONCE = 2
RECENT_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class RunsPage:
    """A page of runs. next: send it as `after` for older ones; null at the end."""

    items: list[RunRecord]
    next: int | None


@dataclass(frozen=True, slots=True)
class Alerts:
    """waiting: still to be sent, oldest first. given_up: not tried any more, last: somebody was told; youngest first."""

    waiting: list[AlertRow]
    given_up: list[AlertRow]
    last: list[AlertRow]


@dataclass(frozen=True, slots=True)
class Asked:
    """What became of asking for a round. new: false where one was waiting already. what: what happens now."""

    new: bool
    what: str


class RunsQuery(BaseModel):
    """What may be asked of /api/runs."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    limit: int = Field(50, ge=1, le=MAX_PAGE, description="rows of this page")
    after: int | None = Field(None, ge=1, le=MAX_ID, description="the 'next' value of the page before")


class AlertsQuery(BaseModel):
    """What may be asked of /api/alerts."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    limit: int = Field(20, ge=1, le=MAX_PAGE, description="rows of each of the three lists")


def operations_router() -> APIRouter:
    """The routes, each behind a scope."""
    responses: dict[int | str, dict[str, object]] = {status: {"model": Problem} for status in (401, 403, 422, 503)}
    router = APIRouter(prefix="/api", responses=responses)
    reading = [Depends(require_token)]
    router.get("/status", dependencies=reading)(status)
    router.get("/runs", dependencies=reading)(runs)
    router.get("/alerts", dependencies=reading)(alerts)
    router.post("/rounds", status_code=202)(request_round)
    return router


class RecentStatus:
    """The status as it was a second ago at most: it is some thirty queries, and who asks again and again shares them."""

    def __init__(self, workspace: Workspace, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._workspace, self._clock = workspace, clock
        self._reading = threading.Lock()
        self._found: tuple[float, dict[str, Any]] | None = None

    def read(self) -> dict[str, Any]:
        """As `activeseg status --json` prints it. Blocks; one thread reads at a time."""
        with self._reading:
            if self._found is None or self._clock() - self._found[0] >= RECENT_SECONDS:
                with self._workspace.database.read() as session:
                    found = read_status(session, self._workspace.settings)
                self._found = (self._clock(), found)
            return self._found[1]


def status(request: Request) -> dict[str, Any]:
    """What `activeseg status --json` prints: champion, images, annotations, rounds, what happens next, problems."""
    recent: RecentStatus = request.app.state.status
    return recent.read()


def runs(workspace: InWorkspace, asked: Annotated[RunsQuery, Query()]) -> RunsPage:
    """The runs of the scheduler's jobs, youngest first: when, where, and how each ended, in a sentence."""
    with workspace.database.read() as session:
        rows = jobs.history(session, limit=asked.limit + 1, after=asked.after)
    items = rows[: asked.limit]
    return RunsPage(items, items[-1].run if len(rows) > asked.limit else None)


def alerts(workspace: InWorkspace, asked: Annotated[AlertsQuery, Query()]) -> Alerts:
    """What a person should know: not told yet, never told, told."""
    with workspace.database.read() as session:
        kinds = (history.waiting_alerts, history.given_up_alerts, history.last_alerts)
        return Alerts(*(read(session, limit=asked.limit) for read in kinds))


async def request_round(request: Request, caller: OperatingCaller) -> Asked:
    """Ask the scheduler for a round now. Only a row is written here; one that waits already is not doubled."""
    return await ask_for_round(request, caller.name)


async def ask_for_round(request: Request, name: str) -> Asked:
    """Write the request, in the name of a token."""
    state = request.app.state
    # A locked database keeps these threads waiting, and no others.
    return await to_thread.run_sync(_ask, state.workspace, name, limiter=state.writes)


def _ask(workspace: Workspace, name: str) -> Asked:
    with workspace.database.read() as session:
        # Looked at first: who asks again and again takes no lock that the loop waits for.
        if requests.is_waiting(session, [requests.ROUND]):
            return Asked(False, what_follows(session, workspace.settings.zone))
    with workspace.database.write() as session:
        new = requests.ask(session, requests.ROUND, requested_by=f"web: {name}"[:100])
    if new:
        logging.getLogger(__name__).info("a round was asked for by %s", name)
    with workspace.database.read() as session:
        return Asked(new, what_follows(session, workspace.settings.zone))


def what_follows(session: Session, zone: tzinfo) -> str:
    """What becomes of a request that waits. zone: in which times are told."""
    if (run := readiness.scheduler_at_work(session)) is not None:
        return f"the scheduler is at work ({run.job} since {moment(run.started_at, zone)}) and takes it up next"
    if lease.is_held(session):
        return "another process is at work; the scheduler begins a round after it"
    seen = readiness.scheduler_seen(session)
    if seen is None:
        return "no scheduler was ever seen on this database; the round begins once `activeseg schedule` runs"
    return f"the scheduler, last seen at {moment(seen, zone)}, begins a round within seconds while it runs"
