"""activeseg alerts: who was told what, and whether they can be told."""

from __future__ import annotations

import getpass
from typing import Annotated, Any

import typer

from activeseg.cli.output import AsJson, print_json, print_table, workspace_of

group = typer.Typer(help="Show alerts, youngest first, or send one to try.", invoke_without_command=True)


def register(app: typer.Typer) -> None:
    """Add the group."""
    app.add_typer(group, name="alerts")


@group.callback()
def alerts(
    context: typer.Context,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="How many.")] = 20,
    as_json: AsJson = False,
) -> None:
    """Show alerts, youngest first, or send one to try."""
    if context.invoked_subcommand is not None:
        return
    from activeseg.db import alerts as rows
    from activeseg.db.models.columns import now

    with workspace_of(context) as workspace, workspace.database.read() as session:
        found, at = rows.newest(session, limit=limit), now()
    if as_json:
        names = ("id", "kind", "about", "message", "created_at", "sent_at", "attempts", "error")
        print_json([{name: getattr(row, name) for name in names} | {"state": rows.state(row, at)} for row in found])
        return
    columns = ("alert", "noted", "kind", "about", "message", "sent", "attempts", "not sent because")
    print_table(columns, [_cells(row, rows.state(row, at)) for row in found], zone=workspace.settings.zone)


def _cells(row: Any, state: str) -> tuple[Any, ...]:
    first = (row.message.splitlines() or [""])[0]
    because = "; ".join((row.error or "").splitlines()) or None
    return (row.id, row.created_at, row.kind, row.about, first, row.sent_at or state, row.attempts, because)


@group.command(name="test")
def try_out(context: typer.Context, as_json: AsJson = False) -> None:
    """Send one alert by every way of [alerts] now and say what became of it; status 1 where one did not take it."""
    from activeseg.alerts import send_test
    from activeseg.errors import AlertError, ConfigError

    with workspace_of(context) as workspace:
        told = send_test(workspace.settings, workspace.database, asked_by=getpass.getuser())
    if not told:
        raise ConfigError("nobody to tell: set [alerts] webhook_url, or email_to with smtp_host and email_from")
    if as_json:
        print_json([{"way": way, "sent": error is None, "error": error} for way, error in told.items()])
    else:
        for way, error in told.items():
            typer.echo(f"{'ok     ' if error is None else 'PROBLEM'}  {way:<8} {error or 'taken'}")
    if failed := [way for way, error in told.items() if error]:
        raise AlertError(f"the alert was not taken by {' and '.join(failed)}")
