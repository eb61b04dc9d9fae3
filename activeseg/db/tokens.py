"""Tokens: keys to the HTTP API, of which only the hash is stored.

A token is 32 random bytes. Nobody can try all of those, so a plain SHA-256 keeps them as well as a slow hash would; a slow
one is for passwords, which people choose.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Collection, Sequence
from datetime import datetime
from enum import StrEnum

import sqlalchemy as sa
from sqlalchemy.orm import Session

from activeseg.db.models import Token
from activeseg.db.models.columns import now
from activeseg.errors import ConfigError

PREFIX = "activeseg_"
"""Tells people, and programs that look for secrets in the wrong places, what it is."""

RANDOM_BYTES = 32

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}", re.ASCII)


class Scope(StrEnum):
    """What a token allows."""

    READ = "read"
    """to see what the database knows"""
    OPERATE = "operate"
    """to ask for work; holds `read`"""


def implied(scopes: Collection[Scope]) -> frozenset[Scope]:
    """The scopes with all that they hold; reading where none is named."""
    return frozenset({Scope.READ, *scopes})


def digest(token: bytes) -> str:
    """What is stored of a token: 64 hexadecimal digits."""
    return hashlib.sha256(token).hexdigest()


def create(session: Session, name: str, *, scopes: Collection[Scope] = (), expires_at: datetime | None = None) -> str:
    """Store a new token and return its text, which is known nowhere else. expires_at: aware; None = never.

    Raises ConfigError for a name that was used before (a revoked one too: the record of who had a key stays) or cannot be
    one, and for an end that has passed.
    """
    if not _NAME.fullmatch(name):
        raise ConfigError(f"token name: expected 1 to 64 letters, digits or ._@- such as 'ci'; got {name[:80]!r}")
    if expires_at is not None and expires_at <= now():
        raise ConfigError(f"token {name}: expected an end in the future, got {expires_at:%Y-%m-%d %H:%M} UTC")
    if _named(session, name) is not None:
        raise ConfigError(f"a token named {name!r} was made before: take another name (`activeseg token list` shows them)")
    text = PREFIX + secrets.token_urlsafe(RANDOM_BYTES)
    stored = " ".join(scope.value for scope in Scope if scope in implied(scopes))
    session.add(Token(name=name, sha256=digest(text.encode()), scopes=stored, expires_at=expires_at))
    session.flush()
    return text


def revoke(session: Session, name: str) -> datetime:
    """Refuse a token from now on; when it was revoked first. Raises ConfigError where there is none of this name."""
    row = _named(session, name)
    if row is None:
        raise ConfigError(f"no token is named {name[:80]!r} (`activeseg token list` shows them)")
    if row.revoked_at is None:
        row.revoked_at = now()
        session.flush()
    return row.revoked_at


def everyone(session: Session) -> Sequence[Token]:
    """All tokens there ever were, by name."""
    return session.scalars(sa.select(Token).order_by(Token.name)).all()


def state(row: Token) -> str:
    """'valid', 'expired' or 'revoked', now."""
    if row.revoked_at is not None:
        return "revoked"
    return "expired" if row.expires_at is not None and row.expires_at <= now() else "valid"


def valid(session: Session, sha256: str) -> Token | None:
    """The token with this hash; None where it is unknown, has expired or was revoked."""
    row = session.scalar(sa.select(Token).where(Token.sha256 == sha256))
    return row if row is not None and state(row) == "valid" else None


def any_valid(session: Session) -> bool:
    """Whether somebody made a token that opens today."""
    unrevoked = sa.select(Token).where(Token.revoked_at.is_(None))
    return any(state(row) == "valid" for row in session.scalars(unrevoked))


def scopes_of(row: Token) -> frozenset[Scope]:
    """What a stored token allows; a word this version does not know allows nothing."""
    known = set(Scope)
    return frozenset(Scope(word) for word in row.scopes.split() if word in known)


def _named(session: Session, name: str) -> Token | None:
    return session.scalar(sa.select(Token).where(Token.name == name))
