"""activeseg backup, restore: database and artifacts in a folder, and back."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from activeseg.cli.output import AsJson, print_reports, settings_of, workspace_of


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(backup)
    app.command()(restore)


def backup(
    context: typer.Context,
    folder: Annotated[Path, typer.Argument(help="Folder of the backups; each run adds one.")],
    as_json: AsJson = False,
) -> None:
    """Copy the database and every file it names. Others may go on working; what an earlier backup holds is not copied again.

    Ends with status 1 where a file that the database names is missing or damaged: everything else is in the backup then.
    """
    from activeseg.errors import DataError
    from activeseg.housekeeping.backup import make_backup
    from activeseg.wording import counted

    with workspace_of(context) as workspace:
        report = make_backup(workspace, folder.absolute())
    print_reports([report], as_json)
    if report.failed:
        raise DataError(f"not in the backup: {counted(report.failed, 'file')}, missing or damaged before; see above")


def restore(
    context: typer.Context,
    folder: Annotated[Path, typer.Argument(help="A backup, or a folder of backups: the youngest.")],
    force: Annotated[bool, typer.Option("--force", help="Replace the data of a workspace that has some.")] = False,
    as_json: AsJson = False,
) -> None:
    """Bring back a backup: compare every file's checksum, then files, then the database.

    A workspace that has data is left as it is unless --force is given. Killed on the way, the same command goes on.
    """
    from activeseg.housekeeping.restore import restore_backup
    from activeseg.workspace import open_workspace

    with open_workspace(settings_of(context), check_schema=False) as workspace:
        report = restore_backup(workspace, folder.absolute(), force=force)
    print_reports([report], as_json)
