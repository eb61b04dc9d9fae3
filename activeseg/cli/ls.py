"""activeseg ls: the Label Studio on the other side."""

from __future__ import annotations

from dataclasses import asdict

import typer

from activeseg.cli.output import AsJson, client_of, print_json, workspace_of

group = typer.Typer(help="Label Studio: make the project and try the connection.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add the group."""
    app.add_typer(group, name="ls")


@group.command()
def connect(context: typer.Context, as_json: AsJson = False) -> None:
    """Make or check the project, and try everything once: a mask there and back, pixel by pixel.

    Compares the classes and fetches an uploaded image back; a test task with every class is sent, submitted, read back and
    removed. Where they are configured, links to images are tried and the webhook is made. Each line is one check; status 1
    where one fails. `activeseg doctor` looks without changing anything.
    """
    from activeseg.db import lease
    from activeseg.errors import ConfigError, NotReadyError
    from activeseg.labelstudio.connection import Check, check_connection
    from activeseg.labelstudio.drawings import uncovered_value

    checks: list[Check] = []
    with workspace_of(context) as workspace, client_of(workspace) as client, lease.holding(workspace.database):
        if client is None:
            raise ConfigError("no Label Studio: set [labelstudio] url in activeseg.toml")
        uncovered_value(workspace)  # else the first pull would refuse it, after people have drawn
        for check in check_connection(workspace, client):
            checks.append(check)
            if not as_json:
                typer.echo(f"{'ok     ' if check.ok else 'PROBLEM'}  {check.name:<8} {check.message}")
    if as_json:
        print_json([asdict(check) for check in checks])
    if failed := [check.name for check in checks if not check.ok]:
        raise NotReadyError(f"Label Studio cannot be used as configured: see {', '.join(failed)}")
