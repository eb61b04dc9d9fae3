"""Who may do what: the installation's own token, the tokens people made, and the gate in front of each route."""

from __future__ import annotations

import secrets
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from anyio import to_thread
from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.dependencies.models import Dependant
from fastapi.routing import RouteContext, iter_route_contexts
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import SecretStr

from activeseg.config import OwnSecret, Settings, own_secret
from activeseg.db import tokens
from activeseg.db.database import Database
from activeseg.db.tokens import Scope

DEFAULT_TOKEN_FILE = Path(".activeseg-serve-token")
OWN_NAME = "the installation's token"


@dataclass(frozen=True, slots=True)
class Caller:
    """Somebody with a valid token. sha256: of the token; it names the caller in memory, never in an answer."""

    name: str
    scopes: frozenset[Scope]
    sha256: str


class Keys:
    """Finds out whose token it is. Every look reads the database, so a revoked token is refused from then on."""

    def __init__(self, own: SecretStr, database: Database) -> None:
        self._own = tokens.digest(own.get_secret_value().encode())
        self._database = database

    def holder(self, sha256: str) -> Caller | None:
        """Who holds the token with this hash, None where it opens nothing (now). Blocks."""
        if (own := self._own_holder(sha256)) is not None:
            return own
        with self._database.read() as session:
            row = tokens.valid(session, sha256)
            return None if row is None else Caller(row.name, tokens.scopes_of(row), sha256)

    async def find(self, sha256: str) -> Caller | None:
        """The same for the event loop."""
        return self._own_holder(sha256) or await to_thread.run_sync(self.holder, sha256)

    async def find_token(self, token: bytes) -> Caller | None:
        """Who holds a token. What cannot be one of ours costs no look into the database."""
        sha256 = tokens.digest(token)
        return await self.find(sha256) if token.startswith(tokens.PREFIX.encode()) else self._own_holder(sha256)

    def _own_holder(self, sha256: str) -> Caller | None:
        # Hashes are compared, so that how long it takes tells nothing about the token.
        own = secrets.compare_digest(sha256, self._own)
        return Caller(OWN_NAME, frozenset(Scope), sha256) if own else None


class Gate:
    """Lets in who has a scope. What comes first, the token, is read by the kinds of gate; their `check` is a dependency."""

    def __init__(self, scope: Scope) -> None:
        self.scope = scope

    def require(self, caller: Caller) -> None:
        """Raise 403 where the caller lacks the scope."""
        if self.scope not in caller.scopes:
            needed = self.scope.value
            challenge = f'Bearer realm="activeseg", error="insufficient_scope", scope="{needed}"'
            sentence = (
                f"this token lacks the scope '{needed}'; `activeseg token create NAME --scope {needed}` makes one with it"
            )
            raise HTTPException(403, sentence, headers={"WWW-Authenticate": challenge})


class BearerGate(Gate):
    """For programs: the token comes in a header, which no browser sends by itself."""

    async def check(
        self,
        request: Request,
        sent: Annotated[HTTPAuthorizationCredentials | None, Depends(HTTPBearer(auto_error=False))],
    ) -> Caller:
        """Who calls. Raises 401 without a token that is valid now, 403 where it lacks the scope."""
        if sent is None:
            raise _refused('Bearer realm="activeseg"', "send the header 'Authorization: Bearer TOKEN'")
        caller = await bearer_of(request, sent.credentials)
        if caller is None:
            raise _refused('Bearer realm="activeseg", error="invalid_token"', "this token is unknown here, expired or revoked")
        self.require(caller)
        return caller


reading, operating = BearerGate(Scope.READ), BearerGate(Scope.OPERATE)

require_token = reading.check
"""The dependency of routes that only read."""

require_operator = operating.check
"""The dependency of routes that ask for work."""

OperatingCaller = Annotated[Caller, Depends(require_operator)]


async def bearer_of(request: Request, credentials: str) -> Caller | None:
    """Who sent these credentials; a caller once found has a limit of requests of their own from then on."""
    # Header values arrive decoded as latin-1: encoding them back gives the bytes that were sent.
    keys: Keys = request.app.state.keys
    caller = await keys.find_token(credentials.encode("latin-1", "replace"))
    if caller is not None:
        request.app.state.limits.recognise(caller.sha256)
    return caller


def bearer_token(settings: Settings) -> OwnSecret:
    """The installation's own token: from the environment, `[serve] token_file`, or a file beside the configuration, made
    if missing. It has all scopes.

    Raises ConfigError where others may read the file, or where the token is too short to keep anybody out.
    """
    section = settings.serve
    named = settings.path(section.token_file) if section.token_file else None
    default = settings.path(DEFAULT_TOKEN_FILE)
    variable, setting = "ACTIVESEG_SERVE__TOKEN", "[serve] token_file"
    return own_secret(section.token, named, default=default, variable=variable, setting=setting)


def gates_of(route: RouteContext) -> set[Scope]:
    """The scopes a route asks for; none for one that asks nobody."""
    dependant: Dependant | None = getattr(route, "dependant", None)
    found = (getattr(part.call, "__self__", None) for part in _dependencies(dependant)) if dependant else ()
    return {gate.scope for gate in found if isinstance(gate, Gate)}


def require_gates(app: FastAPI, open_paths: Collection[str]) -> None:
    """Deny by default: RuntimeError for a route that asks for no scope and is not named, and for a name without a need."""
    for route in iter_route_contexts(app.routes):
        if bool(gates_of(route)) == (route.path in open_paths):
            raise RuntimeError(f"route {route.path}: expected either a gate or a place among the open paths")


def _dependencies(dependant: Dependant) -> Iterator[Dependant]:
    yield dependant
    for inner in dependant.dependencies:
        yield from _dependencies(inner)


def _refused(challenge: str, sentence: str) -> HTTPException:
    return HTTPException(401, sentence, headers={"WWW-Authenticate": challenge})
