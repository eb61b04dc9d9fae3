"""activeseg train, promote, rollback, checkpoints."""

from __future__ import annotations

import getpass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from activeseg.cli.output import AsJson, print_json, print_reports, print_table, progress_bar, workspace_of

if TYPE_CHECKING:
    from activeseg.workspace import Workspace

Reason = Annotated[str, typer.Option("--reason", help="Why; stands in the promotions table.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(train)
    app.command()(promote)
    app.command()(rollback)
    app.command()(checkpoints)


def train(
    context: typer.Context,
    promote: Annotated[bool, typer.Option("--promote/--no-promote", help="Let the gate decide right after.")] = True,
    as_json: AsJson = False,
) -> None:
    """Train a challenger on the annotations that count today; the gate then promotes or refuses it."""
    from activeseg.db import lease
    from activeseg.housekeeping import with_room
    from activeseg.stages.promote import promote_challengers
    from activeseg.stages.train import train_challenger

    with workspace_of(context) as workspace, lease.holding(workspace.database), with_room(workspace):
        with progress_bar("train", quiet=as_json) as on_progress:
            reports = [train_challenger(workspace, reason="asked for", on_progress=on_progress)]
        if promote:
            reports.append(promote_challengers(workspace))
    print_reports(reports, as_json)


def promote(
    context: typer.Context,
    checkpoint: Annotated[
        str | None, typer.Argument(help="Promote this model version without the gate; left out, the gate judges new ones.")
    ] = None,
    reason: Reason = "by hand",
    as_json: AsJson = False,
) -> None:
    """Let the gate decide about new checkpoints, or name one yourself."""
    from activeseg.db import lease
    from activeseg.housekeeping import with_room
    from activeseg.stages.promote import promote_by_hand, promote_challengers

    with workspace_of(context) as workspace, lease.holding(workspace.database):
        if checkpoint is None:
            with with_room(workspace):
                report = promote_challengers(workspace)
        else:
            report = promote_by_hand(workspace, checkpoint, decided_by=getpass.getuser(), reason=reason)
    print_reports([report], as_json)


def rollback(
    context: typer.Context,
    checkpoint: Annotated[str | None, typer.Argument(help="Model version; the former champion if left out.")] = None,
    reason: Reason = "rollback",
    as_json: AsJson = False,
) -> None:
    """Move the champion pointer back; the ranking follows at once."""
    from activeseg.db import lease
    from activeseg.stages import promote as stage

    with workspace_of(context) as workspace, lease.holding(workspace.database):
        report = stage.rollback(workspace, checkpoint, decided_by=getpass.getuser(), reason=reason)
    print_reports([report], as_json)


def checkpoints(context: typer.Context, as_json: AsJson = False) -> None:
    """List all checkpoints; the champion is marked."""
    with workspace_of(context) as workspace:
        rows = _checkpoint_rows(workspace)
    if as_json:
        print_json(rows)
        return
    columns = ["", "checkpoint", "trained on", "val mIoU", "decision", "reason", "made"]
    keys = ["champion", "model_version", "num_images", "mean_iou", "decision", "reason", "created_at"]
    if any(row["file_removed"] for row in rows):
        columns, keys = [*columns, "file removed by gc"], [*keys, "file_removed"]
    lines = [["*" if row["champion"] else "", *(row[key] for key in keys[1:])] for row in rows]
    print_table(columns, lines, zone=workspace.settings.zone)


def _checkpoint_rows(workspace: Workspace) -> list[dict[str, Any]]:
    from activeseg.db import checkpoints as rows

    with workspace.database.read() as session:
        found = rows.overview(session)
    return [row | {"file_removed": workspace.artifacts.removed(row.pop("location"))} for row in found]
