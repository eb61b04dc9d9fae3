"""Browsers that logged in. Kept in memory: a restart asks everybody again, and nothing that opens is on the disk."""

from __future__ import annotations

import hashlib
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

from starlette.datastructures import Headers
from starlette.requests import cookie_parser
from starlette.responses import Response

LOGIN_PATH = "/login"
COOKIE = "activeseg_session"
FORM_COOKIE = "activeseg_form"
SECURE_PREFIX = "__Host-"
"""Browsers take a cookie with this prefix only over TLS, for this very host and all its paths."""

SESSIONS = 1000
"""At once; of more, the oldest end."""

_RANDOM_BYTES = 32


@dataclass(frozen=True, slots=True)
class Session:
    """One browser. sha256: of the token it logged in with. form: what each form of its pages must bring back."""

    sha256: str
    form: str
    ends: float


class Sessions:
    """Sessions by the hash of their cookie's value. clock: seconds, monotonic."""

    def __init__(self, lasting: timedelta, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.seconds, self._clock = round(lasting.total_seconds()), clock
        self._open: OrderedDict[str, Session] = OrderedDict()

    def begin(self, sha256: str) -> str:
        """The cookie's value of a new session for the holder of a token."""
        value = secrets.token_urlsafe(_RANDOM_BYTES)
        form = secrets.token_urlsafe(_RANDOM_BYTES)
        self._open[_key(value)] = Session(sha256, form, self._clock() + self.seconds)
        while len(self._open) > SESSIONS:
            self._open.popitem(last=False)
        return value

    def of(self, headers: Headers) -> Session | None:
        """The session of a request; None where there is none or it has ended."""
        value = cookie_of(headers, COOKIE)
        session = self._open.get(_key(value)) if value else None
        return session if session is not None and session.ends > self._clock() else None

    def end(self, headers: Headers) -> None:
        """Forget the session of a request."""
        self._open.pop(_key(cookie_of(headers, COOKIE) or ""), None)


def cookie_of(headers: Headers, name: str) -> str | None:
    """A cookie's value, the one for TLS before the other."""
    found = cookie_parser("; ".join(headers.getlist("cookie")))
    return found.get(SECURE_PREFIX + name) or found.get(name)


def set_cookie(response: Response, name: str, value: str, *, secure: bool, seconds: int | None = None) -> None:
    """A cookie that no script sees and no other site sends."""
    full = SECURE_PREFIX + name if secure else name
    response.set_cookie(full, value, max_age=seconds, path="/", secure=secure, httponly=True, samesite="strict")


def drop_cookie(response: Response, name: str, *, secure: bool) -> None:
    """Have the browser forget a cookie."""
    set_cookie(response, name, "", secure=secure, seconds=0)


def new_form_value() -> str:
    """What the form to log in must bring back, in a cookie and in a field."""
    return secrets.token_urlsafe(_RANDOM_BYTES)


def _key(value: str) -> str:
    # By its hash, so that how long the look-up takes tells nothing about a value that is right.
    return hashlib.sha256(value.encode("utf-8", "surrogateescape")).hexdigest()
