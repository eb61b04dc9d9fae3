"""The password Label Studio logs in with (HTTP Basic): where it comes from, and the check in front of the calls."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from fastapi import Depends, HTTPException, Request
from fastapi.security import HTTPBasic, HTTPBasicCredentials

from activeseg.config import OwnSecret, Settings, own_secret
from activeseg.errors import ConfigError

DEFAULT_PASSWORD_FILE = Path(".activeseg-ml-backend-password")


@dataclass(frozen=True, slots=True)
class Login:
    """What callers must send."""

    user: str
    password: OwnSecret


def login(settings: Settings) -> Login:
    """User and password from [ml_backend]; a missing password file is made. Raises ConfigError for a weak one."""
    section = settings.ml_backend
    if not (section.user.isascii() and section.user.isprintable()) or ":" in section.user:
        raise ConfigError("[ml_backend] user: expected printable ASCII without a colon, because HTTP Basic sends it")
    named = settings.path(section.password_file) if section.password_file else None
    default = settings.path(DEFAULT_PASSWORD_FILE)
    variable, setting = "ACTIVESEG_ML_BACKEND__PASSWORD", "[ml_backend] password_file"
    password = own_secret(section.password, named, default=default, variable=variable, setting=setting)
    return Login(section.user, password)


def require_login(request: Request, sent: Annotated[HTTPBasicCredentials | None, Depends(HTTPBasic(auto_error=False))]) -> None:
    """A dependency: answers 401 unless the request carries the login of `app.state.login`."""
    wanted: Login = request.app.state.login
    came = sent or HTTPBasicCredentials(username="", password="")
    # Both are compared whatever the first says: the time tells nothing.
    same_user = secrets.compare_digest(came.username.encode(), wanted.user.encode())
    same_password = secrets.compare_digest(came.password.encode(), wanted.password.value.get_secret_value().encode())
    if not (same_user and same_password):
        raise HTTPException(401, "wrong user or password", headers={"WWW-Authenticate": 'Basic realm="activeseg"'})
