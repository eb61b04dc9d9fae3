"""The bearer token: where it comes from, and the check in front of every /api route."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Annotated

from fastapi import Depends, HTTPException, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from activeseg.config import OwnSecret, Settings, own_secret

DEFAULT_TOKEN_FILE = Path(".activeseg-serve-token")


def bearer_token(settings: Settings) -> OwnSecret:
    """What callers must send: from the environment, `[serve] token_file`, or a file beside the configuration, made if missing.

    Raises ConfigError where others may read the file, or where the token is too short to keep anybody out.
    """
    section = settings.serve
    named = settings.path(section.token_file) if section.token_file else None
    default = settings.path(DEFAULT_TOKEN_FILE)
    variable, setting = "ACTIVESEG_SERVE__TOKEN", "[serve] token_file"
    return own_secret(section.token, named, default=default, variable=variable, setting=setting)


def require_token(
    request: Request,
    sent: Annotated[HTTPAuthorizationCredentials | None, Depends(HTTPBearer(auto_error=False))],
) -> None:
    """A dependency: answers 401 unless the request carries the token of `app.state.token`."""
    if sent is None:
        raise _refused('Bearer realm="activeseg"', "send the header 'Authorization: Bearer TOKEN'")
    token: OwnSecret = request.app.state.token
    # Header values arrive decoded as latin-1: encoding them back gives the bytes that were sent.
    came = sent.credentials.encode("latin-1", "replace")
    if not secrets.compare_digest(came, token.value.get_secret_value().encode()):
        raise _refused('Bearer realm="activeseg", error="invalid_token"', "this token is not the server's")


def _refused(challenge: str, sentence: str) -> HTTPException:
    return HTTPException(401, sentence, headers={"WWW-Authenticate": challenge})
