"""How commands open a workspace and print: tables and bars for people, JSON for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime, tzinfo
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from activeseg.wording import counted, moment

if TYPE_CHECKING:
    from activeseg.config import Settings
    from activeseg.labelstudio.client import LabelStudioClient
    from activeseg.loop import Listener, StageProgress
    from activeseg.records import StageReport
    from activeseg.workspace import Workspace

SERVICES = ("schedule", "serve", "ml-backend")
"""Commands that keep running: they tell by their log what they do."""

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def settings_of(context: typer.Context) -> Settings:
    """The settings of the chosen configuration file."""
    from activeseg import logs
    from activeseg.config import load_settings

    path: Path | None = context.obj
    settings = load_settings(path)
    logs.configure(settings.log, service=context.info_name in SERVICES and not context.params.get("once"))
    return settings


@contextmanager
def workspace_of(context: typer.Context) -> Iterator[Workspace]:
    """The opened workspace of the chosen configuration file."""
    from activeseg.workspace import open_workspace

    with open_workspace(settings_of(context)) as workspace:
        yield workspace


@contextmanager
def client_of(workspace: Workspace) -> Iterator[LabelStudioClient | None]:
    """A client for the configured Label Studio, None where none is configured."""
    if workspace.settings.labelstudio.url is None:
        yield None
        return
    from activeseg.labelstudio.registration import open_client

    with open_client(workspace.settings) as client:
        yield client


def as_size(size: int) -> str:
    """'1.3 GB', '540.0 MB', '12.0 kB' or '17 bytes'."""
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if size >= unit:
            return f"{size / unit:,.1f} {name}"
    return counted(size, "byte")


def print_json(data: Any) -> None:
    """One JSON document on standard output."""
    sys.stdout.write(json.dumps(data, indent=2, default=_plain, allow_nan=False) + "\n")
    sys.stdout.flush()


def print_reports(reports: Sequence[StageReport], as_json: bool) -> None:
    """What stages did: a line each, or a JSON list."""
    if as_json:
        print_json([asdict(report) for report in reports])
        return
    for report in reports:
        print_report(report)


def print_report(report: StageReport) -> None:
    """One line, and a line for each problem it lists."""
    typer.echo(report.sentence())
    for name, problem in report.details.get("problems", {}).items():
        typer.echo(f"  {name}: {problem}", err=True)


def print_table(
    columns: Sequence[str], rows: Sequence[Sequence[Any]], *, title: str | None = None, zone: tzinfo | None = None
) -> None:
    """A table; as wide as it needs to be, so that a row is a line, where the output is no terminal.

    zone: of the times in it; a table with times needs one.
    """
    from rich.console import Console
    from rich.measure import Measurement
    from rich.table import Table

    table = Table(title=title, title_justify="left", title_style="bold", box=None, header_style="bold", pad_edge=False)
    for index, column in enumerate(columns):
        numeric = all(isinstance(row[index], int | float) or row[index] is None for row in rows)
        table.add_column(column, justify="right" if numeric and rows else "left", overflow="fold")
    for row in rows:
        table.add_row(*(_cell(value, zone) for value in row))
    # File names and class names are no markup: "[red]" and ":car:" stay as they are.
    console = Console(highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console.width = max(80, Measurement.get(console, console.options.update(max_width=10_000), table).maximum)
    console.print(table)


def _cell(value: Any, zone: tzinfo | None) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        if 0 < abs(value) < 0.01:  # three decimals would show a ranking of zeros
            return f"{value:.3g}"
        return f"{value:,.1f}" if abs(value) >= 100 else f"{value:.3f}"
    if isinstance(value, datetime):
        if zone is None:
            raise TypeError("a table with times needs a zone to tell them in")
        return moment(value, zone)
    return str(value)


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat()
    return str(value)


@contextmanager
def progress_bar(label: str, *, quiet: bool = False) -> Iterator[StageProgress]:
    """A bar on standard error, fed with (done, planned[, note]); nothing where quiet or where it is no terminal."""
    with listening(quiet=quiet) as listener:
        yield listener.of(label)


@contextmanager
def listening(*, quiet: bool = False, reports: bool = False) -> Iterator[Listener]:
    """A listener that shows bars on standard error and, with `reports`, each stage's line as it ends."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

    from activeseg.loop import Listener

    console = Console(stderr=True, highlight=False, markup=False, emoji=False)
    note = TextColumn("{task.fields[note]}")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), SpeedColumn(), TimeRemainingColumn(), note)
    with Progress(*columns, console=console, transient=True, disable=quiet or not console.is_terminal) as bars:
        tasks: dict[str, TaskID] = {}

        def advance(stage: str, done: int, planned: int, note: str) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=planned, note=note)
            bars.update(tasks[stage], completed=done, total=planned, visible=done < planned, note=note)

        def report(item: StageReport) -> None:
            if reports and not quiet:
                bars.console.print(item.sentence())

        yield Listener(report=report, progress=advance)


def SpeedColumn() -> Any:
    """'37.5/s': images, steps or tasks per second."""
    from rich.progress import Task, TextColumn
    from rich.text import Text

    class Speed(TextColumn):
        def render(self, task: Task) -> Text:
            return Text(f"{task.speed:.1f}/s" if task.speed else "")

    return Speed("")
