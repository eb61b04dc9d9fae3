"""All commands in one tree."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from activeseg import __version__
from activeseg.cli import (
    alerts,
    backtest,
    backup,
    config,
    database,
    dataset,
    demo,
    doctor,
    drift,
    evaluate,
    explain,
    gc,
    init,
    labeling,
    ls,
    mlbackend,
    models,
    networks,
    pool,
    rankings,
    reconcile,
    report,
    rounds,
    schedule,
    scoring,
    serve,
    token,
    weights,
)


class _Program(TyperGroup):
    """All commands. What typer says of a wrong word begins with the kind of Python's error, which tells nobody anything."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command."""
        try:
            return super().invoke(ctx)
        except typer.BadParameter as error:
            error.message = error.message.removeprefix("Value error, ")
            raise


app = typer.Typer(
    name="activeseg",
    cls=_Program,
    help="Active learning for semantic segmentation: score a pool, label what the model doubts, retrain, promote.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"activeseg {__version__}")
        raise typer.Exit


@app.callback()
def choose_configuration(
    context: typer.Context,
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="Configuration file. [default: $ACTIVESEG_CONFIG or activeseg.toml]")
    ] = None,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Options of every command."""
    context.obj = config


for module in (
    init,
    pool,
    models,
    networks,
    evaluate,
    scoring,
    rankings,
    labeling,
    reconcile,
    report,
    explain,
    schedule,
    serve,
    mlbackend,
    doctor,
    demo,
    rounds,
    backtest,
    gc,
    backup,
):
    module.register(app)
for module in (config, database, dataset, weights, token, ls, alerts, drift):
    module.register(app)
