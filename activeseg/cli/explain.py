"""activeseg explain: what the model sees in an image and where it doubts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from activeseg.cli.output import AsJson, print_json, print_table, workspace_of

group = typer.Typer(help="Draw what the model sees and where it doubts.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add the group."""
    app.add_typer(group, name="explain")


@group.callback()
def explain() -> None:
    """Draw what the model sees and where it doubts."""


@group.command()
def image(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(help="Any image file.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the PNG files.")] = Path("explain"),
    checkpoint: Annotated[str | None, typer.Option("--checkpoint", help="Model version; the champion if left out.")] = None,
    class_name: Annotated[
        list[str] | None, typer.Option("--class", help="Entropy of this class only; repeat to add up several.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Entropy map (jet, scale 0..log C), label map, overlay and a three-panel figure as PNG; classes as a table."""
    from activeseg.db import checkpoints
    from activeseg.errors import ImageError
    from activeseg.explain.report import explain_image
    from activeseg.nn.checkpoint import load_checkpoint
    from activeseg.nn.device import pick_device

    with workspace_of(context) as workspace:
        with workspace.database.read() as session:
            row = checkpoints.by_version(session, checkpoint) if checkpoint else checkpoints.require_champion(session)
        data = workspace.artifacts.read(row.location, sha256=row.sha256)
        device = pick_device(workspace.settings.model.device)
        segmenter = load_checkpoint(data, model_version=row.model_version, device=device)
        classes = tuple(segmenter.spec.label_set.index_of(name) for name in class_name or ())
        try:
            report = explain_image(segmenter, file, out, classes=classes, max_pixels=workspace.settings.pool.max_pixels)
        except ImageError as error:
            raise ImageError(f"{file}: {error}") from error
    if as_json:
        print_json(report)
        return
    what = f"entropy of {', '.join(class_name)}" if class_name else "entropy"
    typer.echo(f"{row.model_version}: {what} {report['entropy_sum']:,.1f} nats, {report['entropy_mean']:.3f} a pixel")
    lines = [(item["name"], item["share"], item["confidence"]) for item in report["classes"]]
    print_table(("class", "share of pixels", "mean confidence"), lines)
    for path in report["files"]:
        typer.echo(path)
