"""activeseg db: migrations, also from an installed wheel."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from activeseg.cli.output import AsJson, print_json, settings_of

if TYPE_CHECKING:
    from activeseg.db.database import Database

group = typer.Typer(help="Migrate and check the database.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add the group."""
    app.add_typer(group, name="db")


@contextmanager
def _database(context: typer.Context) -> Iterator[Database]:
    from activeseg.db.database import Database

    database = Database(settings_of(context).database_url)
    try:
        yield database
    finally:
        database.close()


@group.command()
def upgrade(context: typer.Context, as_json: AsJson = False) -> None:
    """Bring the schema to this version's."""
    from activeseg.db import migrate

    with _database(context) as database:
        before = database.revision()
        migrate.upgrade(database)
        after = database.revision()
    if as_json:
        print_json({"before": before, "after": after})
    else:
        typer.echo(f"schema {after}, as it was" if before == after else f"schema {before or 'empty'} -> {after}")


# Without the setting, the revision -1 would be taken for an option.
@group.command(context_settings={"ignore_unknown_options": True})
def downgrade(
    context: typer.Context,
    revision: Annotated[str, typer.Argument(help="'-1' (one back), 'base' (empty) or a revision.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask: tables that did not exist then are dropped.")] = False,
    as_json: AsJson = False,
) -> None:
    """Take the schema back. Data of later tables is lost."""
    from activeseg.db import migrate

    with _database(context) as database:
        if not yes:
            typer.confirm(f"Take {database.masked_url} back to {revision}? Later tables are dropped.", abort=True, err=True)
        before = database.revision()
        migrate.downgrade(database, revision)
        after = database.revision()
    if as_json:
        print_json({"before": before, "after": after})
    else:
        typer.echo(f"schema {before} -> {after or 'empty'}")


@group.command()
def check(context: typer.Context, as_json: AsJson = False) -> None:
    """Say whether the schema is this version's and equals its models."""
    from activeseg.db import migrate
    from activeseg.errors import SchemaError

    with _database(context) as database:
        database.require_schema()
        differences = [str(item) for item in migrate.differences(database)]
        if differences:
            raise SchemaError(f"{len(differences)} differences from the models, first: {differences[0]}")
        if as_json:
            print_json({"revision": database.revision(), "differences": []})
        else:
            typer.echo(f"schema {database.revision()}: up to date, no differences")
