"""The application: routes, token, error answers. Everything it needs is handed in; two may live in one process."""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa
from anyio import CapacityLimiter
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from activeseg import __version__
from activeseg.config import Settings
from activeseg.db.database import Database
from activeseg.errors import SchemaError
from activeseg.web import answers
from activeseg.web.api import THUMBNAILS_AT_ONCE, api_router
from activeseg.web.auth import bearer_token
from activeseg.web.hooks import Hints, hook_router
from activeseg.web.metrics import metrics_router
from activeseg.workspace import Workspace


@dataclass(frozen=True, slots=True)
class Health:
    """The answer of /healthz."""

    status: str


def create_app(settings: Settings, database: Database) -> FastAPI:
    """An ASGI application over this database; the caller closes the database.

    Makes the token file at first use, and the webhook's where one is configured; without one its route does not exist.
    Raises ConfigError where a secret cannot be used.
    """
    # The documentation pages of FastAPI load scripts from outside; the schema itself is enough for programs.
    app = FastAPI(
        title="activeseg",
        version=__version__,
        description="Uncertainty rankings, images and rounds. Read only.",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.workspace = Workspace(settings, database)
    app.state.token = bearer_token(settings)
    app.state.thumbnails = CapacityLimiter(THUMBNAILS_AT_ONCE)
    answers.install(app)
    app.include_router(api_router())
    app.include_router(metrics_router())
    if (secret := settings.webhook_secret()) is not None:
        app.include_router(hook_router(Hints(database), secret))
    app.get("/healthz", response_model=Health, responses={503: {"model": answers.Problem}})(healthz)
    return app


def healthz(request: Request) -> JSONResponse:
    """200 while the database answers and has the schema this version knows, else 503. Needs no token, so it tells no more."""
    workspace: Workspace = request.app.state.workspace
    try:
        workspace.database.require_schema()
    except (SchemaError, sa.exc.SQLAlchemyError):
        return answers.problem(503, "the database is not ready; `activeseg doctor` on the server says why")
    return JSONResponse({"status": "ok"})
