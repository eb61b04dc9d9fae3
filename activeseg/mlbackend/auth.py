"""The password Label Studio logs in with (HTTP Basic): where it comes from, and the check in front of the calls."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from fastapi import Depends, HTTPException, Request
from fastapi.security import HTTPBasic, HTTPBasicCredentials
from pydantic import SecretStr

from activeseg.config import Settings, secret_or_new
from activeseg.errors import ConfigError

DEFAULT_PASSWORD_FILE = Path(".activeseg-ml-backend-password")
MIN_PASSWORD_LENGTH = 16


@dataclass(frozen=True, slots=True)
class Login:
    """What callers must send.

    file: where the password lies; None when it came from the environment. explicit: a person set it or named its file.
    """

    user: str
    password: SecretStr
    file: Path | None
    explicit: bool

    @property
    def place(self) -> str:
        """Where a person finds the password."""
        return str(self.file or "the environment variable ACTIVESEG_ML_BACKEND__PASSWORD")


def login(settings: Settings) -> Login:
    """User and password from [ml_backend]; a missing password file is made. Raises ConfigError for a weak one."""
    section = settings.ml_backend
    file = None if section.password else settings.path(section.password_file or DEFAULT_PASSWORD_FILE)
    password = section.password if file is None or section.password else secret_or_new(None, file)
    assert password is not None
    made = Login(section.user, password, file, bool(section.password or section.password_file))
    value = password.get_secret_value()
    if len(value) < MIN_PASSWORD_LENGTH or not _travels(value):
        remedy = "delete the file, a new one is made" if file else "set another one, or unset it"
        raise ConfigError(
            f"password in {made.place}: expected at least {MIN_PASSWORD_LENGTH} printable ASCII characters: {remedy}"
        )
    if not _travels(section.user) or ":" in section.user:
        raise ConfigError("[ml_backend] user: expected printable ASCII without a colon, because HTTP Basic sends it")
    return made


def _travels(value: str) -> bool:
    return value.isascii() and value.isprintable()


def require_login(request: Request, sent: Annotated[HTTPBasicCredentials | None, Depends(HTTPBasic(auto_error=False))]) -> None:
    """A dependency: answers 401 unless the request carries the login of `app.state.login`."""
    wanted: Login = request.app.state.login
    came = sent or HTTPBasicCredentials(username="", password="")
    # Both are compared whatever the first says: the time tells nothing.
    same_user = secrets.compare_digest(came.username.encode(), wanted.user.encode())
    same_password = secrets.compare_digest(came.password.encode(), wanted.password.get_secret_value().encode())
    if not (same_user and same_password):
        raise HTTPException(401, "wrong user or password", headers={"WWW-Authenticate": 'Basic realm="activeseg"'})
