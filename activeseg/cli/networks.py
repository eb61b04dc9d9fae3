"""activeseg networks: which networks there are, and what they are made of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from activeseg.cli.output import AsJson, print_json, print_table

if TYPE_CHECKING:
    from torch import nn


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(networks)


def networks(
    name: Annotated[str | None, typer.Argument(help="Show the layers of this one; left out, list all.")] = None,
    num_classes: Annotated[int, typer.Option("--num-classes", min=1, help="Channels of the output.")] = 21,
    width: Annotated[float, typer.Option("--width", min=0.01, max=4.0, help="As [model] width.")] = 1.0,
    decoder_stride: Annotated[int, typer.Option("--decoder-stride", help="As [model] decoder_stride.")] = 8,
    upsampling: Annotated[str, typer.Option("--upsampling", help="As [model] upsampling.")] = "transposed",
    as_json: AsJson = False,
) -> None:
    """List the networks with their numbers of parameters, or the layers of one."""
    from activeseg.nn.zoo import ARCHITECTURES

    if name is None:
        table = [{"name": one, "parameters": _parameters(_build(one, num_classes))} for one in ARCHITECTURES]
        if as_json:
            print_json(table)
            return
        rows = [(row["name"], f"{row['parameters']:,}") for row in table]
        print_table(("network", "parameters"), rows, title=f"{num_classes} classes")
        return
    module = _build(name, num_classes, width=width, decoder_stride=decoder_stride, upsampling=upsampling)
    layers, total = _layers(module), _parameters(module)
    if as_json:
        print_json({"name": name, "num_classes": num_classes, "parameters": total, "layers": layers})
        return
    print_table(("layer", "kind", "parameters"), [(row["name"], row["kind"], f"{row['parameters']:,}") for row in layers])
    typer.echo(f"{name} with {num_classes} classes: {total:,} parameters")


def _build(name: str, num_classes: int, **options: Any) -> nn.Module:
    """The network without memory for its weights."""
    import torch

    from activeseg.nn.zoo import build_model

    with torch.device("meta"):
        return build_model(name, num_classes, **options)


def _layers(module: nn.Module) -> list[dict[str, Any]]:
    """The layers that have parameters, in the order of their definition, each as torch writes it."""
    return [
        {"name": name, "kind": _kind(layer), "parameters": sum(parameter.numel() for parameter in own)}
        for name, layer in module.named_modules()
        if (own := list(layer.parameters(recurse=False)))
    ]


def _kind(layer: nn.Module) -> str:
    """'Conv2d(3, 64, ...)': a layer of ours by the name of torch's that it is."""
    known = next(kind.__name__ for kind in type(layer).__mro__ if kind.__module__.startswith("torch."))
    return known + str(layer).removeprefix(type(layer).__name__)


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
