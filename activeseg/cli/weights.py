"""activeseg weights: foreign weights come in here, once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from activeseg.cli.output import AsJson, print_json, workspace_of

group = typer.Typer(help="Import pretrained weights.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add the group."""
    app.add_typer(group, name="weights")


@group.callback()
def weights() -> None:
    """Import pretrained weights."""


@group.command("import")
def import_(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(help="A .safetensors file or a torch state dict (.pth, .pt).")],
    as_json: AsJson = False,
) -> None:
    """Check that the weights fit [model], and store them as safetensors. No code in the file is ever run."""
    from activeseg.nn.checkpoint import import_weights, read_weights
    from activeseg.nn.zoo import build_model, load_pretrained

    with workspace_of(context) as workspace:
        data = import_weights(file)
        model = workspace.settings.model
        module = build_model(
            model.architecture, workspace.label_set.num_classes, width=model.width, decoder_stride=model.decoder_stride
        )
        load_pretrained(module, model.architecture, read_weights(data))
        stored = workspace.artifacts.put(data, "weights", ".safetensors")
    if as_json:
        print_json({"sha256": stored.sha256, "location": stored.location, "bytes": stored.size})
        return
    typer.echo(f"stored {stored.location} ({stored.size / 1e6:.1f} MB), fits {model.architecture}")
    typer.echo(f'next: set weights = "{stored.sha256[:12]}" under [model] in activeseg.toml')
