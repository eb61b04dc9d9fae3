"""activeseg explain saliency, class-model and localise: what the gradient of a class's score shows."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from activeseg.cli.explain.options import (
    Categories,
    Checkpoint,
    Classifier,
    Colormap,
    OneImage,
    Out,
    Weights,
    max_pixels_of,
    read_network,
)
from activeseg.cli.output import AsJson, print_json, progress_bar

ClassName = Annotated[str | None, typer.Option("--class", help="A class of the network; the image's top one if left out.")]
Predicted = Annotated[
    bool,
    typer.Option("--predicted-only", help="Score only the pixels a segmentation network predicts as the class, not all."),
]


def saliency(
    context: typer.Context,
    file: OneImage,
    class_name: ClassName = None,
    checkpoint: Checkpoint = None,
    classifier: Classifier = None,
    weights: Weights = None,
    categories: Categories = None,
    predicted_only: Predicted = False,
    out: Out = Path("explain"),
    colormap: Colormap = "jet",
    npy: Annotated[bool, typer.Option("--npy", help="Also write the map as an .npy array.")] = False,
    as_json: AsJson = False,
) -> None:
    """Which pixels a class's score hangs on: the largest |gradient| over the colour channels, as a heat map."""
    import numpy as np

    from activeseg.explain.attribution import saliency_of, saliency_pictures
    from activeseg.explain.explanation import read_image
    from activeseg.explain.report import save_pictures

    network, device = read_network(context, checkpoint, classifier, weights, categories)
    pixels = read_image(file, max_pixels=max_pixels_of(context))
    target = network.target(pixels, class_name, device=device)
    name = network.outputs[target]
    found = saliency_of(network, pixels, target, device=device, predicted_only=predicted_only)
    files = save_pictures(saliency_pictures(pixels, found, name, colormap=colormap), out, file.stem)
    if npy:
        np.save(out / f"{file.stem}-saliency.npy", found)
        files.append(str(out / f"{file.stem}-saliency.npy"))
    report = {"network": network.name, "class": name, "largest": float(found.max()), "files": files}
    _print(report, f"{network.name}: saliency of {name}, at most {found.max():.3g} a grey level", as_json)


def localise(
    context: typer.Context,
    file: OneImage,
    class_name: ClassName = None,
    checkpoint: Checkpoint = None,
    classifier: Classifier = None,
    weights: Weights = None,
    categories: Categories = None,
    predicted_only: Predicted = False,
    foreground: Annotated[
        float, typer.Option("--foreground", help="Quantile of the saliency from which pixels are seeds of the object.")
    ] = 0.95,
    background: Annotated[
        float, typer.Option("--background", help="Quantile of the saliency up to which pixels are seeds of its surroundings.")
    ] = 0.30,
    iterations: Annotated[
        int, typer.Option("--iterations", min=0, help="Further cuts, each by the colours of the cut before.")
    ] = 0,
    out: Out = Path("explain"),
    colormap: Colormap = "jet",
    as_json: AsJson = False,
) -> None:
    """Cut out the object a class's saliency points at: seeds, colour models, graph cut, largest connected piece."""
    from activeseg.explain import attribution
    from activeseg.explain.explanation import read_image
    from activeseg.explain.report import save_pictures

    network, device = read_network(context, checkpoint, classifier, weights, categories)
    pixels = read_image(file, max_pixels=max_pixels_of(context))
    target = network.target(pixels, class_name, device=device)
    name = network.outputs[target]
    salient = attribution.saliency_of(network, pixels, target, device=device, predicted_only=predicted_only)
    found = attribution.localise(pixels, salient, foreground=foreground, background=background, iterations=iterations)
    files = save_pictures(attribution.localisation_pictures(pixels, found, name, colormap=colormap), out, file.stem)
    report = {"network": network.name, "class": name, "share": float(found.mask.mean()), "files": files}
    _print(report, f"{network.name}: {name} on {found.mask.mean():.1%} of the pixels", as_json)


def class_model(
    context: typer.Context,
    class_name: Annotated[str, typer.Option("--class", help="A class of the network.")],
    checkpoint: Checkpoint = None,
    classifier: Classifier = None,
    weights: Weights = None,
    categories: Categories = None,
    steps: Annotated[int, typer.Option("--steps", min=1, help="Steps of gradient ascent.")] = 150,
    learning_rate: Annotated[float, typer.Option("--learning-rate", help="Of the network's input.")] = 20.0,
    l2: Annotated[float, typer.Option("--l2", help="Weight of the squared norm that is held against the score.")] = 1e-3,
    size: Annotated[int, typer.Option("--size", min=1, help="Width and height of the image in pixels.")] = 224,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the noise it starts from.")] = 0,
    every: Annotated[int, typer.Option("--every", min=0, help="Also write the image after every so many steps.")] = 0,
    quantise: Annotated[
        bool, typer.Option("--quantise/--no-quantise", help="Round to 8 bits after each step; undoes very small steps.")
    ] = True,
    out: Out = Path("explain"),
    as_json: AsJson = False,
) -> None:
    """An image of what the network takes a class for: gradient ascent on its score, from noise (the documents' recipe)."""
    from activeseg.explain.ascent import ascend_and_save
    from activeseg.explain.class_model import Ascent

    network, device = read_network(context, checkpoint, classifier, weights, categories)
    ascent = Ascent(steps, learning_rate, l2, (size, size), seed, quantise)
    with progress_bar("class-model", quiet=as_json) as on_progress:
        report = ascend_and_save(network, class_name, out, ascent=ascent, every=every, device=device, on_progress=on_progress)
    if report["stalled"]:
        typer.echo("no step moved a pixel by half a grey level: raise --learning-rate or add --no-quantise", err=True)
    scores = report["scores"]
    _print(report, f"{network.name}: score of {class_name} from {scores[0]:.2f} to {scores[-1]:.2f}", as_json)


def _print(report: dict[str, Any], sentence: str, as_json: bool) -> None:
    if as_json:
        print_json(report)
        return
    typer.echo(sentence)
    for path in report["files"]:
        typer.echo(path)
