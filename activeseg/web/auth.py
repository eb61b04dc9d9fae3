"""The bearer token: where it comes from, and the check in front of every /api route."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from fastapi import Depends, HTTPException, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import SecretStr

from activeseg.config import Settings, secret_or_new
from activeseg.errors import ConfigError

DEFAULT_TOKEN_FILE = Path(".activeseg-serve-token")
MIN_TOKEN_LENGTH = 16


@dataclass(frozen=True, slots=True)
class Token:
    """The token callers must send.

    file: where it lies; None when it came from the environment.
    explicit: a person set the token or named its file, so they know that there is one to keep.
    """

    value: SecretStr
    file: Path | None
    explicit: bool

    @property
    def place(self) -> str:
        """Where a person finds it."""
        return str(self.file or "the environment variable ACTIVESEG_SERVE__TOKEN")


def bearer_token(settings: Settings) -> Token:
    """The token from the environment, from `[serve] token_file`, or from a file beside the configuration.

    A missing file is made with a random token and mode 0600. Raises ConfigError where others may read the file, or where
    the token is too short to keep anybody out.
    """
    section = settings.serve
    if section.token is not None:
        return _checked(Token(section.token, None, True))
    file = settings.path(section.token_file or DEFAULT_TOKEN_FILE)
    return _checked(Token(secret_or_new(None, file), file, section.token_file is not None))


def _checked(token: Token) -> Token:
    length = len(token.value.get_secret_value())
    if length < MIN_TOKEN_LENGTH:
        remedy = "delete the file, a new one is made" if token.file else "set a longer one, or unset it"
        raise ConfigError(f"token in {token.place}: expected at least {MIN_TOKEN_LENGTH} characters, got {length}: {remedy}")
    return token


def require_token(
    request: Request,
    sent: Annotated[HTTPAuthorizationCredentials | None, Depends(HTTPBearer(auto_error=False))],
) -> None:
    """A dependency: answers 401 unless the request carries the token of `app.state.token`."""
    if sent is None:
        raise _refused('Bearer realm="activeseg"', "send the header 'Authorization: Bearer TOKEN'")
    token: Token = request.app.state.token
    # Header values arrive decoded as latin-1: encoding them back gives the bytes that were sent.
    came = sent.credentials.encode("latin-1", "replace")
    if not secrets.compare_digest(came, token.value.get_secret_value().encode()):
        raise _refused('Bearer realm="activeseg", error="invalid_token"', "this token is not the server's")


def _refused(challenge: str, sentence: str) -> HTTPException:
    return HTTPException(401, sentence, headers={"WWW-Authenticate": challenge})
