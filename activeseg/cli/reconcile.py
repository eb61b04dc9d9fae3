"""activeseg reconcile: every query has one task in Label Studio, or what is left to do about it."""

from __future__ import annotations

import typer

from activeseg.cli.output import AsJson, client_of, print_reports, workspace_of
from activeseg.wording import counted


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(reconcile)


def reconcile(context: typer.Context, as_json: AsJson = False) -> None:
    """Compare all tasks in Label Studio with the database by key and mend what differs: 0 lost, 0 twice.

    Calls whose answer was lost are looked up, tasks that are there are recorded, second tasks nobody has started are
    removed, and images whose task was deleted return to the pool. Ends with status 1 where something is still lost or
    there twice. `activeseg pull --full` does the same first.
    """
    from activeseg.db import lease
    from activeseg.errors import ConfigError, LabelStudioError
    from activeseg.reconciliation import reconcile as reconcile_all

    with workspace_of(context) as workspace, client_of(workspace) as client, lease.holding(workspace.database):
        if client is None:
            raise ConfigError("no Label Studio: set [labelstudio] url in activeseg.toml")
        report = reconcile_all(workspace, client)
    print_reports([report], as_json)
    if report.failed:
        raise LabelStudioError(
            f"{counted(report.details['lost'], 'task')} lost and {report.details['twice']} there twice: run it again; if it "
            "stays so, the token's user may not delete tasks, or somebody is changing the project right now"
        )
