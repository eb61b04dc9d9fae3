"""activeseg dataset: labelled images in and out."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from activeseg.cli.output import AsJson, print_reports, progress_bar, workspace_of
from activeseg.wording import counted

group = typer.Typer(help="Import and export labelled images.", no_args_is_help=True)


class Target(StrEnum):
    """Where imported masks go."""

    TRAIN = "train"
    VAL = "val"
    TEST = "test"
    QUERY = "query"


class Splits(StrEnum):
    """What images may be used for."""

    TRAIN = "train"
    VAL = "val"
    TEST = "test"
    POOL = "pool"


class Format(StrEnum):
    """How exported masks are written."""

    MASKS = "masks"
    COCO = "coco"


class Images(StrEnum):
    """How exported images come into the folder."""

    LINK = "link"
    COPY = "copy"
    NONE = "none"


def register(app: typer.Typer) -> None:
    """Add the group."""
    app.add_typer(group, name="dataset")


@group.callback()
def dataset() -> None:
    """Import and export labelled images."""


class _ImportCommand(TyperCommand):
    """Images with masks, or `--from` one place: which options are missing depends on which were given."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        rest = super().parse_args(ctx, args)
        given = ctx.params
        if ctx.resilient_parsing:  # a shell asks how a line could go on
            return rest
        if given["source"] is None and None in (given["images"], given["masks"], given["split"]):
            raise typer.BadParameter("expected --from, or --images, --masks and --split", ctx=ctx)
        if given["source"] is None and given["uncovered"] is not None:
            raise typer.BadParameter("--uncovered is for COCO files: give it with --from", ctx=ctx)
        if given["source"] is not None and given["masks"] is not None:
            raise typer.BadParameter("--masks cannot be given with --from", ctx=ctx)
        return rest


@group.command("import", cls=_ImportCommand)
def import_(
    context: typer.Context,
    images: Annotated[str | None, typer.Option("--images", help="Folder or URI of the images.")] = None,
    masks: Annotated[
        Path | None, typer.Option("--masks", help="Folder of masks <image name>.png, or of a folder of them per class.")
    ] = None,
    split: Annotated[
        Target | None,
        typer.Option("--split", help="'query' answers open queries of pool images. An export knows its splits."),
    ] = None,
    source: Annotated[
        Path | None, typer.Option("--from", help="Folder that `dataset export` wrote, or a COCO file or a folder with one.")
    ] = None,
    uncovered: Annotated[
        str | None,
        typer.Option("--uncovered", help="Class of pixels under no segmentation of a COCO file. [default: nobody said]"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Import images with their masks, an export or a COCO file. Repeating it writes nothing new.

    Masks are PNG files whose pixel values are class indices. With [labels] overlap there is a folder for each class instead,
    named like it, whose masks say 0 (no) or anything else (yes); a class without a file is absent from that image.
    """
    from activeseg.db import lease
    from activeseg.db.models import Split
    from activeseg.errors import DataError
    from activeseg.housekeeping import with_room
    from activeseg.stages.dataset import import_dataset
    from activeseg.stages.restore import import_from

    wanted = None if split is None or split is Target.QUERY else Split(split.value)
    with (
        workspace_of(context) as workspace,
        lease.holding(workspace.database),
        with_room(workspace),
        progress_bar("import", quiet=as_json) as on_progress,
    ):
        if source is not None:
            root = Path(images).absolute() if images else None
            report = import_from(
                workspace, source.absolute(), images=root, split=wanted, query=split is Target.QUERY, uncovered=uncovered,
                on_progress=on_progress,
            )  # fmt: skip
        else:
            folder = str(images) if "://" in str(images) else str(Path(str(images)).absolute())
            report = import_dataset(workspace, folder, Path(str(masks)), wanted)
    print_reports([report], as_json)
    if report.details.get("older"):
        typer.echo("older: a newer mask counts for these images; --images and --masks import a mask all the same", err=True)
    if report.failed:
        raise DataError(f"left out: {counted(report.failed, 'pair')}; the reasons stand above")


@group.command("export")
def export(
    context: typer.Context,
    out: Annotated[Path, typer.Option("--out", help="Folder to write: a new one, or an empty one.")],
    format_: Annotated[Format, typer.Option("--format", help="Index masks, or COCO files with run lengths.")] = Format.MASKS,
    split: Annotated[list[Splits] | None, typer.Option("--split", help="Only this split; may be repeated.")] = None,
    training_run: Annotated[int | None, typer.Option("--training-run", help="Exactly what this training saw.")] = None,
    as_of: Annotated[
        str | None, typer.Option("--as-of", help="What counted at this time, with its zone: 2026-11-01T00:00:00Z.")
    ] = None,
    images: Annotated[
        Images, typer.Option("--images", help="Hard links where the disk can, copies, or no images at all.")
    ] = Images.LINK,
    annotators: Annotated[
        bool, typer.Option("--annotators", help="Say in the manifest who drew each mask: personal data.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Write the masks that count, with images, classes and a manifest. The same labels give the same bytes."""
    from activeseg.db.models import Split
    from activeseg.errors import DataError
    from activeseg.stages.export import ExportRequest, export_dataset

    request = ExportRequest(
        layout=format_.value,
        splits=tuple(Split(name.value) for name in split or ()),
        training_run=training_run,
        as_of=None if as_of is None else _moment(as_of),
        images=images.value,
        annotators=annotators,
    )
    with workspace_of(context) as workspace, progress_bar("export", quiet=as_json) as on_progress:
        report = export_dataset(workspace, out.absolute(), request, on_progress=on_progress)
    print_reports([report], as_json)
    if report.failed:
        raise DataError(f"left out: {counted(report.failed, 'image')}; the reasons stand above")


def _moment(text: str) -> datetime:
    from activeseg.errors import ConfigError

    try:
        return datetime.fromisoformat(text)
    except ValueError as error:
        raise ConfigError(f"--as-of: expected a time like 2026-11-01T00:00:00Z; got {text!r}") from error
