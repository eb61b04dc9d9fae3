"""activeseg weights: foreign weights come in here, once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from activeseg.cli.output import AsJson, print_json, print_reports, settings_of, workspace_of

File = Annotated[Path, typer.Argument(help="A .safetensors file or a torch state dict (.pth, .pt).")]

group = typer.Typer(help="Import pretrained weights, or adopt a trained network.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add the group."""
    app.add_typer(group, name="weights")


@group.callback()
def weights() -> None:
    """Import pretrained weights, or adopt a trained network."""


@group.command("import")
def import_(context: typer.Context, file: File, as_json: AsJson = False) -> None:
    """Check that the weights fit [model], and store them as safetensors. No code in the file is ever run."""
    from activeseg.config.settings import chosen_file
    from activeseg.housekeeping import with_room
    from activeseg.nn.checkpoint import import_weights, read_weights
    from activeseg.nn.zoo import build_model, load_pretrained

    with workspace_of(context) as workspace, with_room(workspace):
        data = import_weights(file)
        model = workspace.settings.model
        module = build_model(
            model.architecture,
            workspace.label_set.num_classes,
            width=model.width,
            decoder_stride=model.decoder_stride,
            upsampling=model.upsampling,
        )
        left = load_pretrained(module, model.architecture, read_weights(data))
        stored = workspace.artifacts.put(data, "weights", ".safetensors")
    if as_json:
        print_json({"sha256": stored.sha256, "location": stored.location, "bytes": stored.size, "random": left})
        return
    typer.echo(f"stored {stored.location} ({stored.size / 1e6:.1f} MB), fits {model.architecture}")
    for reason in dict.fromkeys(left.values()):
        typer.echo(f"start at random: {', '.join(layer for layer in left if left[layer] == reason)} ({reason})")
    typer.echo(f'next: set weights = "{stored.sha256[:12]}" under [model] in {chosen_file(context.obj)}')


@group.command()
def adopt(
    context: typer.Context,
    file: Annotated[
        Path | None,
        typer.Argument(help="A segmentation network's .safetensors file or state dict; left out, torchvision's is downloaded."),
    ] = None,
    promote: Annotated[bool, typer.Option("--promote/--no-promote", help="Let the gate decide right after.")] = True,
    as_json: AsJson = False,
) -> None:
    """Make a checkpoint of a network trained elsewhere; the gate then promotes or refuses it."""
    from activeseg.db import lease
    from activeseg.housekeeping import with_room
    from activeseg.stages.adopt import adopt_weights
    from activeseg.stages.promote import promote_challengers

    with workspace_of(context) as workspace, lease.holding(workspace.database), with_room(workspace):
        reports = [adopt_weights(workspace, file)]
        if promote:
            reports.append(promote_challengers(workspace))
    print_reports(reports, as_json)


@group.command()
def classes(
    context: typer.Context,
    architecture: Annotated[
        str | None, typer.Option("--architecture", help="The network; [model] architecture if left out.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Print the class list of torchvision's trained network, to be saved as the file of [labels]."""
    from activeseg.nn.zoo import published_label_set

    label_set = published_label_set(architecture or settings_of(context).model.architecture)
    if as_json:
        print_json(label_set.as_dict())
        return
    typer.echo(label_set.to_text(), nl=False)
