from __future__ import annotations

import hashlib
from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa

from activeseg.db import tokens
from activeseg.db.database import Database
from activeseg.db.models import Token
from activeseg.db.tokens import Scope
from activeseg.errors import ConfigError


def test_only_the_hash_is_stored_and_it_finds_the_token_until_it_is_revoked(database: Database) -> None:
    with database.write() as session:
        text = tokens.create(session, "ann", scopes=[Scope.OPERATE])
    with database.read() as session:
        [row] = tokens.everyone(session)
        assert row.sha256 == hashlib.sha256(text.encode()).hexdigest()
        assert text not in str(session.execute(sa.text("SELECT * FROM tokens")).all())
        assert tokens.scopes_of(row) == {Scope.READ, Scope.OPERATE}
        assert tokens.valid(session, tokens.digest(text.encode())) is row
        assert tokens.any_valid(session)
    with database.write() as session:
        since = tokens.revoke(session, "ann")
        assert tokens.revoke(session, "ann") == since
    with database.read() as session:
        assert tokens.valid(session, tokens.digest(text.encode())) is None
        assert not tokens.any_valid(session)


def test_after_its_end_a_token_opens_nothing(database: Database) -> None:
    with database.write() as session:
        text = tokens.create(session, "ci", expires_at=datetime.now(UTC) + timedelta(hours=1))
        assert tokens.valid(session, tokens.digest(text.encode())) is not None
        session.execute(sa.update(Token).values(expires_at=datetime.now(UTC) - timedelta(seconds=1)))
        session.expire_all()
        assert tokens.valid(session, tokens.digest(text.encode())) is None
        assert not tokens.any_valid(session)
        assert [tokens.state(row) for row in tokens.everyone(session)] == ["expired"]


def test_tokens_are_random_and_as_long_as_their_bytes(database: Database) -> None:
    with database.write() as session:
        made = {tokens.create(session, f"t{number}") for number in range(20)}
    assert len(made) == 20
    assert all(text.startswith(tokens.PREFIX) and len(text) >= len(tokens.PREFIX) + 43 for text in made)


def test_a_word_another_version_may_have_written_allows_nothing() -> None:
    assert tokens.scopes_of(Token(name="n", sha256="0" * 64, scopes="read admin *")) == {Scope.READ}


def test_a_name_that_cannot_be_one_is_refused(database: Database) -> None:
    for name in ("", " ", "a b", "\u00e4", "-x", "x" * 65, "a\n", "<b>"):
        with pytest.raises(ConfigError, match="token name"), database.write() as session:
            tokens.create(session, name)


def test_a_name_is_never_given_twice_nor_an_end_that_has_passed(database: Database) -> None:
    with database.write() as session:
        tokens.create(session, "ann")
        tokens.revoke(session, "ann")
    with pytest.raises(ConfigError, match="made before"), database.write() as session:
        tokens.create(session, "ann")
    with pytest.raises(ConfigError, match="in the future"), database.write() as session:
        tokens.create(session, "bob", expires_at=datetime.now(UTC))
    with pytest.raises(ConfigError, match="no token is named"), database.write() as session:
        tokens.revoke(session, "bob")
