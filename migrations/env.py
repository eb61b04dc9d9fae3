"""Alembic's entry point: one connection, handed in by `activeseg.db.migrate` or opened from the environment."""

from __future__ import annotations

import os

import sqlalchemy as sa
from alembic import context

from activeseg.db.database import Database
from activeseg.db.migrate import comparable
from activeseg.db.models import Model


def run(connection: sa.Connection) -> None:
    """Migrate inside one transaction. SQLite rebuilds tables in batch mode, which needs foreign keys off."""
    sqlite = connection.dialect.name == "sqlite"
    if sqlite:
        _foreign_keys(connection, "OFF")
    context.configure(
        connection=connection,
        target_metadata=Model.metadata,
        render_as_batch=True,
        compare_type=True,
        include_object=comparable,
    )
    with context.begin_transaction():
        context.run_migrations()
    connection.commit()
    if sqlite:
        _foreign_keys(connection, "ON")


def _foreign_keys(connection: sa.Connection, state: str) -> None:
    # On the driver's connection: inside a transaction, where SQLAlchemy would run it, SQLite ignores this pragma.
    connection.connection.cursor().execute(f"PRAGMA foreign_keys={state}")


handed_in = context.config.attributes.get("connection")
if handed_in is not None:
    run(handed_in)
else:
    database = Database(os.environ.get("ACTIVESEG_DATABASE__URL", "sqlite:///activeseg.db"))
    with database.engine.connect() as opened:
        run(opened)
    database.close()
