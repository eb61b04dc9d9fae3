"""activeseg score."""

from __future__ import annotations

import typer

from activeseg.cli.output import AsJson, print_reports, progress_bar, workspace_of


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(score)


def score(context: typer.Context, as_json: AsJson = False) -> None:
    """Score what the champion has not scored yet. Killed, it goes on where it stopped."""
    from activeseg.db import lease
    from activeseg.stages.score import score_pool

    with (
        workspace_of(context) as workspace,
        lease.holding(workspace.database),
        progress_bar("score", quiet=as_json) as on_progress,
    ):
        report = score_pool(workspace, on_progress=on_progress)
    print_reports([report], as_json)
