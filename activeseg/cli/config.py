"""activeseg config: what is set, and by whom."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from activeseg.cli.output import AsJson, print_json, print_table

group = typer.Typer(help="Show the settings.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add the group."""
    app.add_typer(group, name="config")


@group.callback()
def config() -> None:
    """Show the settings."""


@group.command()
def show(
    context: typer.Context,
    changed: Annotated[bool, typer.Option("--changed", help="Only what is not the default.")] = False,
    as_json: AsJson = False,
) -> None:
    """Every setting as it holds now, and where it comes from: default, file or environment. Secrets are masked."""
    from activeseg.config import toml_value
    from activeseg.config.effective import effective_settings

    found = [one for one in effective_settings(context.obj) if not changed or one.source != "default"]
    if as_json:
        print_json([asdict(one) for one in found])
        return
    rows = [
        (f"[{one.section}] {one.key}", "unset" if one.value is None else toml_value(one.value), one.source) for one in found
    ]
    print_table(("setting", "value", "from"), rows)
