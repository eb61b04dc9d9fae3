"""activeseg explain figure and sheet: masks beside the truth, and annotations beside their images."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from activeseg.cli.explain.options import Checkpoint, Out, Palette, read_segmenter
from activeseg.cli.output import AsJson, print_json, print_table, workspace_of
from activeseg.wording import counted

if TYPE_CHECKING:
    from activeseg.core.labels import Mask
    from activeseg.imaging.coloring import Pixels
    from activeseg.workspace import Workspace


def figure(
    context: typer.Context,
    files: Annotated[list[Path], typer.Argument(help="Image files.")],
    truth: Annotated[
        list[Path],
        typer.Option("--truth", help="The mask of each image, in their order, or one folder with a mask NAME.png for each."),
    ],
    checkpoint: Checkpoint = None,
    documents: Annotated[
        bool, typer.Option("--smoothed", help="List the smoothed IoU and Dice (s = 0.00001) instead of the plain ones.")
    ] = False,
    palette: Palette = "labels",
    out: Out = Path("explain"),
    as_json: AsJson = False,
) -> None:
    """Image, prediction and truth side by side, IoU and Dice of the image's classes below, best first."""
    from dataclasses import asdict

    from activeseg.explain.explanation import explain_pixels, read_image
    from activeseg.explain.masks import mask_files, read_mask
    from activeseg.explain.report import save_pictures
    from activeseg.explain.truth import compare, truth_figure
    from activeseg.imaging.coloring import with_palette

    with workspace_of(context) as workspace:
        segmenter, max_pixels = read_segmenter(workspace, checkpoint), workspace.settings.pool.max_pixels
    label_set, items = segmenter.spec.label_set, []
    for file, mask in zip(files, mask_files(files, truth), strict=True):
        pixels = read_image(file, max_pixels=max_pixels)
        true = read_mask(mask, file.stem, label_set, size=pixels.shape[:2], max_pixels=max_pixels)
        items.append(compare(pixels, explain_pixels(segmenter, pixels).mask, true, label_set, caption=file.name))
    drawn = truth_figure(items, with_palette(label_set, palette), documents=documents)
    written = save_pictures({"truth": drawn}, out, files[0].stem if len(files) == 1 else f"{files[0].stem}-and-more")
    if as_json:
        images = [{"image": item.caption, "classes": list(map(asdict, item.scores))} for item in items]
        print_json({"model_version": segmenter.model_version, "images": images, "files": written})
        return
    for item in items:
        lines = [
            (row.name, row.smoothed_iou, row.smoothed_dice) if documents else (row.name, row.iou, row.dice)
            for row in item.scores
        ]
        print_table(("class", "IoU", "Dice"), lines, title=item.caption)
    for path in written:
        typer.echo(path)


def sheet(
    context: typer.Context,
    split: Annotated[
        str | None, typer.Option("--split", help="train, val or test: the annotations that count today. [default: train]")
    ] = None,
    images: Annotated[Path | None, typer.Option("--images", help="A folder of images instead of the database.")] = None,
    masks: Annotated[Path | None, typer.Option("--masks", help="The folder of their masks, NAME.png.")] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="At most so many, evenly spread over all.")] = 12,
    pairs: Annotated[int, typer.Option("--pairs", min=1, max=6, help="Images in a row.")] = 2,
    palette: Palette = "labels",
    out: Out = Path("explain"),
    as_json: AsJson = False,
) -> None:
    """A contact sheet: each image beside the same with its annotation laid over it."""
    from activeseg.errors import ConfigError
    from activeseg.explain.truth import contact_sheet, for_sheet
    from activeseg.imaging.coloring import with_palette

    if (images is None) != (masks is None) or (images is not None and split is not None):
        raise ConfigError("expected --split, or --images together with --masks")
    with workspace_of(context) as workspace:
        count, found = (
            _from_folders(workspace, images, masks, limit) if images and masks else _of_split(workspace, split, limit)
        )
        # Shrunk as they come: at their own size a few photographs would fill the memory.
        beside = min(pairs, count)
        items = [(*for_sheet(pixels, mask, pairs=beside), name) for pixels, mask, name in found]
        drawn = contact_sheet(items, with_palette(workspace.label_set, palette), pairs=pairs)
    out.mkdir(parents=True, exist_ok=True)
    written = out / "sheet.png"
    drawn.save(written)
    if as_json:
        print_json({"images": [name for _, _, name in items], "files": [written]})
        return
    typer.echo(f"{counted(len(items), 'image')}\n{written}")


def _of_split(workspace: Workspace, split: str | None, limit: int) -> tuple[int, Iterator[tuple[Pixels, Mask, str]]]:
    """How many annotated images, and each when its turn comes."""
    from activeseg.db import truth
    from activeseg.db.models import Split
    from activeseg.errors import ConfigError, NotReadyError
    from activeseg.explain.masks import spread

    wanted = split or "train"
    if wanted not in ("train", "val", "test"):
        raise ConfigError(f"--split: expected train, val or test; got {wanted!r}")
    with workspace.database.read() as session:
        items = truth.current(session, split=Split(wanted))
    if not items:
        raise NotReadyError(f"no annotations in split {wanted}: label some, or import them with `activeseg dataset import`")
    chosen = spread(items, limit)
    return len(chosen), ((*workspace.read_labeled(item), Path(item.image.uri).name) for item in chosen)


def _from_folders(
    workspace: Workspace, images: Path, masks: Path, limit: int
) -> tuple[int, Iterator[tuple[Pixels, Mask, str]]]:
    """As `_of_split`."""
    from activeseg.explain.explanation import read_image
    from activeseg.explain.masks import image_files, read_mask, spread

    max_pixels = workspace.settings.pool.max_pixels

    def read(file: Path) -> tuple[Pixels, Mask, str]:
        pixels = read_image(file, max_pixels=max_pixels)
        mask = read_mask(masks, file.stem, workspace.label_set, size=pixels.shape[:2], max_pixels=max_pixels)
        return pixels, mask, file.name

    chosen = spread(image_files(images), limit)
    return len(chosen), map(read, chosen)
