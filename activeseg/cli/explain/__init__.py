"""activeseg explain: what a model sees in an image, where it doubts, and what made it say so."""

from __future__ import annotations

import typer

from activeseg.cli.explain.gradients import class_model, localise, saliency
from activeseg.cli.explain.image import image
from activeseg.cli.explain.truth import figure, sheet

group = typer.Typer(help="Draw what the model sees and where it doubts.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add the group."""
    app.add_typer(group, name="explain")


@group.callback()
def explain() -> None:
    """Draw what the model sees and where it doubts."""


group.command()(image)
group.command()(saliency)
group.command()(class_model)
group.command()(localise)
group.command()(figure)
group.command()(sheet)
