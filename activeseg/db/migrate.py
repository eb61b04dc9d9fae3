"""Alembic, driven from the program: the scripts travel with the wheel."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import sqlalchemy as sa

from activeseg.db.database import SCHEMA_REVISION, Database
from activeseg.errors import SchemaError

if TYPE_CHECKING:
    from alembic.config import Config

# Any number that nothing else in the database locks by.
MIGRATION_LOCK = 7_220_614_133


def migrations_folder() -> Path:
    """The migration scripts: inside the package when installed from a wheel, beside it in a checkout."""
    packaged = Path(__file__).parent / "migrations"
    return packaged if packaged.is_dir() else Path(__file__).parents[2] / "migrations"


def upgrade(database: Database, revision: str = "head") -> None:
    """Bring the schema to `revision`; at head already, this changes nothing. Of two at once, the second waits.

    Raises SchemaError for a revision, asked for or found, that this version does not know.
    """
    from alembic import command

    with _config(database) as config:
        command.upgrade(config, revision)


def downgrade(database: Database, revision: str) -> None:
    """Take the schema back to `revision` ('-1', 'base' or a name). Tables that did not exist then are dropped.

    Raises SchemaError for a revision, asked for or found, that this version does not know.
    """
    from alembic import command

    with _config(database) as config:
        command.downgrade(config, revision)


def differences(database: Database) -> list[object]:
    """What autogenerate would change: empty where the tables equal the models."""
    from alembic.autogenerate import compare_metadata
    from alembic.runtime.migration import MigrationContext

    from activeseg.db.models import Model

    with database.engine.connect() as connection:
        options = {"compare_type": True, "include_object": comparable}
        context = MigrationContext.configure(connection, opts=options)
        return list(compare_metadata(context, Model.metadata))


def comparable(item: object, name: str | None, kind: str, reflected: bool, compare_to: object) -> bool:
    """Alembic's `include_object`: all but the one index SQLAlchemy cannot read back (a DESC column on SQLite)."""
    return not (kind == "index" and name == "ix_scores_ranking")


@contextmanager
def _config(database: Database) -> Iterator[Config]:
    """An Alembic configuration bound to one open connection, which no other migration gets past before it commits."""
    from alembic.config import Config
    from alembic.util import CommandError

    config = Config()
    config.set_main_option("script_location", str(migrations_folder()).replace("%", "%%"))
    with database.engine.connect().execution_options(activeseg_begin="IMMEDIATE") as connection:
        if database.dialect == "postgresql":
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(MIGRATION_LOCK)))
        config.attributes["connection"] = connection
        try:
            yield config
        except CommandError as error:
            raise SchemaError(
                f"database {database.masked_url}: {error}; this version of activeseg knows the schemas up to "
                f"{SCHEMA_REVISION}, a later one needs a newer version"
            ) from error
