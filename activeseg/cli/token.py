"""activeseg token: keys to the HTTP API and its pages."""

from __future__ import annotations

from datetime import datetime, timedelta
from enum import StrEnum
from typing import Annotated, Any

import typer

from activeseg.cli.output import AsJson, print_json, print_table, workspace_of
from activeseg.wording import moment


class ScopeName(StrEnum):
    """The words of `tokens.Scope`; commands load the database inside only."""

    READ = "read"
    OPERATE = "operate"


group = typer.Typer(help="Make and revoke tokens for the HTTP API and its pages.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add the group."""
    app.add_typer(group, name="token")


@group.command()
def create(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="Who or what it is for, such as 'ann' or 'prometheus'.")],
    scope: Annotated[
        list[ScopeName] | None,
        typer.Option("--scope", help="read: to look; operate: to ask for work, too. [default: read]"),
    ] = None,
    expires: Annotated[str | None, typer.Option("--expires", help="Its end: 90d, 12h. [default: never]")] = None,
    as_json: AsJson = False,
) -> None:
    """Make a token and print it, this once: only its hash is stored."""
    from activeseg.db import tokens

    with workspace_of(context) as workspace, workspace.database.write() as session:
        wanted = tokens.implied([tokens.Scope(word.value) for word in scope or ()])
        ends = _end(expires)
        text = tokens.create(session, name, scopes=wanted, expires_at=ends)
    if as_json:
        print_json({"name": name, "token": text, "scopes": sorted(wanted), "expires_at": ends})
        return
    typer.echo(text)
    until = f"until {moment(ends, workspace.settings.zone)}" if ends else "until it is revoked"
    typer.echo(f"{name} may {' and '.join(sorted(wanted, reverse=True))} {until}; the token is not shown again", err=True)


@group.command("list")
def list_(context: typer.Context, as_json: AsJson = False) -> None:
    """All tokens there ever were, without what opens."""
    from activeseg.db import tokens

    with workspace_of(context) as workspace, workspace.database.read() as session:
        rows: list[dict[str, Any]] = [
            {
                "name": row.name,
                "state": tokens.state(row),
                "scopes": row.scopes,
                "created_at": row.created_at,
                "expires_at": row.expires_at,
                "revoked_at": row.revoked_at,
            }
            for row in tokens.everyone(session)
        ]
    if as_json:
        print_json(rows)
        return
    columns = ("name", "state", "scopes", "created", "expires", "revoked")
    print_table(columns, [list(row.values()) for row in rows], zone=workspace.settings.zone)


@group.command()
def revoke(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="As `activeseg token list` shows it.")],
    as_json: AsJson = False,
) -> None:
    """Refuse a token from now on, in running servers too."""
    from activeseg.db import tokens

    with workspace_of(context) as workspace, workspace.database.write() as session:
        since = tokens.revoke(session, name)
    if as_json:
        print_json({"name": name, "revoked_at": since})
    else:
        typer.echo(f"{name} opens nothing any more (revoked {moment(since, workspace.settings.zone)})")


def _end(text: str | None) -> datetime | None:
    """The moment a duration such as '90d' from now. Raises ConfigError for what is none."""
    from activeseg.config.budget import Budget
    from activeseg.db.models.columns import now
    from activeseg.errors import ConfigError

    if text is None:
        return None
    try:
        seconds = Budget.parse(text).seconds
        if seconds is None:
            raise ConfigError("it has no unit")
        return now() + timedelta(seconds=seconds)
    except (ConfigError, OverflowError):
        raise ConfigError(f"--expires: expected a duration such as 90d or 12h, got {text[:40]!r}") from None
