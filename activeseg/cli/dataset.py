"""activeseg dataset: labelled images from outside."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from activeseg.cli.output import AsJson, print_reports, workspace_of

group = typer.Typer(help="Import labelled images.", no_args_is_help=True)


class Target(StrEnum):
    """Where imported masks go."""

    TRAIN = "train"
    VAL = "val"
    TEST = "test"
    QUERY = "query"


def register(app: typer.Typer) -> None:
    """Add the group."""
    app.add_typer(group, name="dataset")


@group.callback()
def dataset() -> None:
    """Import labelled images."""


@group.command("import")
def import_(
    context: typer.Context,
    images: Annotated[str, typer.Option("--images", help="Folder or URI of the images.")],
    masks: Annotated[Path, typer.Option("--masks", help="Folder of masks <image name>.png, or of a folder of them per class.")],
    split: Annotated[Target, typer.Option("--split", help="'query' answers open queries of pool images.")],
    as_json: AsJson = False,
) -> None:
    """Import images with their masks. Repeating it writes nothing new.

    Masks are PNG files whose pixel values are class indices. With [labels] overlap there is a folder for each class instead,
    named like it, whose masks say 0 (no) or anything else (yes); a class without a file is absent from that image.
    """
    from activeseg.db import lease
    from activeseg.db.models import Split
    from activeseg.errors import DataError
    from activeseg.stages.dataset import import_dataset

    wanted = None if split is Target.QUERY else Split(split.value)
    with workspace_of(context) as workspace, lease.holding(workspace.database):
        folder = images if "://" in images else str(Path(images).absolute())
        report = import_dataset(workspace, folder, masks, wanted)
    print_reports([report], as_json)
    if report.failed:
        raise DataError(f"{report.failed} pairs were left out; the reasons stand above")
