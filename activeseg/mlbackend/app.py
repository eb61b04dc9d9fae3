"""The calls of Label Studio 1.23 to a machine-learning backend.

GET  /health     on connect and before each prediction; it waits 1 s
POST /setup      the same; 3 s. The answer names the model version
GET  /versions   the model page
POST /predict    a task without prediction is opened, or predictions are asked for; 100 s
POST /webhook    every event of the project, without authentication: nothing is done
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from anyio import CapacityLimiter, move_on_after, to_thread
from fastapi import APIRouter, Depends, FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException as StarletteHTTPException

from activeseg import __version__
from activeseg.errors import ActivesegError
from activeseg.listening import discard_body
from activeseg.mlbackend.answers import Answers, fitting_kind
from activeseg.mlbackend.auth import Login, require_login

MAX_BODY = 64 * 2**20
"""Tasks come with all their predictions and annotations."""

MAX_CONFIG_BODY = 4 * 2**20
"""A labeling configuration, and no tasks."""

MAX_CALLS = 16
"""Of /predict, and of /setup, from the first byte of the body to the answer: what they hold in memory is so bounded."""

BODY_SECONDS = 60.0
"""A sender that stops in the middle of its body must not keep its place for ever."""

_log = logging.getLogger(__name__)


class Places:
    """Places for calls that bring a body. For one event loop."""

    def __init__(self, count: int) -> None:
        self._free = count

    @contextmanager
    def one(self) -> Iterator[None]:
        """Holds a place, taken before anything is read; HTTP 503 where none is free."""
        if self._free <= 0:
            raise HTTPException(503, "too many calls are waiting already; try again later")
        self._free -= 1
        try:
            yield
        finally:
            self._free += 1


def create_app(answers: Answers, login: Login) -> FastAPI:
    """An ASGI application that answers by `answers` whoever knows the login."""
    app = FastAPI(title="activeseg ml-backend", version=__version__, docs_url=None, redoc_url=None, openapi_url=None)
    app.state.login, app.state.answers = login, answers
    # Its own limiter: calls that wait for the network must not keep /health from a thread.
    app.state.one_at_a_time = CapacityLimiter(1)
    # Places of its own: connecting does not fail because many tasks are opened.
    app.state.predictions, app.state.setups = Places(MAX_CALLS), Places(MAX_CALLS)
    app.add_exception_handler(StarletteHTTPException, _problem)
    app.add_exception_handler(ActivesegError, _not_ready)
    router = APIRouter(dependencies=[Depends(require_login)])
    router.get("/")(health)
    router.get("/health")(health)
    router.get("/versions")(versions)
    router.post("/setup")(setup)
    router.post("/predict")(predict)
    app.include_router(router)
    app.post("/webhook")(webhook)
    return app


async def health() -> dict[str, str]:
    """Up whether or not there is a champion: one may come."""
    return {"status": "UP"}


def versions(request: Request) -> dict[str, list[str]]:
    """The champion's version."""
    answers: Answers = request.app.state.answers
    version = answers.champion.version()
    return {"versions": [version] if version else []}


async def setup(request: Request) -> JSONResponse:
    """The champion's version; 409 where its classes are not the project's, which Label Studio shows as a failed connection."""
    setups: Places = request.app.state.setups
    with setups.one():
        body = await _json_body(request, MAX_CONFIG_BODY)
        config = body.get("schema")
        return await to_thread.run_sync(_set_up, request.app.state.answers, config if isinstance(config, str) else "")


def _set_up(answers: Answers, config: str) -> JSONResponse:
    label_set = answers.champion.label_set()
    if label_set is not None:
        try:
            fitting_kind(config, label_set)
        except ActivesegError as error:
            _log.warning("a project cannot be served: %s", error)
            return JSONResponse({"error": str(error)}, 409)
    return JSONResponse({"model_version": answers.champion.version() or ""})


async def predict(request: Request) -> JSONResponse:
    """{"results": [...]}, one for each task and in their order."""
    answers: Answers = request.app.state.answers
    limiter: CapacityLimiter = request.app.state.one_at_a_time
    predictions: Places = request.app.state.predictions
    came_at = time.monotonic()
    with predictions.one():
        body = await _json_body(request, MAX_BODY)
        tasks, config = body.get("tasks"), body.get("label_config")
        if not isinstance(tasks, list) or not isinstance(config, str):
            raise HTTPException(422, "expected {'tasks': [...], 'label_config': '...'}")
        results = await to_thread.run_sync(lambda: answers.predict(tasks, config, came_at=came_at), limiter=limiter)
        return JSONResponse({"results": results})


async def webhook(request: Request) -> dict[str, str]:
    """Label Studio makes this hook on connect and sends no authentication with it: it may say anything, and does nothing."""
    await discard_body(request)
    return {}


async def _json_body(request: Request, limit: int) -> dict[str, Any]:
    data = bytearray()
    with move_on_after(BODY_SECONDS) as waiting:
        async for part in request.stream():
            data += part
            if len(data) > limit:
                raise HTTPException(413, f"more than {limit} bytes: ask for fewer tasks at once")
    if waiting.cancelled_caught:
        raise HTTPException(408, f"the body was not whole after {BODY_SECONDS:.0f} s")
    try:
        body = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise HTTPException(422, "expected a JSON object") from error
    if not isinstance(body, dict):
        raise HTTPException(422, "expected a JSON object")
    return body


async def _problem(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, StarletteHTTPException)
    return JSONResponse({"error": error.detail}, error.status_code, dict(error.headers or {}))


async def _not_ready(request: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"error": str(error)}, 503)
