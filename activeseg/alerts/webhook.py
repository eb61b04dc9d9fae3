"""An alert as a JSON document, sent by POST."""

from __future__ import annotations

import hashlib
import hmac
import json
import re
from typing import Any
from urllib.parse import urlsplit

import httpx

from activeseg import __version__
from activeseg.config.masking import masked, remember_secret
from activeseg.db.models import Alert
from activeseg.db.processes import this_host
from activeseg.errors import AlertError

SIGNATURE = "X-Activeseg-Signature"
"""'sha256=' and the HMAC-SHA256 of the body in hexadecimal."""
TIMEOUT = 10.0
# Addresses of chat services carry their key in the path; ordinary words of an address are no secret.
_LIKE_A_KEY = 20
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


def post(url: str, alert: Alert, *, secret: str | None = None, timeout: float = TIMEOUT) -> None:
    """Send an alert once. Raises AlertError unless the receiver answers with a status of 200 to 299.

    Redirects are not followed: they would take the document, and its signature, to where nobody has sent it. What the
    receiver answers is not read. timeout: seconds for each step (connecting, sending, waiting for the answer).
    """
    body = document(alert)
    headers = {"Content-Type": "application/json", "User-Agent": f"activeseg/{__version__}"}
    if secret is not None:
        headers[SIGNATURE] = signature(body, secret)
    parts = urlsplit(url)
    # Not the host: logs and errors name it, and others may be on it.
    for part in re.split(r"[/?&=]", f"{parts.path}?{parts.query}"):
        if len(part) >= _LIKE_A_KEY and part.isascii():
            remember_secret(part)
    # A shorter key is one as well: the client's log lines name the whole address.
    path = f"{parts.path}{'?' if parts.query else ''}{parts.query}"
    if path.strip("/"):
        for place in {host_of(url), str(parts.hostname)}:
            remember_secret(f"{place}{path}")
    local = parts.hostname in _LOOPBACK
    try:
        with (
            httpx.Client(timeout=timeout, follow_redirects=False, trust_env=not local) as client,
            client.stream("POST", url, content=body, headers=headers) as answer,
        ):
            status = answer.status_code
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise AlertError(f"{host_of(url)}: {masked(str(error)) or type(error).__name__}") from None
    if 300 <= status < 400:
        raise AlertError(f"{host_of(url)} answered {status}: redirects are not followed; give the final address")
    if not 200 <= status < 300:
        raise AlertError(f"{host_of(url)} answered {status}")


def document(alert: Alert) -> bytes:
    """The body: id, kind, about, message, created_at (ISO 8601, UTC) and host. The same alert has the same id every time."""
    content: dict[str, Any] = {name: getattr(alert, name) for name in ("id", "kind", "about", "message")}
    content |= {"created_at": alert.created_at.isoformat(), "host": this_host()}
    return json.dumps(content, ensure_ascii=False).encode()


def signature(body: bytes, secret: str) -> str:
    """What `SIGNATURE` holds for a body."""
    return "sha256=" + hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()


def host_of(url: str) -> str:
    """Name and port of an address, and nothing else of it."""
    parts = urlsplit(url)
    return f"{parts.hostname}:{parts.port}" if parts.port else str(parts.hostname)
