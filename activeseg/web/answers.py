"""How the API answers when something is wrong, and the headers on every answer."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from http import HTTPStatus

import sqlalchemy as sa
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from activeseg.errors import ActivesegError, DataError, NotReadyError
from activeseg.web.render import page

HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
"""On every answer, unless the route sets another value. Pages allow their own style sheet and pictures."""

NO_DATABASE = (sa.exc.DatabaseError, sa.exc.InterfaceError, sa.exc.TimeoutError)
"""What the driver raises when the database is away, damaged or of another schema."""


@dataclass(frozen=True, slots=True)
class Problem:
    """Every answer that is not 200. error: one sentence."""

    error: str


class SecurityHeaders:
    """ASGI middleware that puts HEADERS on every answer."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on, adding the headers where the answer starts."""

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        await self.app(scope, receive, send_with_headers if scope["type"] == "http" else send)


def install(app: FastAPI) -> None:
    """Add the headers and the error answers to an application."""
    app.add_middleware(SecurityHeaders)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(ActivesegError, _known)
    for kind in NO_DATABASE:
        app.add_exception_handler(kind, _no_database)
    app.add_exception_handler(Exception, _bug)


def answer(request: Request, status: int, sentence: str, headers: dict[str, str] | None = None) -> Response:
    """A problem as a page where a browser asked for one, else as JSON."""
    if "text/html" in request.headers.get("accept", "") and not request.url.path.startswith("/api"):
        return page("problem.html", status, headers, status=status, sentence=sentence)
    return problem(status, sentence, headers)


def problem(status: int, sentence: str, headers: dict[str, str] | None = None) -> JSONResponse:
    """The one form of an error answer."""
    return JSONResponse({"error": sentence}, status, headers)


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    sentence = error.detail
    if sentence == HTTPStatus(error.status_code).phrase:
        sentence = f"{sentence.lower()}: {request.method} {request.url.path[:200]}; see /openapi.json"
    return answer(request, error.status_code, sentence, dict(error.headers or {}))


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"][1:])
    message = first["msg"].removeprefix("Value error, ")
    return answer(request, 422, f"{place[:100]}: {message} (got {str(first.get('input'))[:80]!r})")


async def _known(request: Request, error: Exception) -> Response:
    # What a caller asked wrongly is answered in the routes; here it is the state of things that does not allow it.
    return answer(request, 409 if isinstance(error, NotReadyError | DataError) else 503, str(error))


async def _no_database(request: Request, error: Exception) -> Response:
    logging.getLogger(__name__).error("the database failed on %s", request.url.path, exc_info=error)
    return answer(request, 503, "the database did not answer as expected; `activeseg doctor` on the server says more")


async def _bug(request: Request, error: Exception) -> JSONResponse:
    # Runs outside all middleware, so it brings the headers itself. The server logs the traceback.
    return problem(500, "internal error; the server's log says more", HEADERS)
