"""Alembic, driven from the program: the scripts travel with the wheel."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from activeseg.db.database import Database

if TYPE_CHECKING:
    from alembic.config import Config


def migrations_folder() -> Path:
    """The migration scripts: inside the package when installed from a wheel, beside it in a checkout."""
    packaged = Path(__file__).parent / "migrations"
    return packaged if packaged.is_dir() else Path(__file__).parents[2] / "migrations"


def upgrade(database: Database, revision: str = "head") -> None:
    """Bring the schema to `revision`; at head already, this changes nothing."""
    from alembic import command

    with _config(database) as config:
        command.upgrade(config, revision)


def downgrade(database: Database, revision: str) -> None:
    """Take the schema back to `revision` ('-1', 'base' or a name). Tables that did not exist then are dropped."""
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


class _config:
    """An Alembic configuration bound to one open connection of this database."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def __enter__(self) -> Config:
        from alembic.config import Config

        self.connection = self.database.engine.connect()
        config = Config()
        config.set_main_option("script_location", str(migrations_folder()))
        config.attributes["connection"] = self.connection
        return config

    def __exit__(self, *exc: object) -> None:
        self.connection.close()
