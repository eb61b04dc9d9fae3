"""activeseg pool: the unlabelled images."""

from __future__ import annotations

from typing import Annotated

import typer

from activeseg.cli.output import AsJson, print_reports, workspace_of

group = typer.Typer(help="Register the pool's images.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add the group."""
    app.add_typer(group, name="pool")


@group.callback()
def pool() -> None:
    """Register the pool's images."""


@group.command()
def sync(
    context: typer.Context,
    full: Annotated[bool, typer.Option("--full", help="Read every file, also those of unchanged size and time.")] = False,
    as_json: AsJson = False,
) -> None:
    """Register new, changed and vanished files; unreadable ones are quarantined with a reason."""
    from activeseg.db import lease
    from activeseg.housekeeping import with_room
    from activeseg.stages.pool import sync_pool

    with workspace_of(context) as workspace, lease.holding(workspace.database), with_room(workspace):
        print_reports([sync_pool(workspace, full=full)], as_json)
