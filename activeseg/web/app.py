"""The application: routes, gates, error answers. Everything it needs is handed in; two may live in one process."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from functools import cache

import sqlalchemy as sa
from anyio import CapacityLimiter
from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import JSONResponse
from starlette.routing import BaseRoute

from activeseg import __version__
from activeseg.config import Settings
from activeseg.db.database import Database
from activeseg.errors import SchemaError
from activeseg.hints import HOOK_PATH
from activeseg.web import answers, pages
from activeseg.web.api import api_router
from activeseg.web.auth import Keys, bearer_token, require_gates
from activeseg.web.guard import MAX_BODY, Guard
from activeseg.web.hooks import Hints, hook_router
from activeseg.web.hosts import Hosts
from activeseg.web.limits import Limits
from activeseg.web.metrics import metrics_router
from activeseg.web.operations import WRITES_AT_ONCE, RecentStatus, operations_router
from activeseg.web.pictures import PICTURES_AT_ONCE, pictures_router
from activeseg.web.ready import Readiness, Ready, readyz
from activeseg.web.sessions import LOGIN_PATH, Sessions
from activeseg.workspace import Workspace


@dataclass(frozen=True, slots=True)
class Health:
    """The answer of /healthz."""

    status: str


THREADS = 8
"""That read the database at once. More only wait for each other: with 40 an answer took ten times as long under load."""

OPEN_PATHS = {
    "/healthz": "for an orchestrator: a word",
    "/readyz": "for an orchestrator: a word; more only with a token",
    "/openapi.json": "the schema, the same on every installation",
    HOOK_PATH: "Label Studio's own secret is its key",
    LOGIN_PATH: "where a token is shown",
    "/static/{name}": "a style sheet and an icon",
}
"""The routes that ask for no scope, and why. Every other route asks for one, or the application does not start."""


def create_app(settings: Settings, database: Database, *, listening: str | None = None) -> FastAPI:
    """An ASGI application over this database; the caller closes the database.

    Makes the token file at first use, and the webhook's where one is configured; without one its route does not exist.
    listening: the host it listens on, where that is not `[serve] host`.
    Raises ConfigError where a secret cannot be used, or a name in `[serve] hosts` is none.
    """
    # The documentation pages of FastAPI load scripts from outside; the schema itself is enough for programs.
    app = FastAPI(
        routes=list(_routes()),
        title="activeseg",
        version=__version__,
        description="Uncertainty rankings, images, rounds and runs; asking for a round.",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        max_body_size=MAX_BODY,
    )
    workspace = Workspace(settings, database)
    section = settings.serve
    app.state.workspace = workspace
    app.state.keys = Keys(bearer_token(settings).value, database)
    app.state.hosts = Hosts.of(settings, listening=listening)
    app.state.limits = Limits(section.requests_per_minute)
    app.state.sessions = Sessions(timedelta(hours=section.session_hours))
    app.state.readiness = Readiness(workspace)
    app.state.pictures = CapacityLimiter(PICTURES_AT_ONCE)
    app.state.status = RecentStatus(workspace)
    app.state.writes = CapacityLimiter(WRITES_AT_ONCE)
    app.add_middleware(Guard, hosts=app.state.hosts, limits=app.state.limits, sessions=app.state.sessions)
    answers.install(app)
    pages.install(app)
    if (secret := settings.webhook_secret()) is not None:
        app.include_router(hook_router(Hints(database), secret))
    require_gates(app, OPEN_PATHS)
    return app


@cache
def _routes() -> tuple[BaseRoute, ...]:
    """Those that every installation has. They hold nothing of one, and their schemas take longer than all the rest."""
    router = APIRouter(max_body_size=MAX_BODY)
    for part in (api_router(), pictures_router(), operations_router(), metrics_router()):
        router.include_router(part)
    router.get("/healthz", response_model=Health, responses={503: {"model": answers.Problem}})(healthz)
    router.get("/readyz", response_model=Ready, responses={503: {"model": Ready}})(readyz)
    router.include_router(pages.pages_router())
    router.include_router(pages.own_pictures_router())
    return tuple(router.routes)


def healthz(request: Request) -> JSONResponse:
    """200 while the database answers and has the schema this version knows, else 503. Needs no token, so it tells no more."""
    workspace: Workspace = request.app.state.workspace
    try:
        workspace.database.require_schema()
    except (SchemaError, sa.exc.SQLAlchemyError):
        return answers.problem(503, "the database is not ready; `activeseg doctor` on the server says why")
    return JSONResponse({"status": "ok"})
