"""activeseg drift: say that the pool may be as it is."""

from __future__ import annotations

import getpass
from typing import Annotated

import typer

from activeseg.cli.output import AsJson, print_json, workspace_of

group = typer.Typer(help="Say that the pool may be as it is.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add the group."""
    app.add_typer(group, name="drift")


@group.callback()
def drift() -> None:
    """Say that the pool may be as it is."""


@group.command()
def accept(
    context: typer.Context,
    reason: Annotated[str | None, typer.Option("--reason", help="Why; stands in the alert that says who it was.")] = None,
    as_json: AsJson = False,
) -> None:
    """Accept the drift that scoring runs found: what [drift] blocks goes on. The figures stay in their rows."""
    from activeseg.db import drift as rows

    with workspace_of(context) as workspace, workspace.database.write() as session:
        found = rows.accept(session, accepted_by=getpass.getuser(), reason=reason)
    if as_json:
        print_json([{"scoring_run": number, "drift": sentence} for number, sentence in found])
        return
    for number, sentence in found:
        typer.echo(f"accepted: scoring run {number}: {sentence}")
    if not found:
        typer.echo("no drift stands: nothing to accept")
