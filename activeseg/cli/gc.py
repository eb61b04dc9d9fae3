"""activeseg gc: remove files nothing needs any more."""

from __future__ import annotations

from typing import Annotated

import typer

from activeseg.cli.output import AsJson, as_size, print_json, print_table, workspace_of
from activeseg.wording import counted


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(gc)


def gc(
    context: typer.Context,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be removed; remove nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Remove files of the artifacts folder, logs and old records of runs that nothing needs any more, by [housekeeping].

    Kept are the champion and those a rollback goes to, the newest checkpoints, every mask an annotation refers to, what open
    tasks show, imported weights, the state of an interrupted training, and whatever is younger than keep_days.
    """
    from dataclasses import asdict

    from activeseg.housekeeping import collect_garbage

    with workspace_of(context) as workspace:
        report = collect_garbage(workspace, dry_run=dry_run)
    if as_json:
        print_json([asdict(report)])
        return
    sizes = report.details["bytes by kind"]
    if sizes:
        print_table(("kind", "files", "size"), [(kind, report.details[kind], as_size(size)) for kind, size in sizes.items()])
    what = "would be removed" if dry_run else "removed"
    rows = report.details.get("rows", {})
    files = report.written - sum(rows.values())
    typer.echo(f"{counted(files, 'file')} {what}, {as_size(report.details['bytes'])}")
    if rows:
        typer.echo(f"old records {what}: {', '.join(f'{count} {name}' for name, count in rows.items())}")
    kept = ", ".join(f"{count} {why}" for why, count in report.details["checkpoints kept"].items())
    typer.echo(f"checkpoints kept: {kept or 'none'}")
