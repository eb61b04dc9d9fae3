"""activeseg push, pull: the Label Studio side."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from activeseg.cli.output import AsJson, client_of, listening, print_json, print_reports, print_table, workspace_of


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(push)
    app.command()(pull)


def push(
    context: typer.Context,
    size: Annotated[int | None, typer.Option("--size", "-k", min=1, help="Images of this round. [default: query_size]")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be chosen; write and send nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Finish begun rounds and open a new one now: choose, predict, send to Label Studio."""
    from activeseg.db import lease
    from activeseg.errors import ConfigError
    from activeseg.loop import finish_round, preview_query, rounds_to_push

    with workspace_of(context) as workspace:
        if dry_run:
            items = preview_query(workspace, size)
            if as_json:
                print_json([asdict(item) for item in items])
            else:
                rows = [(item.shown_order, item.image_id, item.rank, item.score, item.arm) for item in items]
                print_table(("order", "image", "rank", "score", "arm"), rows)
            return
        with client_of(workspace) as client, listening(quiet=as_json) as listener, lease.holding(workspace.database):
            if client is None:
                raise ConfigError("no Label Studio: set [labelstudio] url in activeseg.toml")
            reports = [
                report for row in rounds_to_push(workspace, size) for report in finish_round(workspace, row, client, listener)
            ]
    print_reports(reports, as_json)


def pull(
    context: typer.Context,
    full: Annotated[
        bool, typer.Option("--full", help="Compare everything, not only what changed since the last pull.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Collect annotations from Label Studio; repeating it writes nothing new."""
    from activeseg.db import lease
    from activeseg.errors import ConfigError
    from activeseg.loop import collect
    from activeseg.records import StageReport

    reports: list[StageReport] = []
    with workspace_of(context) as workspace, client_of(workspace) as client, lease.holding(workspace.database):
        if client is None:
            raise ConfigError("no Label Studio: set [labelstudio] url in activeseg.toml")
        collect(workspace, client, reports.append, full=full)
    print_reports(reports, as_json)
