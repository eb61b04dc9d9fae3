"""activeseg init: a commented activeseg.toml."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from activeseg.cli.output import AsJson, print_json
from activeseg.wording import counted


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("init")(init)


def init(
    directory: Annotated[Path, typer.Argument(help="Folder for activeseg.toml; made if missing.")] = Path("."),
    images: Annotated[str, typer.Option("--images", help="Folder or URI of the unlabelled images.")] = ...,  # type: ignore[assignment]
    classes: Annotated[Path, typer.Option("--classes", help="Class list: one 'name #rrggbb [ignore]' a line.")] = ...,  # type: ignore[assignment]
    as_json: AsJson = False,
) -> None:
    """Write a commented activeseg.toml. Refuses to overwrite."""
    from activeseg.config import CONFIG_FILE, commented_toml
    from activeseg.core.labels import parse_classes
    from activeseg.errors import ConfigError

    file = directory / CONFIG_FILE
    if file.exists():
        raise ConfigError(f"{file} exists already; edit it, or remove it first")
    if not classes.is_file():
        raise ConfigError(f"class list {classes} does not exist; write one 'name #rrggbb [ignore]' a line")
    try:
        label_set = parse_classes(classes.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ConfigError(f"class list {classes} is not UTF-8 text") from error
    if directory.exists() and not directory.is_dir():
        raise ConfigError(f"{directory} is a file; name a folder")
    directory.mkdir(parents=True, exist_ok=True)
    location = images if "://" in images else str(Path(images).absolute())
    file.write_text(commented_toml(images=location, classes=str(classes.absolute())), encoding="utf-8")
    if as_json:
        print_json({"file": str(file), "classes": list(label_set.names)})
        return
    typer.echo(f"wrote {file} ({counted(len(label_set.names), 'class', 'classes')})")
    typer.echo("next: activeseg db upgrade && activeseg pool sync && activeseg round run")
