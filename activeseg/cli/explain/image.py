"""activeseg explain image."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from activeseg.cli.explain.options import Checkpoint, Colormap, OneImage, Out, Palette, max_pixels_of, read_segmenter
from activeseg.cli.output import AsJson, print_json, print_table, workspace_of


def image(
    context: typer.Context,
    file: OneImage,
    out: Out = Path("explain"),
    checkpoint: Checkpoint = None,
    class_name: Annotated[
        list[str] | None, typer.Option("--class", help="Entropy of this class only; repeat to add up several.")
    ] = None,
    normalised: Annotated[
        bool, typer.Option("--normalised", help="Entropy over the largest there is, log C: 0 to 1 instead of nats.")
    ] = False,
    scale: Annotated[
        str, typer.Option("--scale", help="Colours of the entropy: fixed (0..log C in every picture) or image (its own range).")
    ] = "fixed",
    colormap: Colormap = "jet",
    palette: Palette = "labels",
    probability: Annotated[
        list[str] | None,
        typer.Option("--probability", help="Draw this class's probability; repeatable. All visible classes if left out."),
    ] = None,
    npy: Annotated[bool, typer.Option("--npy", help="Also write entropy, probabilities and mask as .npy arrays.")] = False,
    as_json: AsJson = False,
) -> None:
    """Entropy map (jet, scale 0..log C), label map, overlay and a three-panel figure as PNG; classes as a table."""
    from activeseg.explain.report import Look, explain_image

    with workspace_of(context) as workspace:
        segmenter = read_segmenter(workspace, checkpoint)
    index_of = segmenter.spec.label_set.index_of
    look = Look(
        classes=tuple(dict.fromkeys(map(index_of, class_name or ()))),
        probabilities=tuple(dict.fromkeys(map(index_of, probability or ()))),
        normalised=normalised,
        scale=scale,
        colormap=colormap,
        palette=palette,
    )
    report = explain_image(segmenter, file, out, look=look, npy=npy, max_pixels=max_pixels_of(context))
    if as_json:
        print_json(report)
        return
    what = ("normalised " if normalised else "") + (
        f"entropy of {', '.join(dict.fromkeys(class_name))}" if class_name else "entropy"
    )
    unit = "" if normalised else " nats"
    typer.echo(f"{report['model_version']}: {what} {report['entropy_sum']:,.1f}{unit}, {report['entropy_mean']:.3f} a pixel")
    lines = [(item["name"], item["share"], item["confidence"]) for item in report["classes"]]
    print_table(("class", "share of pixels", "mean confidence"), lines)
    for path in report["files"]:
        typer.echo(path)
