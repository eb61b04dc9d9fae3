"""Label Studio's hints. A hint says that something changed, and nothing else of it is believed; pulling is the truth."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable

from anyio import to_thread
from fastapi import APIRouter, HTTPException, Request, Response
from pydantic import SecretStr
from starlette.background import BackgroundTask

from activeseg.db import requests
from activeseg.db.database import Database
from activeseg.hints import HOOK_PATH, SECRET_HEADER
from activeseg.listening import discard_body

MAX_HINT = 2**30
"""Label Studio sends whole annotations along; little of them is read and nothing kept (`discard_body`)."""


class Hints:
    """Turns hints into at most one waiting request, one write at a time and never while somebody waits for the answer.

    The database may be locked by the loop for longer than Label Studio waits, so the answer does not depend on it.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._came = False
        self._writing = False

    def note(self) -> None:
        """A hint came. Called on the event loop only."""
        self._came = True

    async def write(self) -> None:
        """Write what was noted; returns at once where another call is at it, which then sees to the new hint too."""
        if self._writing:
            return
        self._writing = True
        try:
            while self._came:
                self._came = False
                await to_thread.run_sync(self._ask)
        finally:
            self._writing = False

    def _ask(self) -> None:
        try:
            with self._database.read() as session:
                if requests.is_waiting(session, [requests.PULL]):
                    return
            with self._database.write() as session:
                requests.ask(session, requests.PULL, requested_by=requests.HINT)
        except Exception:
            # Nobody waits for it, and nothing is lost: the next planned pull finds what changed.
            logging.getLogger(__name__).warning("a hint of Label Studio could not be written down", exc_info=True)


def hook_router(hints: Hints, secret: SecretStr) -> APIRouter:
    """The receiver. It needs no bearer token: Label Studio's header is its key."""
    router = APIRouter(include_in_schema=False, max_body_size=MAX_HINT)
    router.post(HOOK_PATH)(_receiver(hints, secret.get_secret_value().encode()))
    return router


def _receiver(hints: Hints, secret: bytes) -> Callable[..., object]:
    async def receive(request: Request) -> Response:
        # Header values arrive decoded as latin-1: encoding them back gives the bytes that were sent.
        came = request.headers.get(SECRET_HEADER, "").encode("latin-1", "replace")
        if not secrets.compare_digest(came, secret):
            raise HTTPException(401, f"the header {SECRET_HEADER} does not hold this server's secret")
        await discard_body(request)
        hints.note()
        return Response(status_code=200, background=BackgroundTask(hints.write))

    return receive
