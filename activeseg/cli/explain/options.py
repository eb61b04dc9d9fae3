"""What the explain commands share: options, and how they come by a network."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from activeseg.cli.output import settings_of, workspace_of

if TYPE_CHECKING:
    import torch

    from activeseg.config import Settings
    from activeseg.explain.network import Network
    from activeseg.nn.checkpoint import Segmenter
    from activeseg.workspace import Workspace

OneImage = Annotated[Path, typer.Argument(help="Any image file.")]
Out = Annotated[Path, typer.Option("--out", "-o", help="Folder for the files.")]
Checkpoint = Annotated[str | None, typer.Option("--checkpoint", help="Model version; the champion if left out.")]
Classifier = Annotated[
    str | None, typer.Option("--classifier", help="A torchvision classification network instead, such as mobilenet_v2.")
]
Weights = Annotated[
    Path | None, typer.Option("--weights", help="The classifier's weights; the published ones are downloaded if left out.")
]
Categories = Annotated[
    Path | None, typer.Option("--categories", help="The classifier's categories, one a line; ImageNet's if left out.")
]
Colormap = Annotated[str, typer.Option("--colormap", help="Any of matplotlib's; cividis suits colour-blind readers.")]
Palette = Annotated[str, typer.Option("--palette", help="Colours of the classes: labels (their own) or voc.")]


def read_segmenter(workspace: Workspace, model_version: str | None) -> Segmenter:
    """The checkpoint of this name, or the champion, on the configured device."""
    from activeseg.db import checkpoints
    from activeseg.nn.checkpoint import load_checkpoint
    from activeseg.nn.device import pick_device

    with workspace.database.read() as session:
        row = checkpoints.by_version(session, model_version) if model_version else checkpoints.require_champion(session)
    data = workspace.artifacts.read(row.location, sha256=row.sha256)
    return load_checkpoint(data, model_version=row.model_version, device=pick_device(workspace.settings.model.device))


def read_network(
    context: typer.Context, checkpoint: str | None, classifier: str | None, weights: Path | None, categories: Path | None
) -> tuple[Network, torch.device]:
    """A checkpoint or, where one is named, a classifier, which needs no workspace; and the device to use."""
    from activeseg.errors import ConfigError
    from activeseg.explain.network import Network
    from activeseg.nn.classifier import load_classifier
    from activeseg.nn.device import pick_device

    if classifier is None:
        if weights or categories:
            raise ConfigError("--weights and --categories belong to a classifier: name it with --classifier")
        with workspace_of(context) as workspace:
            return Network.of_segmenter(read_segmenter(workspace, checkpoint)), pick_device(workspace.settings.model.device)
    if checkpoint is not None:
        raise ConfigError("expected --checkpoint or --classifier; got both")
    device = pick_device(settings_or_defaults(context).model.device)
    return Network.of_classifier(load_classifier(classifier, weights=weights, categories=categories, device=device)), device


def settings_or_defaults(context: typer.Context) -> Settings:
    """The settings, or their defaults where there is no configuration: looking at an image with a classifier needs none."""
    from activeseg.config import CONFIG_FILE, Settings

    if context.obj is None and "ACTIVESEG_CONFIG" not in os.environ and not Path(CONFIG_FILE).exists():
        return Settings(root=Path.cwd())
    return settings_of(context)


def max_pixels_of(context: typer.Context) -> int:
    """[pool] max_pixels."""
    return settings_or_defaults(context).pool.max_pixels
