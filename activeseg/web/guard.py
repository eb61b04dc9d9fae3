"""What is looked at before any route: the size of the head, the Host header, how much this caller asked lately."""

from __future__ import annotations

import math

import anyio
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from activeseg.db import tokens
from activeseg.web import answers
from activeseg.web.hosts import Hosts
from activeseg.web.limits import Limits
from activeseg.web.sessions import LOGIN_PATH, Sessions

MAX_TARGET = 16 * 1024
MAX_HEAD = 16 * 1024
MAX_HEADERS = 100
MAX_BODY = 16 * 1024
"""Of a request; Label Studio's hints, of which nothing is kept, may be larger."""

BODY_SECONDS = 10.0
"""From one part of a body to the next."""


class Guard:
    """ASGI middleware. Refuses in this order: 431 and 414 for a head too large, 400 and 421 for a wrong Host, 429."""

    def __init__(self, app: ASGIApp, *, hosts: Hosts, limits: Limits, sessions: Sessions) -> None:
        self.app, self._hosts, self._limits, self._sessions = app, hosts, limits, sessions

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on, or answer."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        refusal = self._misshaped(scope) or self._too_much(scope)
        if refusal is not None:
            await refusal(scope, receive, send)
            return
        await self.app(scope, _patient(receive), send)

    def _misshaped(self, scope: Scope) -> Response | None:
        headers = scope["headers"]
        if len(headers) > MAX_HEADERS or sum(len(name) + len(value) for name, value in headers) > MAX_HEAD:
            return answers.problem(431, f"expected at most {MAX_HEADERS} headers of {MAX_HEAD} bytes together")
        if len(scope.get("raw_path") or b"") + len(scope["query_string"]) > MAX_TARGET:
            return answers.problem(414, f"expected an address of at most {MAX_TARGET} bytes")
        named = Headers(scope=scope).getlist("host")
        if len(named) != 1:
            return answers.problem(400, "expected one Host header")
        if not self._hosts.answers_to(named[0]):
            return answers.problem(421, "this server is not known by that name; `[serve] hosts` names those it has")
        return None

    def _too_much(self, scope: Scope) -> Response | None:
        address = scope["client"][0] if scope.get("client") else ""
        wait = self._limits.take(self._shown(Headers(scope=scope)), address)
        if not wait and scope["path"] == LOGIN_PATH and scope["method"] == "POST":
            wait = self._limits.log_in(address)
        if not wait:
            return None
        seconds = math.ceil(wait)
        return answers.problem(429, f"too many requests: wait {seconds} s", {"Retry-After": str(seconds)})

    def _shown(self, headers: Headers) -> str | None:
        """The hash of the token a request shows, valid or not."""
        scheme, _, credentials = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            return tokens.digest(credentials.strip().encode("latin-1", "replace"))
        session = self._sessions.of(headers)
        return session.sha256 if session else None


def _patient(receive: Receive) -> Receive:
    """`receive` that does not wait for ever for a body."""

    async def receive_in_time() -> Message:
        try:
            with anyio.fail_after(BODY_SECONDS):
                return await receive()
        except TimeoutError as error:
            raise HTTPException(408, f"no more of the body came within {BODY_SECONDS:g} s") from error

    return receive_in_time
