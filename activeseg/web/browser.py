"""The gate of the pages: a session in place of a token, and forms that only our own pages can send."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from urllib.parse import parse_qs

from fastapi import HTTPException, Request

from activeseg.web.auth import Caller, Gate, Keys
from activeseg.web.hosts import Hosts
from activeseg.web.sessions import Session, Sessions

MAX_FIELDS = 10


class LoginNeeded(Exception):
    """The page needs a session, and there is none."""


@dataclass(frozen=True, slots=True)
class Visit:
    """Somebody at a page."""

    caller: Caller
    session: Session


class PageGate(Gate):
    """For browsers: the session's cookie; with POST also the form's secret, and that one of our pages sent it."""

    async def check(self, request: Request) -> Visit:
        """Who is there. Raises LoginNeeded without a session whose token is valid still, 403 for what is not theirs."""
        sessions: Sessions = request.app.state.sessions
        keys: Keys = request.app.state.keys
        session = sessions.of(request.headers)
        caller = await keys.find(session.sha256) if session else None
        if session is None or caller is None:
            raise LoginNeeded
        request.app.state.limits.recognise(session.sha256)
        if request.method == "POST":
            fields = await sent_fields(request)
            require_own_form(fields.get("form", ""), session.form)
        self.require(caller)
        return Visit(caller, session)


async def sent_fields(request: Request) -> dict[str, str]:
    """The fields of a form one of our pages sent. Raises 403 where another page did, 400 where it is no form."""
    hosts: Hosts = request.app.state.hosts
    # Browsers send it with every form; nobody else has a reason to be here.
    if not hosts.is_own(request.headers.get("origin", ""), request.headers.get("host", "")):
        raise HTTPException(403, "this form was not sent by a page of this server")
    body = (await request.body()).decode("latin-1")
    try:
        fields = parse_qs(body, keep_blank_values=True, max_num_fields=MAX_FIELDS)
    except ValueError as error:
        raise HTTPException(400, "expected the fields of a form") from error
    return {name: values[0] for name, values in fields.items()}


def require_own_form(sent: str, expected: str) -> None:
    """Raise 403 unless the form brought back what its page was given."""
    if not secrets.compare_digest(sent.encode("utf-8", "surrogateescape"), expected.encode("utf-8", "surrogateescape")):
        raise HTTPException(403, "this form is out of date: load its page again")
