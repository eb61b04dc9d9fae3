"""activeseg score."""

from __future__ import annotations

from typing import Annotated

import typer

from activeseg.cli.output import AsJson, print_reports, progress_bar, workspace_of


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(score)


def score(
    context: typer.Context,
    budget: Annotated[
        str | None,
        typer.Option(
            help="Stop after 2h, 30m or 500 images (default: [scoring] budget): new images first, then those that were most "
            "uncertain before.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Score what the champion has not scored yet. Killed, or out of budget, it goes on where it stopped."""
    from activeseg.config.budget import Budget
    from activeseg.db import lease
    from activeseg.housekeeping import with_room
    from activeseg.stages.score import score_pool

    allowed = None if budget is None else Budget.parse(budget)
    with (
        workspace_of(context) as workspace,
        lease.holding(workspace.database),
        with_room(workspace),
        progress_bar("score", quiet=as_json) as on_progress,
    ):
        report = score_pool(workspace, budget=allowed, on_progress=on_progress)
    print_reports([report], as_json)
